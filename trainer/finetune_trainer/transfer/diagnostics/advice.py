"""What follows from an analysis for the manifest: each recommendation with the numbers that are its reason.

method, layers   the probes' curve; of all layers where the shift is large, since new words change the lowest ones
replay           1, 5 or 25 % of the rows by the shift (see `finetune_api.regularization.FRACTIONS`)
rows             to learn: whether the last doubling still helped; to measure: what the held-out rows cannot show
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from finetune_api.measurements import Evaluation
from finetune_api.regularization import FRACTIONS
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.statistics.fragmentation import PIECES
from finetune_trainer.statistics.shift import LONGER

from .concepts import Concept
from .probes import Curve, OwnAnswers
from .shift import Shift
from .similarity import Similarity
from .vocabulary import Vocabulary

FEW_ROWS = 10_000
"""Below it adapters are recommended."""
GENERAL = "general"
"""Name of the data set of general text."""
FRAGMENTED = 0.05
"""Share of words from which on their pieces matter."""
MOST = 0.75
"""Share of the blocks up to which leaving the others out is recommended."""
VISIBLE = 0.02
"""Difference of accuracy that held-out rows should show."""


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """How strongly the first steps would move each block."""

    relative: tuple[float, ...]
    """(blocks,): norm of the gradient by norm of the weights."""
    trained: int
    """The fewest last blocks that hold most of the squares."""

    @property
    def held(self) -> tuple[float, ...]:
        """(blocks,): share of the squares in this block and those above it."""
        squares = [value * value for value in self.relative]
        return tuple(sum(squares[at:]) / (sum(squares) or 1.0) for at in range(len(squares)))


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was measured; None where it was not, for the reason in `notes`."""

    rows: int
    """Training rows."""
    held_out: int
    """Documents of data.test, else of data.validation."""
    blocks: int
    labelled: bool = False
    """Rows are classifications."""
    shift: Shift | None = None
    vocabulary: Vocabulary | None = None
    curve: Curve | None = None
    answers: OwnAnswers | None = None
    gradients: Gradients | None = None
    """Of rows without labels, in place of the curve."""
    concepts: tuple[Concept, ...] = ()
    """Of diagnostics.probes."""
    notes: tuple[str, ...] = ()


class Advice(NamedTuple):
    setting: str
    """What to write, or to do."""
    why: str


def recommended(found: Findings, spec: FineTuneJobSpec) -> tuple[Advice, ...]:
    return (*_method(found, spec), *_rows(found), *_of_shift(found, spec), *_words(found))


def after_training(found: Sequence[Similarity], *, blocks: int, gained: bool | None, rows: int) -> tuple[Advice, ...]:
    """What follows for the next run from what this one changed. gained: whether the tuned model is better on its test
    rows; None where that was not measured."""
    return tuple(_of_change(found, blocks=blocks, gained=gained, rows=rows))


def better(evaluation: Evaluation) -> bool | None:
    """Whether the tuned model is better on the test rows, or without these on the validation rows; None where that was
    not measured."""
    verdicts = {each.kind: each.verdict for each in evaluation.data}
    verdict = verdicts.get("test") or verdicts.get("validation")
    return None if verdict is None else verdict == "better"


