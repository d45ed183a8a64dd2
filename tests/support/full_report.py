"""A run whose report has every section, with many slices and long names."""

from __future__ import annotations

from finetune_api.calibration import Calibration, CalibrationScores, ScalePoint, ScaleSweep
from finetune_api.generated_text import Collapse, CollapseFigure, Ending, Figure, Generation, GenerationScore, Mode
from finetune_api.generation import GenerationMetric
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.measurements import Divergence, Evaluation, GuardResult, NegativeTransfer, RemedyRun, Scores
from finetune_api.switching import Latency, SwitchTest
from finetune_trainer.report.layers import ChangedData, Inside, LayerChange, Recommendation
from finetune_trainer.report.record import AnswerSample, ReliabilityPoint, RunRecord, SliceAgainst
from finetune_trainer.statistics.data import DataRecord, ReplayedTask, SplitStatistics, Statistics
from finetune_trainer.store.sequence import HeldOut, Sequence, Task
from tests.support.small_report import MEASURED, change, record

LONG = "a-slice-whose-name-is-as-long-as-names-may-be-which-is-63-chars"
SLICES = tuple(
    change(f"{LONG[:60]}-{number:02}", 0.6, 0.6 + (number - 15) / 100, "inconclusive") for number in range(32)
)
SOURCES = tuple(
    change(f"general/{name}", 0.9, tuned, verdict, kind="general", metric="bitsPerByte", half=0.01)  # type: ignore[arg-type]
    for name, tuned, verdict in (("code", 1.1, "worse"), ("wiki", 0.905, "equivalent"))
)
METRICS: tuple[GenerationMetric, ...] = ("exactMatch", "rougeL", "jsonValid", "jsonSchema", "regex", "stops", "length")
MODES: tuple[Mode, ...] = ("greedy", "sampled")
FIGURES: tuple[Figure, ...] = ("distinct1", "distinct2", "distinct4", "entropy")


def in_sequence(tasks: int) -> Sequence:
    test = HeldOut(uri="s3://corp/test.jsonl", format="completion", sequence_length=128)
    names = [f"{LONG[:60]}-{number:02}" for number in range(tasks)]
    found = Scores(loss=1.0, accuracy=0.5)
    return Sequence(
        tasks=tuple(Task(name=name, artifact=f"s3://corp/{name}", test=test) for name in names),
        scores=tuple(tuple(found if j <= i + 1 else None for j in range(tasks)) for i in range(tasks)),
        base=tuple(found for _ in range(tasks)),
    )


