"""A linear classifier on the frozen model's states."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.fields import LIST_MAP

from .traits import MethodSettings, Traits


class Probe(MethodSettings):
    kind: Literal["ridge", "logistic"] = Field(
        "ridge", description="ridge: ridge regression, in closed form. logistic: logistic regression."
    )
    layers: Annotated[tuple[Annotated[int, Field(ge=0, le=1024)], ...], Field(min_length=1, max_length=32)] | None = (
        Field(
            None,
            description="Candidate layers, of which cross-validation chooses one; 0 is the embeddings. Default: six "
            "layers.",
            json_schema_extra={LIST_MAP: "set"},
        )
    )


PROBE = Traits(
    name="probe",
    summary="a linear classifier on the features of the frozen model, for format classification; it is fitted without "
    "optimizer steps, so step-related fields of training and checkpoint are rejected",
    settings=Probe,
    trains="nothing",
    rate=None,
    library="finetune-operator",
    shards=(),
    reads_weights=True,
    labels_only=True,
    picks_layers=True,
    not_compiled="it makes no steps",
    not_recomputed="it computes no gradients",
    start_with="few rows",
)
