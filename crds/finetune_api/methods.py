"""FineTuneJob.spec.method: which way a model is adapted, and the settings of each way.

A method is a word of `Method.type`, a class with its settings, and an optional field of that name; `only_for` says that
settings belong to their type.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP

DEFAULT: Final = "lora"
MERGEABLE: Final = ("lora", "dora", "qlora")
"""Methods whose adapter can become part of the base's weights."""

WITH_SETTINGS = ("partial", "lora", "dora", "qlora", "adapter", "prompt", "ptuning", "prefix", "probe")


def only_for(method: str) -> Rule:
    """Settings of one method are refused beside the type of another."""
    return Rule(
        cel=f"!has(self.{method}) || "
        + (
            f"!has(self.type) || self.type == '{method}'"
            if method == DEFAULT
            else f"(has(self.type) && self.type == '{method}')"
        ),
        message=f"method.{method} is only for type {method}: remove it or set method.type: {method}",
        holds=lambda new, _: method not in new or new.get("type", DEFAULT) == method,
    )


class Lora(ApiModel):
    rank: int = Field(16, ge=1, le=1024, description="Of the update matrices.")
    alpha: Annotated[float, Field(gt=0, le=65536)] | None = Field(
        None, description="Scale; the update counts alpha/rank. Default: twice the rank; with rsLora 16."
    )
    rs_lora: bool = Field(
        False,
        description="rsLoRA: the update counts alpha/√rank instead, for ranks of 64 and more, which otherwise learn "
        "hardly more than smaller ones.",
    )
    targets: Literal["all-linear", "attention", "mlp"] = Field(
        "all-linear", description="Which linear layers of the decoder blocks get an adapter; the head never does."
    )
    layers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="How many of the last decoder layers get an adapter; those below are only passed forward, which "
        "saves their memory and most of their time. Default: all.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="On the adapter's input.")


VirtualTokens = Annotated[int, Field(ge=1, le=1024)]


class Prompt(ApiModel):
    virtual_tokens: VirtualTokens = Field(20, description="Learned tokens in front of every row.")
    init_text: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="They start as this text's tokens, repeated or cut. Default: tokens drawn from the vocabulary.",
    )


class PTuning(ApiModel):
    virtual_tokens: VirtualTokens = Field(20, description="Learned tokens in front of every row.")
    hidden: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description="Width of the network that makes them. Default: the model's width."
    )


class Prefix(ApiModel):
    virtual_tokens: VirtualTokens = Field(20, description="Learned keys and values in every layer.")


def _is_count_or_auto(new: dict[str, Any]) -> bool:
    value = new.get("layers", "auto")
    return value == "auto" if isinstance(value, str) else 1 <= value <= 1024


class Partial(ApiModel):
    layers: Annotated[int | str, Field(union_mode="left_to_right")] = Field(
        "auto",
        description="How many of the last decoder layers train. auto: the fewest that hold four fifths of the squared "
        "relative gradient, measured before the first step; status.plan shows it.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.layers) || (type(self.layers) == int ? self.layers >= 1 && self.layers <= 1024 : "
            "self.layers == 'auto')",
            message="method.partial.layers must be auto or a number from 1 to 1024",
            holds=lambda new, _: _is_count_or_auto(new),
        ),
    )


class Adapter(ApiModel):
    bottleneck: int = Field(64, ge=1, le=65536, description="Width between the two projections of an adapter.")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: after attention and after feed-forward. pfeiffer: after feed-forward alone."
    )
    activation: Literal["relu", "gelu", "silu"] = Field("gelu", description="Between the two projections.")


class Probe(ApiModel):
    kind: Literal["ridge", "logistic"] = Field(
        "ridge", description="ridge: least squares in closed form. logistic: the likeliest probabilities."
    )
    layers: Annotated[tuple[Annotated[int, Field(ge=0, le=1024)], ...], Field(min_length=1, max_length=32)] | None = (
        Field(
            None,
            description="Layers to choose from, by cross-validation; 0 are the embeddings. Default: six of them.",
            json_schema_extra={LIST_MAP: "set"},
        )
    )


class Method(ApiModel):
    type: Literal["full", "partial", "lora", "dora", "qlora", "adapter", "prompt", "ptuning", "prefix", "probe"] = (
        Field(
            DEFAULT,
            description="full: all weights. partial: the last decoder layers. lora: low-rank adapters on a frozen "
            "base. dora: lora whose magnitudes train apart from directions. qlora: lora on a base in 4 bits. "
            "adapter: small bottleneck layers between frozen ones. prompt: learned tokens in front of every row. "
            "ptuning: the same, made by a small network. prefix: learned keys and values in every layer. "
            "probe: a linear classifier on the frozen model, for format classification; it is fitted at once, "
            "so that what training and checkpoint say about steps is refused.",
        )
    )
    partial: Partial | None = Field(None, description="For type partial.")
    lora: Lora | None = Field(None, description="For type lora.")
    dora: Lora | None = Field(None, description="For type dora.")
    qlora: Lora | None = Field(None, description="For type qlora; the base is NF4 with double quantisation.")
    adapter: Adapter | None = Field(None, description="For type adapter.")
    prompt: Prompt | None = Field(None, description="For type prompt.")
    ptuning: PTuning | None = Field(None, description="For type ptuning.")
    prefix: Prefix | None = Field(None, description="For type prefix.")
    probe: Probe | None = Field(None, description="For type probe.")

    RULES: ClassVar[tuple[Rule, ...]] = tuple(only_for(method) for method in WITH_SETTINGS)

    @property
    def trains_the_model(self) -> bool:
        """Whether weights of the model itself train, and so keep full precision."""
        return self.type in ("full", "partial")

    @property
    def virtual_tokens(self) -> int:
        """Positions that a learned input takes in front of every sequence."""
        defaults = {"prompt": Prompt, "ptuning": PTuning, "prefix": Prefix}
        if self.type not in defaults:
            return 0
        settings = {"prompt": self.prompt, "ptuning": self.ptuning, "prefix": self.prefix}[self.type]
        return (settings or defaults[self.type]()).virtual_tokens

    @property
    def low_rank(self) -> Lora | None:
        """The settings of a method that adds low-rank updates; None for the others."""
        chosen = {"lora": self.lora, "dora": self.dora, "qlora": self.qlora}
        return chosen[self.type] or Lora() if self.type in chosen else None
