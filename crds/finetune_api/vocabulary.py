"""FineTuneJob.spec.vocabulary: new tokens for words that the model's tokenizer cuts into many pieces, or training
of the embeddings that such words have already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from .base import ApiModel, Rule
from .fields import LIST_MAP, TERM
from .methods import TRAITS, type_of

DEFAULT_NEW_TOKENS: Final = 256
MOST_NEW_TOKENS: Final = 8192

METHODS: Final = tuple(traits.name for traits in TRAITS.values() if traits.new_rows)
"""Methods next to which rows of the embeddings can train."""

_WHOLE: Final = tuple(traits.name for traits in TRAITS.values() if traits.trains == "model")

_LOW_RANK: Final = tuple(traits.name for traits in TRAITS.values() if traits.low_rank)

Term = Annotated[str, Field(min_length=1, max_length=64, pattern=TERM)]


class Vocabulary(ApiModel):
    terms: Annotated[tuple[Term, ...], Field(max_length=256)] = Field(
        (),
        description="Words of the domain that become one token each, by merges that are appended to the tokenizer's. A "
        "term that the tokenizer splits before it merges, at a space or a hyphen, cannot be one token: the log and the "
        "report say so.",
        json_schema_extra={LIST_MAP: "atomic"},
    )
    mine: bool = Field(
        False,
        description="Learn further merges from the training rows, most frequent first, until maxNewTokens is reached "
        "or no pair of tokens occurs five times.",
    )
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_NEW_TOKENS)] | None = Field(
        None,
        description="Most tokens that are added, for terms first. A term of n pieces takes n - 1 of them, with and "
        f"without a space before it. Default {DEFAULT_NEW_TOKENS}.",
    )
    existing_rows: bool = Field(
        False,
        description="Leave the tokenizer unchanged, and train the embeddings of the pieces that the terms have now.",
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(has(self.terms) && self.terms.size() > 0) || (has(self.mine) && self.mine)",
            message="vocabulary needs terms, mine: true, or both",
            holds=lambda new, _: bool(new.get("terms")) or bool(new.get("mine")),
        ),
        Rule(
            cel="!has(self.existingRows) || !self.existingRows || "
            "!((has(self.mine) && self.mine) || has(self.maxNewTokens))",
            message="vocabulary.existingRows adds no tokens: remove mine and maxNewTokens, or existingRows",
            holds=lambda new, _: not new.get("existingRows") or not (new.get("mine") or "maxNewTokens" in new),
        ),
    )

    @property
    def most(self) -> int:
        """The number of tokens that may be added."""
        return 0 if self.existing_rows else self.max_new_tokens or DEFAULT_NEW_TOKENS

    @property
    def planned_rows(self) -> int:
        """Rows of the embeddings that are planned to train, before the tokenizer is known: all that may be added, or
        eight for each term, four pieces with and without a space."""
        return 8 * len(self.terms) if self.existing_rows else self.most

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yields (title, settings in words), for report and model card."""
        if self.existing_rows:
            yield "Vocabulary", f"the embeddings of the pieces of {len(self.terms)} terms train"
            return
        asked = [f"{len(self.terms)} term{'s' if len(self.terms) > 1 else ''}"] if self.terms else []
        asked += ["merges learned from the training rows"] if self.mine else []
        yield "Vocabulary", f"extended by {' and '.join(asked)}, at most {self.most} tokens"


def _asks(new: dict[str, Any]) -> bool:
    return new.get("vocabulary") is not None


def _existing(new: dict[str, Any]) -> bool:
    return bool((new.get("vocabulary") or {}).get("existingRows"))


def _not_with(cel: str, message: str, present: Callable[[dict[str, Any]], bool]) -> Rule:
    """Refuses spec.vocabulary together with something else; `cel` says that it is absent."""
    return Rule(
        cel=f"!has(self.vocabulary) || {cel}",
        message=message,
        holds=lambda new, _: not _asks(new) or not present(new),
    )


def _term(new: dict[str, Any], name: str) -> bool:
    return (new.get("regularization") or {}).get(name) is not None


