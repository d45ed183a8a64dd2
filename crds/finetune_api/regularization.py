"""FineTuneJob.spec.regularization: what keeps a tuned model from forgetting while it learns. A term runs only if its
key is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .fields import DataUri
from .methods import AUTO, TRAITS, Traits, type_of
from .strategy import SHARDED

FRACTIONS: Final = {"small": 0.01, "medium": 0.05, "large": 0.25}
"""Of the rows of a step that are replayed, by the shift of the training rows from general text. 1 % stops most of the
drift (arXiv 2502.06042); 5 % for a weak shift, 25 % for another language (arXiv 2403.08763)."""

OWN_FRACTION: Final = 0.1
"""Of the rows of a step, where the base model's own text is replayed (arXiv 2605.29495 has 1 % and 10 %)."""
OWN_TOKENS: Final = 129
"""Of such a text, at most."""
EARLIER_ROWS: Final = 10_000
"""Training rows of all earlier tasks that are drawn to be replayed, at most."""


class Replay(ApiModel):
    """Rows of general text, or of earlier tasks, among the training rows."""

    fraction: float | None = Field(
        None,
        gt=0,
        le=0.9,
        description="Fraction of the rows of a step that are replayed. They are added to the batchSize rows of "
        "data.train, so that steps and epochs stay the same; a replayed row weighs as much as an average "
        "training row. Default: by the shift of the training rows from the text to replay, measured before the first "
        "step: 0.01 if it is small, 0.05 if it is medium, 0.25 for a change of language or script; with "
        "source self 0.1.",
    )
    source: Literal["general", "self", "earlier"] = Field(
        "general",
        description="general: rows of uri. self: text that the base model writes before the first step, for jobs "
        "without general text: at most 256 texts of 128 tokens, drawn at temperature 1, without repetitive ones. "
        "earlier: training rows of all earlier tasks, with continueFrom: a random sample of at most 10,000 rows, of "
        "each task as many, without rows that measure any task. The artifact names the files; they must be unchanged.",
    )
    uri: DataUri | None = Field(
        None,
        description="General text to replay, like data.general.uri. Documents that are also held-out or general rows "
        "are left out. Default: half of the documents of data.general; forgetting is then measured on the other half.",
    )

    def rows_per_step(self, batch_size: int) -> float:
        """Returns the mean number of replayed rows in a step of `batch_size` training rows: 0.25 of 12 is 4."""
        return batch_size * self.planned / (1 - self.planned)

    @property
    def planned(self) -> float:
        """The fraction; where it is not decided yet the largest that it may be."""
        if self.fraction is not None:
            return self.fraction
        return OWN_FRACTION if self.source == "self" else max(FRACTIONS.values())


class KlToBase(ApiModel):
    """A penalty on the distance of the tuned model's next-token distribution from the base model's."""

    beta: float = Field(0.5, gt=0, le=100, description="Weight of the mean divergence, in nats per token.")


class L2Sp(ApiModel):
    """A pull to the weights that training starts from."""

    strength: float = Field(
        0.1,
        gt=0,
        le=1_000_000,
        description="Weight of half the squared distance from the starting weights, which is added to the mean loss "
        "per token.",
    )


class Ewc(ApiModel):
    """A pull to the weights that training starts from, stronger where general text depends on them."""

    strength: float = Field(
        1.0,
        gt=0,
        le=1_000_000,
        description="Weight of half the squared distance from the starting weights, each weighted by its importance, "
        "which is added to the mean loss per token. The mean importance is 1.",
    )


class Drift(ApiModel):
    """A pull to the results that the adapted matrices have on general text."""

    strength: float = Field(
        10.0,
        gt=0,
        le=1_000_000,
        description="Weight of half the mean squared change of the results, relative to their size, which is added to "
        "the mean loss per token. With the default a change by a tenth costs 0.05.",
    )


