"""The status of a job that has succeeded."""

from __future__ import annotations

from finetune_api.failures import TerminationMessage
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.measurements import Evaluation, Measurement
from finetune_api.plan import ProgressReport
from finetune_api.results import packed_ladder, unpacked_ladder
from finetune_api.status import Artifact, Phase, Progress
from finetune_operator.decide import decide
from tests.support.operator_objects import (
    NOW,
    child,
    ended,
    job,
    pod,
    seen,
    status,
)

ARTIFACT = Artifact(uri="s3://corp/out", digest="sha256:1", size_bytes=1, kind="adapter")


def scores(loss: float) -> Evaluation:
    each = (("test", "test"), ("s", "slice"))
    return Evaluation(data=tuple(Measurement(name=n, kind=k, metric="loss", base=2.0, tuned=loss) for n, k in each))


def test_what_the_termination_message_lack_comes_from_the_last_report() -> None:
    """Of a long message data sets are left out, the last ones first."""
    cut = scores(1.0).model_copy(update={"data": scores(1.0).data[:1], "omitted": 1})
    last = TerminationMessage(step=9, artifact=ARTIFACT, evaluation=cut)
    pods = (pod(0, "Succeeded", ended=ended(words=last)), pod(1, "Succeeded"))
    told = ProgressReport(attempt=1, phase="done", progress=Progress(step=8, total_steps=10), evaluation=scores(1.0))
    after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, report=told), NOW).status
    assert after.artifact == ARTIFACT
    assert after.evaluation == scores(1.0)
    assert after.progress is not None
    assert (after.progress.step, after.progress.percent) == (9, 100)


def test_the_ladder_of_the_termination_message_gets_its_sentences_from_the_last_report() -> None:
    rung = RungStatus(name="lora", state="done", decision="taken", cost=1 / 3, score=0.123456, reason="gains +0.1")
    whole = LadderStatus(rule="x", rungs=(rung,), best="lora", stop_reason="topRung", story="w" * 600)
    earlier = whole.model_copy(update={"stop_reason": None, "story": ""})
    brief = unpacked_ladder(packed_ladder(whole.short()))
    assert brief != whole.short(), "of a message that does not fit otherwise: with fewer digits"
    for said, reported, expected in (
        (whole.short(), whole, whole), (brief, whole, whole), (brief, earlier, brief), (brief, None, brief),
    ):  # fmt: skip
        last = TerminationMessage(step=9, artifact=ARTIFACT, ladder=said)
        pods = (pod(0, "Succeeded", ended=ended(words=last)), pod(1, "Succeeded"))
        told = ProgressReport(attempt=1, phase="done", ladder=reported)
        after = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, report=told), NOW).status
        assert after.ladder == expected