def full_record() -> RunRecord:
    scores = CalibrationScores(error=0.21, floor=0.04, brier=0.5, nll=0.9)
    evaluation = Evaluation(
        data=tuple(each for each in (*MEASURED, *SLICES) if each.metric != "loss"),
        guards=(
            GuardResult(name="minGain", bound=0.01, value=0.26, low=0.22, high=0.3, verdict="passed"),
            GuardResult(name="forgetting", bound=0.05, value=0.21, low=0.18, high=0.24, verdict="violated"),
            GuardResult(name="slices", bound=0.05, value=0.04, low=-0.01, high=0.09, verdict="inconclusive",
                        rows_needed=12000),
            GuardResult(name="generation", bound=0.95, verdict="inconclusive"),
        ),
        remedies=(
            RemedyRun(name="asWritten", outcome="violated", cost=0.5, reason="forgetting is violated: +0.31"),
            RemedyRun(name="replay", settings="regularization.replay", outcome="failed", reason="OutOfMemory"),
            RemedyRun(name="klToBase", settings="regularization.replay, regularization.klToBase", outcome="violated",
                      cost=0.75),
        ),
        negative_transfer=(NegativeTransfer(slice="music", reference="cheap", difference=-0.11, p_value=0.002),),
        kl_to_base=Divergence(name="test", value=0.12, low=0.1, high=0.14, rows=400, groups=400),
        calibration=Calibration(name="test", base=scores, tuned=scores, difference=0.0, low=-0.1, high=0.1,
                                verdict="inconclusive", rows=400, temperature=1.7),
        scale=ScaleSweep(
            chosen=0.5,
            curve=tuple(ScalePoint(scale=at, gain=at, forgetting=at / 10) for at in (0.0, 0.25, 0.5, 0.75, 1.0)),
        ),
        generation=Generation(
            name="test", rows=128, groups=128,
            scores=tuple(GenerationScore(metric=name, base=0.5, tuned=0.7, difference=0.2, low=0.1, high=0.3,
                                         minimum_detectable=0.14, verdict=None if name == "length" else "better")
                         for name in METRICS),
        ),
        collapse=Collapse(
            verdict="violated", bound=0.2, rows=128,
            figures=tuple(CollapseFigure(name=name, mode=mode, base=0.9, tuned=0.3, drop=0.6, low=0.5, high=0.7)
                          for mode in MODES for name in FIGURES),
            endings=tuple(Ending(mode=mode, base_length=60, tuned_length=128, base_stops=0.9, tuned_stops=0.1)
                          for mode in MODES),
        ),
    )  # fmt: skip
    return record(
        evaluation=evaluation,
        measurements=(*MEASURED, *SLICES),
        sources=SOURCES,
        reliability=tuple(
            ReliabilityPoint(model=model, rows=27, confidence=at / 15, accuracy=at / 20)
            for model in ("base", "tuned")
            for at in range(1, 16)
        ),
        against=tuple(
            SliceAgainst(slice=LONG, reference=name, metric="accuracy", tuned_value=0.5, reference_value=0.6,
                         difference=-0.1, low=-0.2, high=-0.02, p_value=0.002, flagged=True, rows=400)
            for name in ("base", "a-reference-with-a-long-name")
        ),
        answers=tuple(
            AnswerSample(why=why, metric=None if why == "sample" else "exactMatch", prompt="What is it? " * 40,
                         reference="Itis" * 100, base="<script>" * 40, tuned='{"a": 1}' * 50)
            for why in ("sample", "gained", "lost")
            for _ in range(4)
        ),
        ladder=LadderStatus(
            rule="much data", rule_reason="20,000 labelled rows", base_score=0.6, best="lora", stop_reason="topRung",
            story="lora was better than probe by 8 points, full was not better than lora. " * 3,
            rungs=(
                RungStatus(name="probe", state="done", cost=0.1, score=0.7, gain=0.1, low=0.05, high=0.15,
                           decision="taken"),
                RungStatus(name="lora", state="done", cost=1.5, score=0.78, gain=0.08, low=0.03, high=0.13,
                           decision="taken"),
                RungStatus(name="full", state="skipped", reason="out of memory"),
            ),
        ),
        continual=in_sequence(12),
        switch_test=SwitchTest(verdict="passed", adapters=3, switches=200, largest_difference=0.0, refused=4,
                               load=Latency(median=2, p95=3), switch=Latency(median=0.4, p95=0.6)),
        inside=Inside(
            similarity=(
                ChangedData(
                    name="validation", documents=200, tokens=8000, changed_from=12,
                    layers=tuple(LayerChange(layer=at, cka=1 - at / 50, standard_error=0.01, raw_cka=0.99,
                                             null_cka=0.01) for at in range(0, 31, 2)),
                ),
            ),
            notes=("general has too few tokens",),
            recommendations=(Recommendation(set="method.partial.layers: 18", because="layers changed from 12 on"),),
        ),
        data=DataRecord(
            statistics=Statistics(
                format="classification", labels=("no", "yes"), digests={}, tokenizer="0",
                splits={"train": SplitStatistics(rows=320, documents=320, tokens=9000, trained_tokens=640,
                                                 trained_bytes=900, longest=44)},
                replayed=(ReplayedTask(name="tickets", rows=12000, drawn=5000, documents=5000, left_out=80),),
            ),
        ),
    )  # fmt: skip
