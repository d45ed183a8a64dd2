"""Results of a run in a termination message of 4 KiB: whole, to four digits, or as much as fits and what does not."""

from __future__ import annotations

import json
import random
import string
import sys
from typing import get_args

import pytest

from finetune_api.calibration import Calibration, CalibrationScores, ScalePoint, ScaleSweep
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.generated_text import (
    Collapse,
    CollapseFigure,
    Ending,
    Figure,
    Generation,
    GenerationScore,
    Mode,
)
from finetune_api.generation import GenerationMetric
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.measurements import (
    Continual,
    DataKind,
    Divergence,
    Evaluation,
    GuardName,
    GuardResult,
    Measurement,
    Metric,
    NegativeTransfer,
    PriorGain,
    RemedyName,
    RemedyRun,
)
from finetune_api.names import TERMINATION_LIMIT
from finetune_api.plan import ProgressReport
from finetune_api.results import DIGITS, packed, packed_ladder, unpacked, unpacked_ladder
from finetune_api.status import Artifact, FineTuneJobStatus, ResolvedPlan
from finetune_api.verdicts import Verdict
from finetune_operator.state.pod_reports import progress_report, termination_message
from finetune_trainer.cli.text import guard_lines

PLAN = ResolvedPlan(
    method="lora", strategy="fsdp", world_size=64, precision="bfloat16", learning_rate=0.00028517, batch_size=1024,
    micro_batch_tokens=16384, longest_row=8192, total_steps=123456, parameters=8030261248,
    trainable_parameters=167772160, model_revision="0123456789abcdef" * 2 + "01234567", train_rows=12345678,
    trained_tokens_per_epoch=9876543210,
)  # fmt: skip
ARTIFACT = Artifact(
    uri="s3://corporation-models-eu-central-1/teams/cardiology/llama-3.1-8b/2026-11-30-a", digest="0f" * 32,
    size_bytes=335544320, kind="adapter", servable="lora",
)  # fmt: skip


def measurement(name: str, kind: DataKind, metric: Metric, dice: random.Random) -> Measurement:
    base, change, half = dice.uniform(0.2, 3), dice.gauss(0, 0.2), dice.uniform(0.001, 0.1)
    verdict: Verdict = dice.choice(("better", "worse", "equivalent", "inconclusive"))
    rows = dice.randrange(20, 100_000)
    return Measurement(
        name=name, kind=kind, metric=metric, base=base, tuned=base + change, difference=change, low=change - half,
        high=change + half, minimum_detectable=1.43 * half, verdict=verdict, rows=rows, groups=dice.randrange(10, rows),
    )  # fmt: skip


def largest(slices: int = 32, length: int = 63) -> Evaluation:
    """Names that nothing can compress."""
    dice = random.Random(1)
    names = ["".join(dice.choices(string.ascii_lowercase + string.digits, k=length)) for _ in range(slices)]
    return Evaluation(
        data=(
            measurement("test", "test", "accuracy", dice),
            measurement("validation", "validation", "accuracy", dice),
            measurement("general", "general", "bitsPerByte", dice),
            *(measurement(name, "slice", "accuracy", dice) for name in names),
        )
    )


def said(evaluation: Evaluation, **changes: object) -> TerminationMessage:
    words = TerminationMessage(
        reason=Reason.Succeeded, message=f"artifact committed to {ARTIFACT.uri}", time="2026-11-30T20:15:42.123456Z",
        step=123456, plan=PLAN, evaluation=evaluation, artifact=ARTIFACT,
    )  # fmt: skip
    return words.model_copy(update=changes)


def rounded(evaluation: Evaluation) -> Evaluation:
    def short(each: Measurement) -> Measurement:
        floats = {name: value for name, value in each if isinstance(value, float)}
        return each.model_copy(update={name: float(f"{value:.{DIGITS}g}") for name, value in floats.items()})

    return evaluation.model_copy(update={"data": tuple(map(short, evaluation.data))})


@pytest.mark.parametrize("slices", [0, 1, 32])
def test_what_was_packed_is_what_was_measured_to_four_digits(slices: int) -> None:
    assert unpacked(packed(largest(slices))) == rounded(largest(slices))


def test_a_run_that_measured_little_says_it_in_plain_json() -> None:
    told = json.loads(said(largest(2, 12)).encode())
    assert [each["name"] for each in told["evaluation"]["data"]][:3] == ["test", "validation", "general"]
    assert "results" not in told