def _scales(new: dict[str, Any]) -> bool:
    remedy = (new.get("guards") or {}).get("onViolation") == "remedy"
    return remedy or bool((new.get("evaluation") or {}).get("scaleSweep"))


def _judges_collapse(new: dict[str, Any]) -> bool:
    return not _existing(new) and (new.get("guards") or {}).get("collapse") is not None


def _last_layers(new: dict[str, Any]) -> bool:
    method = new.get("method") or {}
    return any((method.get(name) or {}).get("layers") is not None for name in _LOW_RANK)


_NO_LAYERS = " && ".join(f"(!has(self.method.{name}) || !has(self.method.{name}.layers))" for name in _LOW_RANK)

VOCABULARY_RULES = (
    _not_with(
        f"!has(self.method) || !has(self.method.type) || self.method.type in {list(METHODS)}",
        "vocabulary trains rows of the embeddings, below all layers, and the artifact is a model with these rows: set "
        f"method.type to one of {', '.join(METHODS)}",
        lambda new: type_of(new) not in METHODS,
    ),
    _not_with(
        f"!has(self.method) || ({_NO_LAYERS})",
        "vocabulary trains rows of the embeddings, so that the backward pass goes through all layers: remove "
        "method.*.layers",
        _last_layers,
    ),
    _not_with(
        "!has(self.vocabulary.existingRows) || !self.vocabulary.existingRows || !has(self.method) || "
        f"!has(self.method.type) || !(self.method.type in {list(_WHOLE)})",
        f"method.type {' and '.join(_WHOLE)} trains all rows of the embeddings: remove vocabulary.existingRows",
        lambda new: _existing(new) and type_of(new) in _WHOLE,
    ),
    _not_with(
        "!has(self.strategy) || !has(self.strategy.type) || self.strategy.type != 'deepspeed'",
        "vocabulary is not supported by strategy.type deepspeed: set strategy.type: ddp or fsdp",
        lambda new: (new.get("strategy") or {}).get("type") == "deepspeed",
    ),
    _not_with(
        "!has(self.regularization) || !(has(self.regularization.klToBase) || has(self.regularization.l2sp) || "
        "has(self.regularization.ewc) || has(self.regularization.drift))",
        "vocabulary changes embeddings that regularization.klToBase, l2sp, ewc and drift do not hold back: use "
        "regularization.replay, or remove vocabulary",
        lambda new: any(_term(new, name) for name in ("klToBase", "l2sp", "ewc", "drift")),
    ),
    _not_with(
        "!((has(self.guards) && has(self.guards.onViolation) && self.guards.onViolation == 'remedy') || "
        "(has(self.evaluation) && has(self.evaluation.scaleSweep) && self.evaluation.scaleSweep))",
        "guards.onViolation remedy and evaluation.scaleSweep change the scale of an adapter, and embeddings of "
        "vocabulary have none: set guards.onViolation: fail and remove evaluation.scaleSweep",
        _scales,
    ),
    _not_with(
        "(has(self.vocabulary.existingRows) && self.vocabulary.existingRows) || !has(self.guards) || "
        "!has(self.guards.collapse)",
        "guards.collapse compares how varied the tokens of base and tuned model are, and with vocabulary they write "
        "different tokens: remove guards.collapse, or set vocabulary.existingRows: true",
        _judges_collapse,
    ),
    _not_with(
        "!has(self.output) || !has(self.output.switchTest) || self.output.switchTest.size() == 0",
        "output.switchTest needs adapters of one base model, and vocabulary makes another base model: remove one of "
        "the two",
        lambda new: bool((new.get("output") or {}).get("switchTest")),
    ),
    _not_with(
        "!has(self.evaluation) || !has(self.evaluation.klToBase) || !self.evaluation.klToBase",
        "evaluation.klToBase compares tokens with the base model's, which vocabulary changes: remove one of the two",
        lambda new: bool((new.get("evaluation") or {}).get("klToBase")),
    ),
)
