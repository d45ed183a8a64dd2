"""Results of a run in a termination message of 4 KiB: whole, to four digits, or as much as fits and what does not."""

from __future__ import annotations

import json
import random
import string

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.measurements import DataKind, Evaluation, Measurement, Metric, NegativeTransfer
from finetune_api.names import TERMINATION_LIMIT
from finetune_api.results import DIGITS, packed, unpacked
from finetune_api.status import Artifact, ResolvedPlan
from finetune_api.verdicts import Verdict
from finetune_operator.state.pod_reports import termination_message

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


def test_numbers_that_are_none_are_left_out() -> None:
    broken = Evaluation(data=(Measurement(name="a", kind="slice", metric="loss", base=float("nan"), tuned=1.0),))
    assert unpacked(packed(broken)).data[0] == Measurement(name="a", kind="slice", metric="loss", tuned=1.0)