def test_thirty_two_slices_with_the_longest_names_reach_the_operator_whole() -> None:
    text = said(largest()).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.evaluation == rounded(largest())
    assert found.artifact == ARTIFACT


def test_negative_transfer_on_each_of_32_slices_reaches_the_operator_whole() -> None:
    dice = random.Random(2)
    flags = tuple(
        NegativeTransfer(
            slice=each.name,
            reference=f"cheaper-{number % 8}",
            difference=float(f"{-dice.uniform(0.01, 1):.4g}"),
            p_value=float(f"{dice.uniform(0, 0.05):.4g}"),
        )
        for number, each in enumerate(largest(length=20).data[3:])
    )
    text = said(largest(length=20).model_copy(update={"negative_transfer": flags})).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.evaluation is not None
    assert (found.evaluation.negative_transfer, found.evaluation.omitted) == (flags, None)


def test_what_does_not_fit_is_counted_and_the_first_data_sets_stay() -> None:
    long = ARTIFACT.model_copy(update={"uri": "s3://corp/" + "a" * 1500})
    text = said(largest(), artifact=long, message="m" * 5000).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.evaluation is not None
    kept = len(found.evaluation.data)
    assert 3 <= kept < 35
    assert found.evaluation.omitted == 35 - kept
    assert found.evaluation.data == rounded(largest()).data[:kept]


def everything(*, slices: int = 32, tasks: int = 31, length: int = 63) -> Evaluation:
    """All that a run can measure at once, with names that nothing can compress."""
    dice = random.Random(3)

    def number() -> float:
        return float(f"{dice.uniform(0.001, 0.3):.4g}")

    def limits() -> dict[str, float]:
        return {"low": number(), "high": number()}

    def scores() -> CalibrationScores:
        return CalibrationScores(error=number(), floor=number(), brier=number(), nll=number())

    def name() -> str:
        return "".join(dice.choices(string.ascii_lowercase, k=length))

    plain, modes = largest(slices, length), get_args(Mode)
    cheaper = [name() for _ in range(8)]
    return Evaluation(
        data=(*plain.data, *(measurement(name(), "task", "accuracy", dice) for _ in range(tasks))),
        guards=tuple(
            GuardResult(name=each, bound=0.05, value=number(), **limits(), verdict="inconclusive", rows_needed=123_456)
            for each in get_args(GuardName)
        ),
        remedies=tuple(
            RemedyRun(
                name=each, settings="regularization.replay, regularization.klToBase, 0.3 times the learning rate",
                outcome="violated", cost=number(),
                reason="; ".join(
                    GuardResult(name=guard, bound=0.05, value=number(), **limits(), verdict="violated").told()
                    for guard in get_args(GuardName)
                ),
            )
            for each in get_args(RemedyName)
        ),
        negative_transfer=tuple(
            NegativeTransfer(slice=each.name, reference=dice.choice(cheaper), difference=number(), p_value=number())
            for each in plain.data[3:]
        ),
        kl_to_base=Divergence(name="test", value=number(), **limits(), rows=4242, groups=4000),
        prior_gain=PriorGain(
            name="test", random=number(), pretrained=number(), difference=number(), **limits(),
            minimum_detectable=number(), verdict="better", rows=3000, groups=2999,
        ),
        calibration=Calibration(
            name="test", base=scores(), tuned=scores(), difference=number(), **limits(), verdict="worse", rows=3000,
            temperature=1.234,
        ),
        scale=ScaleSweep(chosen=0.5, curve=tuple(
            ScalePoint(scale=scale, gain=number(), forgetting=number(), verdict="passed")
            for scale in (0, 0.25, 0.5, 0.75, 1)
        )),
        generation=Generation(name="test", rows=128, groups=127, scores=tuple(
            GenerationScore(
                metric=each, base=number(), tuned=number(), difference=number(), **limits(),
                minimum_detectable=number(), verdict="better",
            )
            for each in get_args(GenerationMetric)
        )),
        collapse=Collapse(
            verdict="passed", bound=0.2, rows=128,
            figures=tuple(
                CollapseFigure(name=each, mode=mode, base=number(), tuned=number(), drop=number(), **limits())
                for mode in modes for each in get_args(Figure)
            ),
            endings=tuple(
                Ending(mode=mode, base_length=50.3, tuned_length=33.1, base_stops=0.4, tuned_stops=0.9)
                for mode in modes
            ),
        ),
        continual=Continual(tasks=tasks + 1, metric="accuracy", acc=number(), bwt=number(), fwt=number()),
    )  # fmt: skip


