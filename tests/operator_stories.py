"""What happens to jobs, as a user and a kubelet make it happen, and what an operator leaves in the end.

A story takes `Hands` and a job's name, and returns when the job's status says that it is over. Whatever befalls the
operator meanwhile (crashes, faults of the network, a change of leader), `left` must be the same as without it.
"""

from __future__ import annotations

from typing import Any

from finetune_api import names
from finetune_api.failures import LastWords, Reason
from finetune_api.plan import RunPlan
from finetune_api.status import Artifact, FailureClass, ResolvedPlan
from finetune_operator.resources import PODS
from tests.hands import DISCOVERY, Hands, manifest, wait_for

DONE = LastWords(
    time="2026-01-01T00:00:00Z",
    step=3,
    artifact=Artifact(uri="s3://corp/out", digest="sha256:0", size_bytes=5, kind="adapter"),
)
BROKEN = LastWords(
    failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70, rank=1,
    time="2026-01-01T00:00:00.5Z",
)  # fmt: skip

TOO_MUCH = LastWords(
    failure_class=FailureClass.OutOfMemory, reason=Reason.OutOfMemory, message="too much", exit_code=80, rank=1,
    time="2026-01-01T00:00:00.5Z", plan=ResolvedPlan(micro_batch_tokens=1024, longest_row=64),
)  # fmt: skip


def finish(hands: Hands, job: str, attempt: int) -> None:
    first, second = hands.run(job, attempt)
    hands.end(second)
    hands.end(first, words=DONE)
    wait_for(lambda: hands.phase(job) == "Succeeded", what="success")


def create(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    finish(hands, job, 1)


def restart(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    _, second = hands.run(job, 1)
    hands.end(second, code=70, words=BROKEN)
    finish(hands, job, 2)


def run_out_of_memory(hands: Hands, job: str) -> None:
    """The next attempt computes half as much at once."""
    hands.create(manifest(job))
    _, second = hands.run(job, 1)
    hands.end(second, code=80, words=TOO_MUCH)
    first, _ = hands.await_gang(job, 2)
    plan = RunPlan.model_validate_json(first["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.micro_batch_tokens == 512
    finish(hands, job, 2)


def give_up(hands: Hands, job: str) -> None:
    hands.create(manifest(job, retry={"maxRestarts": 0}))
    _, second = hands.run(job, 1)
    hands.end(second, code=70, words=BROKEN)
    wait_for(lambda: hands.phase(job) == "Failed", what="failure")


def suspend_and_resume(hands: Hands, job: str) -> None:
    hands.create(manifest(job))
    hands.run(job, 1)
    hands.set_spec(job, suspend=True)
    wait_for(lambda: hands.phase(job) == "Suspended" and not hands.list(PODS), what="suspended")
    hands.set_spec(job, suspend=False)
    finish(hands, job, 2)


def queue(hands: Hands, job: str) -> None:
    """It waits for its turn, loses its nodes to another job while it runs, and gets them back."""
    hands.create(manifest(job, queueName="team-a"))
    hands.let_go(f"{job}-1")
    hands.run(job, 1)
    hands.take_back(f"{job}-1")
    wait_for(lambda: hands.phase(job) == "Queued" and not hands.list(PODS), what="preempted")
    hands.let_go(f"{job}-1")
    wait_for(lambda: hands.phase(job) == "Pending", what="admitted again")
    finish(hands, job, 1)


def short_of_a_node(hands: Hands, job: str) -> None:
    """One of the first attempt's two pods finds no node, until that takes too long."""
    first, second = hands.await_gang(job, 1)
    hands.schedule(first)
    hands.find_no_node(second)
    hands.set_spec(job, deadlines={"startup": "2s"})  # the next attempt has as long until it is taken back
    wait_for(lambda: hands.status(job).get("attempt") == 2, what="the second attempt")
    hands.set_spec(job, deadlines=None)


def lose_and_regain_a_node(hands: Hands, job: str) -> None:
    """Two pods, of which one finds no node; then one; then two again, when a probe has found a node."""
    hands.create(manifest(job, nodes={"min": 1, "max": 2}))
    short_of_a_node(hands, job)
    hands.run(job, 2)
    hands.schedule(*wait_for(lambda: hands.probe(job, 2), what="a probe"))
    finish(hands, job, 3)


def expire(hands: Hands, job: str) -> None:
    """The manifest asks for its own deletion after the end."""
    hands.create(manifest(job, ttlAfterFinished="1s"))
    first, second = hands.run(job, 1)
    hands.end(second)
    hands.end(first, words=DONE)
    wait_for(lambda: hands.get(job) is None, what="the job is gone")
    wait_for(lambda: not (hands.jobs() or hands.services()), what="and all that it had", seconds=DISCOVERY)


def left(hands: Hands, job: str) -> dict[str, Any]:
    """What there is in the end, less times."""
    wait_for(lambda: len(hands.jobs()) <= 1, what="old Jobs are gone")
    status = hands.status(job)
    for each in status.get("conditions", []):
        del each["lastTransitionTime"]
    for field in ("startTime", "completionTime"):
        status.pop(field, None)
    status.get("lastFailure", {}).pop("time", None)
    return {"status": status, "jobs": hands.jobs(), "services": hands.services()}
