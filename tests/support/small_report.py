"""A small run to report on."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.measurements import DataKind, Evaluation, Measurement, Metric, Scores
from finetune_api.plan import JobIdentity
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ResolvedPlan
from finetune_api.verdicts import Verdict
from finetune_trainer.report.record import AttemptRecord, CurvePoint, Provenance, RunRecord, ValidationPoint

SPEC = {
    "model": {"uri": "hf://org/tiny"},
    "data": {"train": [{"uri": "s3://corp/train.jsonl"}], "sequenceLength": 512},
    "output": {"uri": "s3://corp/models/a"},
    "method": {"type": "lora", "lora": {"rank": 8}},
    "training": {"epochs": 2, "batchSize": 16},
}
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def scores(loss: float, *, accuracy: float | None = None, bits: float | None = None, rows: int = 400) -> Scores:
    return Scores(loss=loss, accuracy=accuracy, bits_per_byte=bits, rows=rows, tokens=2 * rows)


def spec(**changes: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate_json(json.dumps(SPEC | changes))


def change(
    name: str,
    base: float | None,
    tuned: float | None,
    verdict: Verdict | None = None,
    *,
    kind: DataKind = "slice",
    metric: Metric = "accuracy",
    half: float | None = 0.04,
    rows: int = 400,
    groups: int | None = None,
) -> Measurement:
    """`half`: half of the interval's width; None: there is none."""
    delta = None if base is None or tuned is None else round(tuned - base, 6)
    reach = None if half is None or delta is None else half
    return Measurement(
        name=name, kind=kind, metric=metric, base=base, tuned=tuned, difference=delta, verdict=verdict, rows=rows,
        low=None if reach is None or delta is None else delta - reach,
        high=None if reach is None or delta is None else delta + reach,
        minimum_detectable=None if reach is None else 1.43 * reach, groups=rows if groups is None else groups,
    )  # fmt: skip


MEASURED = (
    change("test", 0.623, 0.883, "better", kind="test"),
    change("test", 1.187, 0.212, "better", kind="test", metric="loss", half=0.1),
    change("general", 0.912, 0.924, "worse", kind="general", metric="bitsPerByte", half=0.005),
    change("general", 3.012, 3.05, "worse", kind="general", metric="loss", half=0.02),
    change("books", 0.6, 0.815, "better"),
    change("dvd", 0.64, 0.66, "inconclusive"),
    change("music", 0.62, 0.51, "worse"),
)
"""By all metrics, as a run's record has them."""

EVALUATION = Evaluation(data=tuple(each for each in MEASURED if each.metric != "loss"))


def record(**changes: Any) -> RunRecord:
    values: dict[str, Any] = {
        "job": JobIdentity(namespace="team", name="cardiology", uid="uid-1"),
        "spec": spec(),
        "plan": ResolvedPlan(
            method="lora", strategy="ddp", world_size=2, precision="float32", learning_rate=2e-4, batch_size=16,
            total_steps=40, parameters=134515008, trainable_parameters=4884480, train_rows=320,
        ),
        "evaluation": EVALUATION,
        "measurements": MEASURED,
        "curve": tuple(
            CurvePoint(step=s, loss=1 / s, learning_rate=2e-4, gradient_norm=1.5, tokens_per_second=6100.0)
            for s in range(1, 41)
        ),
        "validation": tuple(ValidationPoint(step=s, scores=scores(1 / (s + 1), accuracy=0.7)) for s in (0, 20, 40)),
        "attempts": (
            AttemptRecord(attempt=1, last_step=24, nodes=2, world_size=2, outcome="lost node 1"),
            AttemptRecord(
                attempt=2, first_step=20, last_step=40, nodes=2, world_size=2, outcome="finished", model_cache="hit"
            ),
        ),
        "provenance": Provenance(
            base_model="hf://org/tiny", revision="12fd25f7", data={"s3://corp/train.jsonl": DIGEST},
            versions={"torch": "2.13.0", "peft": "0.21.2"}, hardware="CPU",
        ),
        "start_time": "2026-11-24T20:37:01.123Z",
        "completion_time": "2026-11-24T20:57:12Z",
        "train_seconds": 1123.4,
        "steps": 40,
        "best_step": 20,
        "stop_reason": "all steps done",
        "notes": ("12 training rows were truncated.",),
        "servable": "lora",
    }  # fmt: skip
    return RunRecord(**(values | changes))
