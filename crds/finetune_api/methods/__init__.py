"""FineTuneJob.spec.method: how the model is adapted, and the settings of each method.

A method is a file in this package with its settings and traits, an entry in `TRAITS`, a value of `Method.type` and an
optional field of that name; `only_for` makes sure that settings are given for the chosen type only. docs/extending.md
lists the other steps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Rule

from .adapter import ADAPTER, Adapter
from .dora import DORA
from .full import FULL
from .ia3 import IA3
from .lora import LORA, Lora
from .partial import PARTIAL, Partial
from .prefix import PREFIX, Prefix
from .probe import PROBE, Probe
from .prompt import PROMPT, Prompt
from .ptuning import PTUNING, PTuning
from .qlora import QLORA
from .traits import MethodSettings, Traits

__all__ = [
    "AUTO",
    "DEFAULT",
    "TRAITS",
    "Adapter",
    "Lora",
    "Method",
    "MethodSettings",
    "PTuning",
    "Partial",
    "Prefix",
    "Probe",
    "Prompt",
    "Traits",
    "type_of",
]  # fmt: skip

TRAITS: Final[dict[str, Traits]] = {
    traits.name: traits for traits in (FULL, PARTIAL, LORA, DORA, QLORA, ADAPTER, IA3, PROMPT, PTUNING, PREFIX, PROBE)
}
"""Every method by its name, in the order in which people read of them."""

DEFAULT: Final = "lora"

AUTO: Final = "auto"
"""The value of `Method.type` that leaves the choice to a ladder (`finetune_api.ladder`): it is not a method, and has no
traits."""


def type_of(spec: dict[str, Any]) -> str:
    """The method's name in a FineTuneJob.spec as it was written."""
    return str((spec.get("method") or {}).get("type", DEFAULT))


def only_for(method: str) -> Rule:
    """Refuses the settings of one method together with the type of another."""
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


def _settings_of(traits: Traits) -> Any:
    """The optional field of a method's settings."""
    return Field(None, description=f"Settings for type {traits.name}. {traits.remark}".strip())


class Method(ApiModel):
    type: Literal[
        "full", "partial", "lora", "dora", "qlora", "adapter", "ia3", "prompt", "ptuning", "prefix", "probe", "auto"
    ] = Field(
        DEFAULT,
        description=" ".join(f"{traits.name}: {traits.summary}." for traits in TRAITS.values())
        + " auto: starts with a cheap method and steps up only if a test on validation rows shows that it pays (see "
        "ladder).",
    )
    partial: Partial | None = _settings_of(PARTIAL)
    lora: Lora | None = _settings_of(LORA)
    dora: Lora | None = _settings_of(DORA)
    qlora: Lora | None = _settings_of(QLORA)
    adapter: Adapter | None = _settings_of(ADAPTER)
    prompt: Prompt | None = _settings_of(PROMPT)
    ptuning: PTuning | None = _settings_of(PTUNING)
    prefix: Prefix | None = _settings_of(PREFIX)
    probe: Probe | None = _settings_of(PROBE)

    RULES: ClassVar[tuple[Rule, ...]] = tuple(only_for(traits.name) for traits in TRAITS.values() if traits.settings)

    @property
    def is_auto(self) -> bool:
        """Whether a ladder chooses the method."""
        return self.type == AUTO

    @property
    def traits(self) -> Traits:
        """What is known of this method. KeyError for auto."""
        return TRAITS[self.type]

    @property
    def settings(self) -> MethodSettings | None:
        """Those of this method, with the defaults where none are given; None where it has nothing to set."""
        given: MethodSettings | None = getattr(self, self.type, None)
        return given or (self.traits.settings() if self.traits.settings else None)

    def changed(self, settings: MethodSettings) -> Method:
        """The same method with other settings."""
        return self.model_copy(update={self.type: settings})

    @property
    def trains_the_model(self) -> bool:
        """Whether the weights of the model itself are trained, and so are kept in full precision."""
        return self.traits.trains_the_model

    @property
    def virtual_tokens(self) -> int:
        """Number of positions that a soft prompt takes before each sequence."""
        return int(getattr(self.settings, "virtual_tokens", 0)) if self.traits.virtual else 0

    @property
    def low_rank(self) -> Lora | None:
        """The settings of a method that adds low-rank updates; None for the others."""
        settings = self.settings
        return settings if self.traits.low_rank and isinstance(settings, Lora) else None

    @property
    def is_open(self) -> bool:
        """Whether something has to be measured before the method is known."""
        return self.traits.measured is not None and self.measured is None

    def settled(self, value: int) -> Method:
        """With this number for what was to be measured."""
        settings, measured = self.settings, self.traits.measured
        if settings is None or measured is None:
            raise ValueError(f"method {self.type} leaves nothing to a measurement")
        return self.changed(settings.model_copy(update={measured: value}))

    @property
    def measured(self) -> int | None:
        """What the measurement came to, or the manifest says in its place; None while it is open, or nothing is."""
        name = self.traits.measured
        value = getattr(self.settings, name) if name else None
        return value if isinstance(value, int) else None
