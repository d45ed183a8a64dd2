"""What is known of a method: one frozen record each, in the method's own file of this package.

No other code compares names of methods: it reads the facts from here, and a new fact becomes a field. Fields without a
default are questions that every method must answer: a record that leaves one out cannot be created.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from finetune_api.base import ApiModel

Trains = Literal["model", "blocks", "added", "nothing"]
"""What steps change: all weights, those of the last decoder blocks, what was added to a frozen model; or no step is
made and the method is fitted at once."""

Sharding = Literal["fsdp", "deepspeed"]
Library = Literal["transformers", "peft", "finetune-operator"]


class MethodSettings(ApiModel):
    """Settings of one method, the field of `spec.method` that has its name."""

    def filled(self, *, hidden_size: int) -> Self:  # noqa: ARG002
        """With a number in place of each default that depends on other settings, or on the model's width."""
        return self


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The peak of the learning rate where the manifest leaves it open: exactly one of the two."""

    over_full: float | None = None
    """As a multiple of the rate for training all weights, which falls with the model's width."""
    fixed: float | None = None
    """Whatever the width."""

    def __post_init__(self) -> None:
        if (self.over_full is None) == (self.fixed is None):
            raise ValueError("a default rate is either a multiple of the rate for all weights or a fixed number")


@dataclass(frozen=True, kw_only=True)
class Traits:
    name: str
    """The word of `method.type`, and the name of the method's files in the trainer."""
    summary: str
    """What it does, for the description of `method.type`."""
    settings: type[MethodSettings] | None
    """The model of `method.<name>`; None where there is nothing to set."""
    trains: Trains
    rate: Rate | None
    """None where no step is made."""
    library: Library
    """That loads the artifact, for the model card."""
    shards: tuple[Sharding, ...]
    """Strategies with weights in shards under which it is proved to work; they refuse it otherwise."""
    remark: str = ""
    """Added to the description of the field with its settings."""
    mergeable: bool = False
    """Whether what it adds can become part of the base's weights (`output.merged`)."""
    low_rank: bool = False
    """Adds low-rank updates: its settings are those of `lora`."""
    scalable: bool = False
    """Whether its update is linear in one factor, so that it can be published at a smaller scale."""
    four_bits: bool = False
    """Keeps the base in 4 bits."""
    virtual: Literal["tokens", "cache"] | None = None
    """Learns an input of `virtualTokens` positions: tokens in front of each document, or keys and values of each
    layer."""
    switches_off: bool = False
    """Whether what it adds can be switched off in the middle of training, which leaves the base model."""
    new_rows: bool = False
    """Whether rows of the embeddings can train next to it, below all layers (`spec.vocabulary`)."""
    reads_weights: bool = False
    """Looks at whole weights, or runs blocks outside of the loop's passes: never on shards."""
    labels_only: bool = False
    """Learns from rows of format classification alone."""
    picks_layers: bool = False
    """Its setting `layers` lists layers whose states it reads; 0 are the embeddings."""
    measured: str | None = None
    """The setting that may be `auto`: decided by a measurement before the first step."""
    not_compiled: str = ""
    """Why `training.compile` is refused; empty where it works."""
    not_recomputed: str = ""
    """Why `training.activationCheckpointing` is refused; empty where it works."""
    thrift: int | None = None
    """Rank of the methods by memory: a job that does not fit is advised to use one of a higher rank that is also a
    `start`. None: the method is not ranked."""
    start: int | None = None
    """Place among the methods to begin with. None: not recommended as a start, but see `start_with`."""
    start_with: Literal["few rows", "many tokens"] | None = None
    """Data for which it comes before all others."""

    @property
    def steps(self) -> bool:
        """Whether it is trained in steps."""
        return self.trains != "nothing"

    @property
    def generates(self) -> bool:
        """Whether the model can write text while it is in training: a classifier has none to write, and learned keys
        and values take the place of the cache."""
        return self.steps and self.virtual != "cache"

    @property
    def trains_the_model(self) -> bool:
        """Whether weights of the model itself train, and so keep full precision."""
        return self.trains in ("model", "blocks")
