"""What a run's record has of the inside of the model, layer by layer, and the page's part about it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from pydantic import Field

from finetune_api.base import ApiModel

from .layer_curves import Curves, panel
from .plots import Point
from .xy import Line


class LayerChange(ApiModel):
    """Base against tuned model, in one layer."""

    layer: int = Field(description="0 the embeddings, n the output of the n-th block.")
    cka: float = Field(description="Unbiased, of states that are scaled to the same size.")
    standard_error: float
    raw_cka: float = Field(description="Of the states as they are.")
    null_cka: float = Field(description="With permuted documents.")
    svcca: float | None = None
    pwcca: float | None = None
    null_svcca: float | None = None
    null_pwcca: float | None = None


class ChangedData(ApiModel):
    """One data set, on whose tokens base and tuned model are compared."""

    name: str
    documents: int
    tokens: int
    tokens_for_canonical_correlations: int = Field(0, description="As many as SVCCA and PWCCA need; 0: not measured.")
    changed_from: int | None = Field(None, description="The lowest layer that changed.")
    layers: tuple[LayerChange, ...]

    @property
    def told(self) -> str:
        """One sentence."""
        least = min(self.layers, key=lambda each: each.cka)
        where = "no layer changed" if self.changed_from is None else f"layers changed from {self.changed_from} on"
        return f"states on {self.name} ({self.tokens:,} tokens): {where}; layer {least.layer} most, CKA {least.cka:.3f}"

    @property
    def curves(self) -> Curves:
        return Curves(
            title=f"States on {self.name}",
            up="unbiased CKA",
            show=lambda value: f"{value:.2g}",
            lines=(
                Line(name="CKA", points=tuple(Point(each.layer, each.cka) for each in self.layers)),
                Line(
                    name="documents permuted",
                    role="dots",
                    points=tuple(Point(each.layer, each.null_cka) for each in self.layers),
                ),
            ),
        )


class ConceptLayer(ApiModel):
    """One probe in one layer: shares of tokens."""

    layer: int = Field(description="0 the embeddings, n the output of the n-th block.")
    accuracy: float = Field(description="Of the base model, on tokens of rows that the probe was not fitted to.")
    standard_error: float
    control: float = Field(description="Of the base model, for a random label for each different word.")
    tuned_accuracy: float | None = None
    tuned_standard_error: float | None = None
    tuned_control: float | None = None


class ConceptCurve(ApiModel):
    """A concept probe, of base and tuned model, or of a base model alone."""

    name: str
    labels: tuple[str, ...]
    tokens: int
    rows: int
    majority: float = Field(description="Accuracy of the most frequent label.")
    layers: tuple[ConceptLayer, ...]

    @property
    def told(self) -> str:
        """One sentence."""
        best = max(self.layers, key=lambda each: each.accuracy)
        text = (
            f"{self.name} ({self.tokens:,} tokens, {len(self.labels)} labels): layer {best.layer} knows it best, "
            f"{_share(best.accuracy)} ± {_share(best.standard_error)}; {_share(best.control)} for random labels of "
            "words"
        )
        tuned = [each for each in self.layers if each.tuned_accuracy is not None]
        if not tuned:
            return text
        after = max(tuned, key=lambda each: each.tuned_accuracy or 0.0)
        return f"{text}; after tuning layer {after.layer}, {_share(after.tuned_accuracy or 0.0)}"

    @property
    def curves(self) -> Curves:
        def line(name: str, field: str, role: str = "line") -> Line:
            points = ((each.layer, getattr(each, field)) for each in self.layers)
            return Line(name=name, role=role, points=tuple(Point(at, y) for at, y in points if y is not None))

        tuned = line("tuned", "tuned_accuracy")
        lines = (
            line("base", "accuracy", "raw" if tuned.points else "line"),
            *((tuned,) if tuned.points else ()),
            line("random labels", "control", "dots"),
        )
        return Curves(title=self.name, up="share of tokens", show=_share, lines=lines)


class Recommendation(ApiModel):
    """For the next run."""

    set: str
    because: str


class Inside(ApiModel):
    """What spec.diagnostics measured."""

    similarity: tuple[ChangedData, ...] = ()
    concepts: tuple[ConceptCurve, ...] = ()
    notes: tuple[str, ...] = Field((), description="What could not be measured, and why.")
    recommendations: tuple[Recommendation, ...] = ()

    def curves(self) -> Iterator[Curves]:
        yield from (each.curves for each in self.similarity)
        yield from (each.curves for each in self.concepts)

    def sentences(self) -> Iterator[str]:
        """For the log."""
        yield from (each.told for each in self.similarity)
        yield from (each.told for each in self.concepts)
        yield from self.notes


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


_NOTE = (
    "CKA: how alike the states of a layer are in base and tuned model, 1 if they are equal up to rotation and scale. "
    "The dots are what is left when documents are permuted. Concept probes: the share of tokens whose label a linear "
    "probe of the layer predicts in rows that it was not fitted to; the dots are the same for random labels of words. "
    "docs/analyze.md explains how to read them."
)


def section(found: Inside | None) -> str:
    """Empty where nothing was measured."""
    if found is None or not any((found.similarity, found.concepts, found.notes)):
        return ""
    charts = "".join(panel(curves) for curves in found.curves())
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in found.sentences())
    advice = "".join(f"<dt>{escape(each.set)}</dt><dd>{escape(each.because)}</dd>" for each in found.recommendations)
    follows = f"<h3>For the next run</h3><dl>{advice}</dl>" if advice else ""
    return (
        f'<div class="small">{charts}</div><div class="panel"><ul>{told}</ul>{follows}<p class="note">{_NOTE}</p></div>'
    )
