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


class Recommendation(ApiModel):
    """For the next run."""

    set: str
    because: str


class Inside(ApiModel):
    """What spec.diagnostics measured."""

    similarity: tuple[ChangedData, ...] = ()
    notes: tuple[str, ...] = Field((), description="What could not be measured, and why.")
    recommendations: tuple[Recommendation, ...] = ()

    def sentences(self) -> Iterator[str]:
        """For the log."""
        yield from (each.told for each in self.similarity)
        yield from self.notes


_NOTE = (
    "CKA: how alike the states of a layer are in base and tuned model, 1 if they are equal up to rotation and scale. "
    "The dots are what is left when documents are permuted. docs/analyze.md explains how to read it."
)


def section(found: Inside | None) -> str:
    """Empty where nothing was measured."""
    if found is None or not (found.similarity or found.notes):
        return ""
    charts = "".join(panel(each.curves) for each in found.similarity)
    told = "".join(f"<li>{escape(sentence)}</li>" for sentence in found.sentences())
    advice = "".join(f"<dt>{escape(each.set)}</dt><dd>{escape(each.because)}</dd>" for each in found.recommendations)
    follows = f"<h3>For the next run</h3><dl>{advice}</dl>" if advice else ""
    return (
        f'<div class="small">{charts}</div><div class="panel"><ul>{told}</ul>{follows}<p class="note">{_NOTE}</p></div>'
    )