class Regularization(ApiModel):
    replay: Replay | None = Field(
        None, description="Mixes general text into the training rows. Costs fraction / (1 - fraction) more time."
    )

    kl_to_base: KlToBase | None = Field(
        None,
        description="Penalizes divergence from the base model: on the replayed rows, or without replay on the tokens "
        "of the training rows, leaving out the right one. For methods with an adapter that can be switched off. Costs "
        "a forward pass over these rows.",
    )

    l2sp: L2Sp | None = Field(
        None,
        alias="l2sp",
        description="Penalizes the squared distance from the starting weights (L2-SP). For low-rank methods that is "
        "the distance of the weights with the update from those without. full, partial, ia3 and adapter keep one copy "
        "of what trains. Not for soft prompts, which have no starting weights, and not for dora.",
    )

    ewc: Ewc | None = Field(
        None,
        description="Penalizes the squared distance from the starting weights, each weighted by its importance for "
        "general text (EWC): the text of replay, or half of data.general. Importance is the diagonal Fisher "
        "information on 200 documents, measured before the first step; it takes as much memory as the weights in fp32. "
        "For methods full, partial and lora, with strategy ddp.",
    )

    drift: Drift | None = Field(
        None,
        description="Penalizes the change of the adapted matrices' results on general text: the text of replay, or "
        "half of data.general. Their inputs on about 512 tokens are measured before the first step and kept in "
        "memory. For methods lora and qlora, with strategy ddp or fsdp.",
    )

    @property
    def reads_general_text(self) -> bool:
        """Whether training sees general text."""
        if self.replays_earlier:  # ewc and drift measure on the same rows
            return False
        replayed = self.replay is not None and self.replay.source == "general"
        return replayed or self.ewc is not None or self.drift is not None

    @property
    def replays_earlier(self) -> bool:
        """Whether training rows of earlier tasks are replayed."""
        return self.replay is not None and self.replay.source == "earlier"

    def works_under(self, strategy: str) -> bool:
        """Whether all terms are proved to work with weights in shards of this strategy."""
        asked = self.to_json()
        return all(strategy in term.sharded for term in _ALL if term.name in asked)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields (title, settings in words) of each term, for report and model card."""
        if self.replay is not None:
            source, open_share = self.replay.uri or "half of data.general", "by the shift"
            if self.replay.source == "self":
                source, open_share = "text that the base model wrote", f"{100 * OWN_FRACTION:g} %"
            elif self.replays_earlier:
                source = "the training rows of earlier tasks"
            share = open_share if self.replay.fraction is None else f"{100 * self.replay.fraction:g} %"
            yield TERMS["replay"].title, f"{share} of the rows of a step, from {source}"
        if self.kl_to_base is not None:
            where = "replayed rows" if self.replay else "training rows, without the right token"
            yield TERMS["klToBase"].title, f"beta {self.kl_to_base.beta:g}, on {where}"
        if self.l2sp is not None:
            yield TERMS["l2sp"].title, f"strength {self.l2sp.strength:g}"
        if self.ewc is not None:
            yield TERMS["ewc"].title, f"strength {self.ewc.strength:g}"
        if self.drift is not None:
            yield TERMS["drift"].title, f"strength {self.drift.strength:g}"

    def kept_copies(self, traits: Traits) -> int:
        """Returns how many fp32 copies of what trains a method with these terms keeps: for `ewc` start and importance.
        Low-rank methods keep none, but see `weighs_matrices`."""
        return 0 if traits.low_rank else (self.l2sp is not None) + 2 * (self.ewc is not None)

    def weighs_matrices(self, traits: Traits) -> bool:
        """Whether the importance of each weight of the adapted matrices is kept, in fp32."""
        return traits.low_rank and self.ewc is not None


DRIFT_TOKENS: Final = 512
"""Of general text, whose activations regularization.drift holds to."""

NO_TERMS = Regularization()


@dataclass(frozen=True, kw_only=True)
class TermTraits:
    """Properties of a key of spec.regularization."""

    name: str
    title: str
    """Its name in the report."""
    unit: str
    """Of its curve."""
    methods: tuple[str, ...] | None = None
    """Methods that it works with; None: all that make steps."""
    why_not: str = ""
    """Why it does not work with others, and what to use instead."""
    sharded: tuple[str, ...] = SHARDED
    """Strategies with weights in shards under which it is proved to work."""


_WITH_BASE = tuple(method.name for method in TRAITS.values() if method.switches_off)
_WITH_START = tuple(
    method.name
    for method in TRAITS.values()
    if method.steps and method.virtual is None and (method.scalable or not method.low_rank)
)

_PRODUCTS = tuple(method.name for method in TRAITS.values() if method.scalable)
_WEIGHED = ("full", "partial", "lora")

_ALL = (
    TermTraits(name="replay", title="Replayed text", unit="nats per replayed token"),
    TermTraits(
        name="klToBase",
        title="KL to the base",
        unit="nats per token",
        methods=_WITH_BASE,
        why_not=f"compares with the base model, and only method.type {', '.join(_WITH_BASE)} can switch back to it "
        "without a second copy: use one of these, or regularization.replay alone",
        sharded=("fsdp",),
    ),
    TermTraits(
        name="l2sp",
        title="L2-SP",
        unit="added to the loss",
        methods=_WITH_START,
        why_not="pulls to the weights that training starts from. Soft prompts have none, and the magnitudes of dora "
        f"are not part of its low-rank update: set method.type to one of {', '.join(_WITH_START)}, or use "
        "regularization.replay",
        sharded=("fsdp",),
    ),
    TermTraits(
        name="ewc",
        title="EWC",
        unit="added to the loss",
        methods=_WEIGHED,
        why_not="needs the importance of each weight that training changes, and measures it for method.type "
        f"{', '.join(_WEIGHED)}: use one of these, or regularization.l2sp",
        sharded=(),
    ),
    TermTraits(
        name="drift",
        title="Activation drift",
        unit="added to the loss",
        methods=_PRODUCTS,
        why_not="holds the results of matrices with a low-rank update, and only method.type "
        f"{' and '.join(_PRODUCTS)} change them by that alone: use one of these, or regularization.l2sp",
        sharded=("fsdp",),
    ),
)

TERMS: dict[str, TermTraits] = {term.name: term for term in _ALL}
"""By key of the manifest."""


def replay_uri(spec: dict[str, Any]) -> str | None:
    """Returns the URI of the general text that training sees, if it needs any: that of replay, or of data.general."""
    terms = spec.get("regularization") or {}
    if all(terms.get(name) is None for name in ("ewc", "drift")) and (
        terms.get("replay") is None or _writes_itself(spec)
    ):
        return None
    if _source(spec) == "earlier":
        return None
    uri = (terms.get("replay") or {}).get("uri") or ((spec.get("data") or {}).get("general") or {}).get("uri")
    return str(uri) if uri else None


def _source(new: dict[str, Any]) -> str | None:
    source = ((new.get("regularization") or {}).get("replay") or {}).get("source")
    return None if source is None else str(source)


def _writes_itself(new: dict[str, Any]) -> bool:
    return _source(new) == "self"


def _asks(new: dict[str, Any], term: TermTraits) -> bool:
    return (new.get("regularization") or {}).get(term.name) is not None


def _absent(term: TermTraits) -> str:
    return f"!has(self.regularization) || !has(self.regularization.{term.name}) || "


def _only_for(term: TermTraits, methods: tuple[str, ...]) -> Rule:
    return Rule(
        cel=_absent(term) + f"!has(self.method) || !has(self.method.type) || self.method.type in {list(methods)}",
        message=f"regularization.{term.name} {term.why_not}",
        holds=lambda new, _: not _asks(new, term) or type_of(new) in methods,
    )


def _not_under(term: TermTraits, strategy: str) -> Rule:
    return Rule(
        cel=_absent(term) + f"!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != '{strategy}'",
        message=f"regularization.{term.name} is not supported by strategy.type {strategy}: set strategy.type: "
        f"{' or '.join(('ddp', *term.sharded))}",
        holds=lambda new, _: not _asks(new, term) or (new.get("strategy") or {}).get("type") != strategy,
    )


_SELF = "(has(self.regularization.replay.source) && self.regularization.replay.source == 'self')"
_EARLIER = "(has(self.regularization.replay.source) && self.regularization.replay.source == 'earlier')"
_WRITING = (*(method.name for method in TRAITS.values() if method.generates), AUTO)


def _not_self(otherwise: str) -> str:
    return f"!has(self.regularization) || !has(self.regularization.replay) || !{_SELF} || ({otherwise})"


def _needs_text(name: str, what_for: str) -> Rule:
    return Rule(
        cel=f"!has(self.regularization) || !has(self.regularization.{name}) || (has(self.regularization.replay) && "
        f"(has(self.regularization.replay.uri) || {_EARLIER})) || !has(self.data) || has(self.data.general)",
        message=f"regularization.{name} needs general text to {what_for}: set data.general, or "
        "regularization.replay.uri",
        holds=lambda new, _: (
            "data" not in new or not _asks(new, TERMS[name]) or _source(new) == "earlier" or replay_uri(new) is not None
        ),
    )


REGULARIZATION_RULES = (
    *(_only_for(term, term.methods) for term in _ALL if term.methods is not None),
    *(_not_under(term, strategy) for term in _ALL for strategy in SHARDED if strategy not in term.sharded),
    Rule(
        cel="!has(self.regularization) || !has(self.regularization.replay) || has(self.regularization.replay.uri) || "
        f"{_SELF} || {_EARLIER} || !has(self.data) || has(self.data.general)",
        message="regularization.replay needs general text: set regularization.replay.uri, data.general, or "
        "replay.source: self (with continueFrom: earlier)",
        holds=lambda new, _: (
            "data" not in new
            or (new.get("regularization") or {}).get("replay") is None
            or _source(new) in ("self", "earlier")
            or replay_uri(new) is not None
        ),
    ),
    Rule(
        cel=_absent(TERMS["replay"]) + f"!{_EARLIER} || has(self.continueFrom)",
        message="regularization.replay.source earlier replays the training rows of earlier tasks: set continueFrom to "
        "the artifact of the last one, or set regularization.replay.uri instead",
        holds=lambda new, _: _source(new) != "earlier" or "continueFrom" in new,
    ),
    Rule(
        cel=_absent(TERMS["replay"]) + f"!{_EARLIER} || !has(self.regularization.replay.uri)",
        message="regularization.replay.source earlier takes its rows from the files that the earlier artifact names: "
        "remove uri, or set source: general",
        holds=lambda new, _: _source(new) != "earlier" or "uri" not in new["regularization"]["replay"],
    ),
    Rule(
        cel=_not_self(
            "!has(self.regularization.replay.uri) && !has(self.regularization.ewc) && !has(self.regularization.drift)"
        ),
        message="regularization.replay.source self replays text that the base model writes: remove uri, and ewc and "
        "drift, which measure on given text, or set source: general",
        holds=lambda new, _: (
            not _writes_itself(new)
            or not (set(new["regularization"]) & {"ewc", "drift"} or "uri" in new["regularization"]["replay"])
        ),
    ),
    Rule(
        cel=_not_self(f"(!has(self.method) || !has(self.method.type) || self.method.type in {list(_WRITING)})"),
        message="regularization.replay.source self lets the base model write text, which works with method.type "
        f"{', '.join(_WRITING)}: use one of these, or set regularization.replay.uri",
        holds=lambda new, _: not _writes_itself(new) or type_of(new) in _WRITING,
    ),
    Rule(
        cel=_not_self("(!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed')"),
        message="regularization.replay.source self is not supported by strategy.type deepspeed: set strategy.type: ddp "
        "or fsdp",
        holds=lambda new, _: not _writes_itself(new) or (new.get("strategy") or {}).get("type") != "deepspeed",
    ),
    _needs_text("ewc", "measure importance on"),
    _needs_text("drift", "measure activations on"),
    Rule(
        cel="!has(self.regularization) || !has(self.regularization.ewc) || !has(self.training) || "
        "!has(self.training.compile) || !self.training.compile",
        message="regularization.ewc looks into blocks, which training.compile hides: remove one of the two",
        holds=lambda new, _: not _asks(new, TERMS["ewc"]) or not (new.get("training") or {}).get("compile"),
    ),
)
