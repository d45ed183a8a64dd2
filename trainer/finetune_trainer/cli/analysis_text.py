"""What `finetune analyze` found, as text and as JSON. docs/analyze.md explains each number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from finetune_trainer.cli.compare import as_json as difference_json
from finetune_trainer.cli.text import aligned, table
from finetune_trainer.report.layer_curves import Curves
from finetune_trainer.report.plots import Point
from finetune_trainer.report.xy import Line
from finetune_trainer.transfer.diagnostics.advice import Advice, Findings, Gradients
from finetune_trainer.transfer.diagnostics.concepts import Concept
from finetune_trainer.transfer.diagnostics.inside import concept_curve
from finetune_trainer.transfer.diagnostics.probes import Curve, OwnAnswers
from finetune_trainer.transfer.diagnostics.shift import Shift
from finetune_trainer.transfer.diagnostics.vocabulary import Vocabulary


def as_json(found: Findings, advice: Sequence[Advice]) -> dict[str, Any]:
    return {
        "rows": found.rows,
        "heldOutRows": found.held_out,
        **(_shift_json(found.shift) if found.shift else {}),
        **({"vocabulary": _vocabulary_json(found.vocabulary)} if found.vocabulary else {}),
        **({"layers": _curve_json(found.curve)} if found.curve else {}),
        **({"concepts": [concept_curve(each).to_json() for each in found.concepts]} if found.concepts else {}),
        **({"gradients": _gradients_json(found.gradients)} if found.gradients else {}),
        **({"ownAnswers": _answers_json(found.answers)} if found.answers else {}),
        "notes": list(found.notes),
        "recommendations": [{"set": what, "because": why} for what, why in advice],
    }


def as_text(found: Findings, advice: Sequence[Advice]) -> str:
    parts = [
        _shift_text(found.shift) if found.shift else "",
        _vocabulary_text(found.vocabulary) if found.vocabulary else "",
        _curve_text(found.curve) if found.curve else "",
        *map(_concept_text, found.concepts),
        _gradients_text(found.gradients) if found.gradients else "",
        _answers_text(found.answers) if found.answers else "",
        "\n".join(found.notes),
        "Recommended:\n" + "\n".join(_recommendations(advice)) if advice else "",
    ]
    return "\n\n".join(part for part in parts if part)


def curves_of(found: Findings) -> list[Curves]:
    """The charts of the page."""
    return [*_main_curves(found), *(concept_curve(each).curves for each in found.concepts)]


def _main_curves(found: Findings) -> list[Curves]:
    if found.gradients is not None:
        held = tuple(Point(at + 1, value) for at, value in enumerate(found.gradients.held))
        share = Line(name="this block and those above it", points=held)
        return [Curves(title="Squared relative gradients", up="share", show=_percent, lines=(share,))]
    if found.curve is None:
        return []
    layers = found.curve.layers
    accuracy = Line(name="accuracy", points=tuple(Point(each.layer, each.accuracy) for each in layers))
    control = Line(
        name="with permuted labels", role="dots", points=tuple(Point(each.layer, each.control) for each in layers)
    )
    return [Curves(title="Left-out rows", up="share of rows", show=_percent, lines=(accuracy, control))]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _recommendations(advice: Sequence[Advice]) -> Iterator[str]:
    for what, why in advice:
        yield f"  {what}"
        yield aligned([("", why)])


def _shift_json(shift: Shift) -> dict[str, Any]:
    return {
        "texts": [
            {
                "name": text.name,
                "documents": text.documents,
                "bitsPerByte": text.bits_per_byte,
                "tokensPerByte": text.tokens_per_byte,
            }
            for text in (shift.task, shift.general)
        ],
        "bitsPerByteRatio": {"value": shift.ratio.value, "low": shift.ratio.low, "high": shift.ratio.high},
        "jensenShannonExcess": shift.excess,
        "tokensPerByteRatio": shift.longer,
        "shift": shift.band,
    }


def _shift_text(shift: Shift) -> str:
    lines = [
        (text.name, f"{text.documents}", f"{text.bits_per_byte:.3f}", f"{text.tokens_per_byte:.3f}")
        for text in (shift.task, shift.general)
    ]
    ratio = shift.ratio
    return "\n\n".join((
        table(("text", "documents", "bits per byte", "tokens per byte"), lines, indent=""),
        f"bits per byte, training rows / general text: {ratio.value:.2f} (95 % interval {ratio.low:.2f} to "
        f"{ratio.high:.2f})\nJensen-Shannon excess of their tokens: {shift.excess:.2f} bits\n"
        f"tokens per byte, training rows / general text: {shift.longer:.2f}\nThe shift is {shift.band}.",
    ))  # fmt: skip


def _vocabulary_json(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "sources": [
            {
                "name": name,
                "documents": each.documents,
                "tokensPerByte": each.tokens_per_byte,
                "fertility": each.fertility,
                "fragmented": each.fragmented,
            }
            for name, each in vocabulary.sources.items()
        ],
        "terms": [
            {"word": term.word, "z": term.z, "documents": term.documents, "pieces": term.pieces}
            for term in vocabulary.terms
        ],
    }


def _vocabulary_text(vocabulary: Vocabulary) -> str:
    head = ("source", "documents", "tokens per byte", "tokens per word", "in 4 or more")
    lines = [
        (
            name,
            f"{each.documents:,}",
            f"{each.tokens_per_byte:.3f}",
            "" if each.fertility is None else f"{each.fertility:.2f}",
            "" if each.fragmented is None else f"{100 * each.fragmented:.1f} %",
        )
        for name, each in vocabulary.sources.items()
    ]
    text = f"How the tokenizer cuts the text\n{table(head, lines)}"
    if not vocabulary.terms:
        return text
    terms = ", ".join(f"{term.word} ({term.pieces:.3g})" for term in vocabulary.terms)
    return f"{text}\n{aligned([('typical words', f'{terms} (tokens of each)')])}"


def _curve_json(curve: Curve) -> dict[str, Any]:
    return {
        "rows": curve.rows,
        "majority": curve.majority,
        "curve": [
            {
                "layer": each.layer,
                "accuracy": each.accuracy,
                "standardError": each.error,
                "control": each.control,
                "selectivity": each.selectivity,
                "logMe": each.log_me,
                "hScore": each.h_score,
                "transRate": each.trans_rate,
                **({"slices": {name: of[at] for name, of in curve.elsewhere.items()}} if curve.elsewhere else {}),
            }
            for at, each in enumerate(curve.layers)
        ],
        "best": curve.choice.best,
        "enough": curve.choice.enough,
        "trained": curve.choice.trained,
        "chance": curve.chance,
        "doubling": difference_json(curve.doubling),
    }


def _curve_text(curve: Curve) -> str:
    slices = [name[:12] for name in curve.elsewhere]
    head = ("layer", "accuracy", "± error", "selectivity", "LogME", "H-score", "TransRate", *slices)
    lines = [
        (
            f"{each.layer}{_mark(each.layer, curve)}",
            f"{each.accuracy:.3f}",
            f"{each.error:.3f}",
            f"{each.selectivity:+.3f}",
            f"{each.log_me:.4f}",
            f"{each.h_score:.3f}",
            f"{each.trans_rate:.2f}",
            *(f"{values[at]:.3f}" for values in curve.elsewhere.values()),
        )
        for at, each in enumerate(curve.layers)
    ]
    return (
        f"Linear probes on each layer, {curve.rows:,} training rows, each row left out of its own fit "
        f"(most frequent label: {curve.majority:.3f})\n{table(head, lines)}\n"
        f"  * best{' on the slices' if slices else ''}   = lowest within one standard error of it"
    )


def _gradients_json(gradients: Gradients) -> dict[str, Any]:
    return {
        "relative": list(gradients.relative),
        "heldFromHere": list(gradients.held),
        "trained": gradients.trained,
    }


def _concept_text(found: Concept) -> str:
    head = ("layer", "accuracy", "± error", "selectivity", "random labels")
    lines = [
        (
            f"{each.layer}{' *' if each is found.best else ''}",
            *(f"{100 * value:.1f} %" for value in (each.accuracy, each.error, each.selectivity, each.control)),
        )
        for each in found.layers
    ]
    lead = (
        f"{found.name}: {found.tokens:,} tokens of {found.rows:,} rows, {len(found.labels)} labels; the most "
        f"frequent one {100 * found.majority:.1f} %"
    )
    return f"{lead}\n{table(head, lines)}\n  * the best layer"


def _gradients_text(gradients: Gradients) -> str:
    first = len(gradients.relative) - gradients.trained
    lines = [
        (f"{at + 1}{' =' if at == first else ''}", f"{value:.3e}", f"{100 * held:.0f} %")
        for at, (value, held) in enumerate(zip(gradients.relative, gradients.held, strict=True))
    ]
    return (
        f"How strongly the first steps would move each block\n"
        f"{table(('block', 'gradient / weights', 'from here on'), lines)}\n"
        "  = the fewest last blocks with 80 % of the squares begin here"
    )


def _mark(layer: int, curve: Curve) -> str:
    return " *" if layer == curve.choice.best else " =" if layer == curve.choice.enough else ""


def _answers_json(answers: OwnAnswers) -> dict[str, Any]:
    return {
        "accuracy": answers.accuracy,
        "leep": answers.leep,
        "leepUninformed": answers.uninformed,
        "probe": difference_json(answers.probe),
    }


def _answers_text(answers: OwnAnswers) -> str:
    probe = answers.probe
    interval = (
        "" if probe.low is None or probe.high is None else f" (95 % interval {probe.low:+.3f} to {probe.high:+.3f})"
    )
    change = "" if probe.difference is None else f"{probe.difference:+.3f}{interval}, {probe.verdict}"
    return (
        f"The model's own answers: accuracy {answers.accuracy:.3f}; the best probe against them: {change}\n"
        f"LEEP of its answers: {answers.leep:.3f} (0 is best, {answers.uninformed:.3f} says nothing about the labels)"
    )