def long_ladder(rungs: int = 8) -> LadderStatus:
    rung = RungStatus(
        name="", state="done", estimate=1.234, cost=1.234, learning_rate=0.0001234, score=0.8765, gain=0.1235,
        low=0.01235, high=0.2346, minimum_detectable=0.01235, rows=12345, rows_needed=123456, decision="inconclusive",
        reason="r" * 900,
    )  # fmt: skip
    named = tuple(rung.model_copy(update={"name": f"method-{number}"}) for number in range(rungs))
    return LadderStatus(rule="much data", rungs=named, best="method-1", story=" ".join(map(str, range(250))))


def test_32_slices_with_intervals_guards_and_a_ladder_reach_the_operator_whole() -> None:
    plain = everything(tasks=0, length=20)
    given = Evaluation(data=plain.data, guards=plain.guards, scale=plain.scale)
    text = said(given, ladder=long_ladder()).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.evaluation == rounded(given)
    assert found.ladder == long_ladder().short()
    assert TerminationMessage.model_validate_json(text).whole() == found


@pytest.mark.parametrize("ladder", [None, long_ladder()])
@pytest.mark.parametrize("length", [12, 63])
def test_of_everything_at_once_the_first_data_sets_and_all_guards_stay(
    length: int, ladder: LadderStatus | None
) -> None:
    given = everything(length=length)
    text = said(given, ladder=ladder, message="guards.minGain is inconclusive " * 30).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    told = found.evaluation
    assert told is not None
    kept = len(told.data)
    assert 3 <= kept < len(given.data)
    assert told.data == rounded(given).data[:kept]
    assert told.omitted == len(given.data) - kept
    slices = {each.name for each in told.data if each.kind == "slice"}
    assert told.negative_transfer == tuple(each for each in given.negative_transfer if each.slice in slices)
    rest = {"data": (), "negative_transfer": (), "omitted": None}
    assert told.model_copy(update=rest) == given.model_copy(update=rest)
    assert found.ladder == (ladder.short() if ladder else None)
    assert f"{told.omitted} more data sets did not fit into the status" in guard_lines(told)
    assert "calibration error on test rows: 0." in guard_lines(told)


def test_the_guards_stay_where_nothing_else_fits() -> None:
    long = ARTIFACT.model_copy(update={"uri": "s3://corp/" + "".join(random.Random(4).choices("abcdefgh", k=2000))})
    text = said(everything(), artifact=long, ladder=long_ladder(16), message="m" * 900, hint="h" * 300).encode()
    assert len(text.encode()) <= TERMINATION_LIMIT
    found = termination_message(text)
    assert found is not None
    assert found.evaluation is not None
    assert found.evaluation.guards == everything().guards
    assert found.evaluation.omitted == len(everything().data) - len(found.evaluation.data) > 0
    assert found.ladder is None


def test_a_progress_report_of_everything_at_once_is_read() -> None:
    report = ProgressReport(attempt=1, phase="done", uid="u", nonce="n", plan=PLAN, artifact=ARTIFACT,
                            evaluation=everything(), ladder=long_ladder(16))  # fmt: skip
    text = report.model_dump_json(by_alias=True, exclude_none=True).encode()
    assert progress_report(text, attempt=1, uid="u", nonce="n").evaluation == everything()


def test_numbers_that_are_none_are_left_out() -> None:
    broken = Evaluation(data=(Measurement(name="a", kind="slice", metric="loss", base=float("nan"), tuned=1.0),))
    assert unpacked(packed(broken)).data[0] == Measurement(name="a", kind="slice", metric="loss", tuned=1.0)


def test_a_number_that_rounds_to_infinity_is_left_out() -> None:
    ladder = LadderStatus(rule="x", spent=1.0, base_score=sys.float_info.max)
    assert unpacked_ladder(packed_ladder(ladder)) == ladder.model_copy(update={"base_score": None})


def test_a_status_has_no_empty_lists_which_kubectl_describe_would_show() -> None:
    found = Evaluation(data=(Measurement(name="test", kind="test", metric="loss", base=2.0, tuned=1.0),))
    assert set(FineTuneJobStatus(evaluation=found).to_json()["evaluation"]) == {"data"}
    assert Evaluation.model_validate_json(found.model_dump_json(by_alias=True)) == found
    assert FineTuneJobStatus(evaluation=Evaluation()).to_json()["evaluation"] == {}