def _of_change(found: Sequence[Similarity], *, blocks: int, gained: bool | None, rows: int) -> Iterator[Advice]:
    task = next((each for each in found if each.name != GENERAL), None)
    general = next((each for each in found if each.name == GENERAL), None)
    if task is not None and task.changed_from is None:
        yield Advice(
            "a higher training.learningRate or more epochs, if the scores ask for it",
            f"no layer changed: the lowest CKA is {task.least.cka:.4f}, of layer {task.least.layer}",
        )
    elif task is not None and task.changed_from is not None:
        if gained is False:
            yield Advice(
                "a lower training.learningRate, or other rows",
                f"the states changed from layer {task.changed_from} on (layer {task.least.layer}: CKA "
                f"{task.least.cka:.3f}), and the tuned model is not better on the test rows",
            )
        if 1 < task.changed_from <= blocks:
            kind, last = "lora" if rows < FEW_ROWS else "partial", blocks - task.changed_from + 1
            yield Advice(
                f"method: {{type: {kind}, {kind}: {{layers: {last}}}}}",
                f"the layers below {task.changed_from} of {blocks} hardly changed (1 - CKA at most 0.01): the next run "
                "can leave their blocks as they are",
            )
    if general is not None and general.changed_from is not None:
        yield Advice(
            "guards.forgetting, and regularization.replay or klToBase",
            f"the states of general text changed too, from layer {general.changed_from} on (layer "
            f"{general.least.layer}: CKA {general.least.cka:.3f}): measure what that cost",
        )


def _method(found: Findings, spec: FineTuneJobSpec) -> Iterator[Advice]:
    curve = found.curve
    if curve is None:
        yield from _without_labels(found, spec)
        return
    best = curve.best
    if not curve.selective:
        yield Advice(
            "check the labels, or add rows, before anything is trained",
            f"no layer predicts the labels better than chance: the best one is right on {_share(best.accuracy)} of the "
            f"rows, on {_share(best.control)} with permuted labels, and {100 * curve.chance:.0f} % of the permutations "
            "have a layer that is as good",
        )
        return
    yield Advice(
        f"method: {{type: probe, probe: {{layers: [{best.layer}]}}}}, as a baseline",
        f"it needs no training, and is right on {_share(best.accuracy)} ± {_share(best.error)} of the rows that it has "
        f"not seen{_against(found.answers)}: training has to exceed that",
    )
    yield _layers(found, curve)


def _without_labels(found: Findings, spec: FineTuneJobSpec) -> Iterator[Advice]:
    few, why = found.rows < FEW_ROWS, f"{found.rows:,} rows are few for training the model's own weights"
    found_large = found.shift is not None and found.shift.band == "large"
    if found.gradients is None or found_large or found.gradients.trained > MOST * found.blocks:
        if few and not spec.method.is_auto and spec.method.trains_the_model:
            yield Advice("method: {type: lora}", why)
        return
    kind, last = "lora" if few else "partial", found.gradients.trained
    yield Advice(
        f"method: {{type: {kind}, {kind}: {{layers: {last}}}}}",
        f"the last {last} of {found.blocks} blocks hold {_share(found.gradients.held[-last])} of the squared relative "
        f"gradients: training moves the others little{f'; {why}' if few else ''}",
    )


def _layers(found: Findings, curve: Curve) -> Advice:
    choice, kind = curve.choice, "lora" if found.rows < FEW_ROWS else "partial"
    few = f"; {found.rows:,} rows are few for training the model's own weights" if kind == "lora" else ""
    if found.shift is not None and found.shift.band == "large":
        return Advice(
            "method: {type: lora}, on all layers",
            "the shift is large: words or a script that are new to the model change its lowest layers too",
        )
    if choice.enough == 0:
        return Advice(
            "method: {type: probe}, or nothing larger than lora",
            "the embeddings alone are within one standard error of the best layer: the labels depend on words, and "
            "training layers has little to add",
        )
    if choice.rises:
        return Advice(
            "method: {type: lora}, on all layers",
            f"the last layer is better than all others by more than one standard error: no layer is good enough to "
            f"leave those below it as they are{few}",
        )
    return Advice(
        f"method: {{type: {kind}, {kind}: {{layers: {choice.trained}}}}}",
        f"layer {choice.enough} of {found.blocks} is the lowest within one standard error of the best one"
        f"{' on the slices' if curve.elsewhere else ''}, layer {choice.best}: the blocks up to it know the labels as "
        f"well as any, so only the last {choice.trained} are "
        f"adapted{few}",
    )


def _against(answers: OwnAnswers | None) -> str:
    if answers is None:
        return ""
    return f" (the model's own answers: {_share(answers.accuracy)}, so the probe is {_verdict(answers)})"


def _verdict(answers: OwnAnswers) -> str:
    verdict = str(answers.probe.verdict)
    return "not told apart from them" if verdict == "inconclusive" else verdict


def _rows(found: Findings) -> Iterator[Advice]:
    curve, answers = found.curve, found.answers
    if curve is None or not curve.selective:
        return
    more = curve.doubling
    if more.low is not None and more.high is not None:
        measured = f"the last doubling changed the accuracy by {_signed(more)}"
        if more.low > 0:
            yield Advice(f"more training rows: {curve.rows:,} more, then measure again", f"{measured}: rows still help")
        elif more.high < VISIBLE:
            yield Advice("no more training rows of this kind for the probe's sake", f"{measured}: it has levelled off")
    detectable = answers.probe.minimum_detectable if answers is not None else None
    if detectable is None:
        return
    needed = _rounded_up(curve.rows * (detectable / VISIBLE) ** 2)
    if found.held_out < needed:
        shown = min(1.0, detectable * math.sqrt(curve.rows / found.held_out)) if found.held_out else None
        yield Advice(
            f"data.test with {needed:,} rows",
            f"with as many disagreements as between probe and model, so many show a difference of {_points(VISIBLE)}; "
            + (f"the {found.held_out:,} held-out rows show {_points(shown)}" if shown else "no rows are held out"),
        )


def _of_shift(found: Findings, spec: FineTuneJobSpec) -> Iterator[Advice]:
    if found.shift is None:
        return
    shift = found.shift
    yield Advice(
        f"regularization.replay: {{fraction: {FRACTIONS[shift.band]:g}, uri: …}}",
        f"the shift is {shift.band}: {shift.ratio.value:.2f} times the bits per byte of general text, "
        f"Jensen-Shannon excess {shift.excess:.2f} bits",
    )
    if spec.guards.forgetting is None:
        yield Advice("guards.forgetting: {maxBitsPerByteIncrease: 0.05}", "general text is there to measure it")
    if shift.longer > LONGER:
        yield Advice(
            "a model whose tokenizer suits the text, or vocabulary: {mine: true}",
            f"a byte takes {shift.longer:.2f} times the tokens of general text, so rows cost that much more",
        )


def _words(found: Findings) -> Iterator[Advice]:
    """Where words are cut into many pieces, in training rows more than in general text."""
    if found.vocabulary is None or (found.shift is not None and found.shift.longer > LONGER):
        return
    worst = max(found.vocabulary.sources, key=lambda name: found.vocabulary.sources[name].fragmented or 0.0)  # type: ignore[union-attr]
    share = found.vocabulary.sources[worst].fragmented or 0.0
    general = found.vocabulary.sources.get(GENERAL)
    if worst == GENERAL or share < FRAGMENTED or share < 2 * ((general and general.fragmented) or 0.0):
        return
    cut = [term.word for term in found.vocabulary.terms if term.pieces >= PIECES]
    yield Advice(
        f"vocabulary: {{mine: true, terms: [{', '.join(cut[:6])}]}}, or a model whose tokenizer knows the words"
        if cut
        else "vocabulary: {mine: true}, or a model whose tokenizer knows the words",
        f"{_share(share)} of the words of {worst} are cut into {PIECES} or more tokens"
        + (f", among them {', '.join(cut[:6])}" if cut else ""),
    )


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"


def _signed(more: object) -> str:
    value, low, high = (100 * getattr(more, name) for name in ("difference", "low", "high"))
    return f"{value:+.1f} points (95 % interval {low:+.1f} to {high:+.1f})"


def _rounded_up(value: float) -> int:
    """To two digits."""
    unit = int(10 ** max(0, math.floor(math.log10(max(1.0, value))) - 1))
    return math.ceil(value / unit) * unit
