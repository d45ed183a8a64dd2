"""What happens to jobs, as a user and a kubelet make it happen, and what an operator leaves in the end.

A story takes `Kube` and a job's name, and returns when the job's status says that it is over. Whatever befalls the
operator meanwhile (crashes, faults of the network, a change of leader), `left` must be the same as without it.
"""

from __future__ import annotations

from typing import Any

from finetune_api import names
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.plan import RunPlan
from finetune_api.status import Artifact, FailureClass, ResolvedPlan
from finetune_operator.kube.resources import PODS
from tests.support.kube_client import DISCOVERY, Kube, manifest, wait_for

DONE = TerminationMessage(
    time="2026-01-01T00:00:00Z",
    step=3,
    artifact=Artifact(uri="s3://corp/out", digest="sha256:0", size_bytes=5, kind="adapter"),
)
BROKEN = TerminationMessage(
    failure_class=FailureClass.Internal, reason=Reason.UnexpectedError, message="boom", exit_code=70, rank=1,
    time="2026-01-01T00:00:00.5Z",
)  # fmt: skip

TOO_MUCH = TerminationMessage(
    failure_class=FailureClass.OutOfMemory, reason=Reason.OutOfMemory, message="too much", exit_code=80, rank=1,
    time="2026-01-01T00:00:00.5Z", plan=ResolvedPlan(micro_batch_tokens=1024, longest_row=64),
)  # fmt: skip


def finish(kube: Kube, job: str, attempt: int) -> None:
    first, second = kube.run(job, attempt)
    kube.end(second)
    kube.end(first, words=DONE)
    wait_for(lambda: kube.phase(job) == "Succeeded", what="success")


def restart(kube: Kube, job: str) -> None:
    kube.create(manifest(job))
    _, second = kube.run(job, 1)
    kube.end(second, code=70, words=BROKEN)
    finish(kube, job, 2)


def run_out_of_memory(kube: Kube, job: str) -> None:
    """The next attempt computes half as much at once."""
    kube.create(manifest(job))
    _, second = kube.run(job, 1)
    kube.end(second, code=80, words=TOO_MUCH)
    first, _ = kube.await_gang(job, 2)
    plan = RunPlan.model_validate_json(first["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.micro_batch_tokens == 512
    finish(kube, job, 2)


def climb(kube: Kube, job: str) -> None:
    """A ladder whose second rung has pods of its own, which find no node: the first one is published."""
    overrides = [{"rung": "full", "resources": {"limits": {"memory": "2Gi"}}}]
    settings = {"rungs": ["lora", "full"], "overrides": overrides}
    kube.create(manifest(job, method={"type": "auto"}, nodes=1, ladder=settings, retry={"maxRestarts": 0}))
    (pod,) = kube.run(job, 1)
    rungs = (RungStatus(name="lora", state="done"), RungStatus(name="full", state="running"))
    ladder = LadderStatus(rule="x", rungs=rungs, best="lora")
    kube.end(pod, words=TerminationMessage(time="2026-01-01T00:00:00Z", next_rung="full", ladder=ladder))
    (pod,) = kube.await_gang(job, 2)
    plan = RunPlan.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert (plan.pods_of, pod["spec"]["containers"][0]["resources"]["limits"]) == ("full", {"memory": "2Gi"})
    kube.find_no_node(pod)
    kube.set_spec(job, deadlines={"startup": "2s"})  # the next attempt has as long until it is taken back
    wait_for(lambda: kube.status(job).get("attempt") == 3, what="the third attempt")
    kube.set_spec(job, deadlines=None)
    (pod,) = kube.run(job, 3)
    plan = RunPlan.model_validate_json(pod["metadata"]["annotations"][names.ANNOTATION_PLAN])
    assert plan.unavailable_rung is not None
    assert (plan.pods_of, plan.unavailable_rung.name) == ("lora", "full")
    kube.end(pod, words=DONE)
    wait_for(lambda: kube.phase(job) == "Succeeded", what="success")
    told = kube.status(job)
    assert (told["moves"], told["unavailableRung"]["reason"]) == (2, "StartupDeadline")


def give_up(kube: Kube, job: str) -> None:
    kube.create(manifest(job, retry={"maxRestarts": 0}))
    _, second = kube.run(job, 1)
    kube.end(second, code=70, words=BROKEN)
    wait_for(lambda: kube.phase(job) == "Failed", what="failure")


def suspend_and_resume(kube: Kube, job: str) -> None:
    kube.create(manifest(job))
    kube.run(job, 1)
    kube.set_spec(job, suspend=True)
    wait_for(lambda: kube.phase(job) == "Suspended" and not kube.list(PODS), what="suspended")
    kube.set_spec(job, suspend=False)
    finish(kube, job, 2)


def queue(kube: Kube, job: str) -> None:
    """It waits for its turn, loses its nodes to another job while it runs, and gets them back."""
    kube.create(manifest(job, queueName="team-a"))
    kube.let_go(f"{job}-1")
    kube.run(job, 1)
    kube.take_back(f"{job}-1")
    wait_for(lambda: kube.phase(job) == "Queued" and not kube.list(PODS), what="preempted")
    kube.let_go(f"{job}-1")
    wait_for(lambda: kube.phase(job) == "Pending", what="admitted again")
    finish(kube, job, 1)


def short_of_a_node(kube: Kube, job: str) -> None:
    """One of the first attempt's two pods finds no node, until that takes too long."""
    first, second = kube.await_gang(job, 1)
    kube.schedule(first)
    kube.find_no_node(second)
    kube.set_spec(job, deadlines={"startup": "2s"})  # the next attempt has as long until it is taken back
    wait_for(lambda: kube.status(job).get("attempt") == 2, what="the second attempt")
    kube.set_spec(job, deadlines=None)


def lose_and_regain_a_node(kube: Kube, job: str) -> None:
    """Two pods, of which one finds no node; then one; then two again, when a probe has found a node."""
    kube.create(manifest(job, nodes={"min": 1, "max": 2}))
    short_of_a_node(kube, job)
    kube.run(job, 2)
    kube.schedule(*wait_for(lambda: kube.probe(job, 2), what="a probe"))
    finish(kube, job, 3)


def expire(kube: Kube, job: str) -> None:
    """The manifest asks for its own deletion after the end."""
    kube.create(manifest(job, ttlAfterFinished="1s"))
    first, second = kube.run(job, 1)
    kube.end(second)
    kube.end(first, words=DONE)
    wait_for(lambda: kube.get(job) is None, what="the job is gone")
    wait_for(lambda: not (kube.jobs() or kube.services()), what="and all that it had", seconds=DISCOVERY)


def left(kube: Kube, job: str) -> dict[str, Any]:
    """What there is in the end, less times."""
    wait_for(lambda: len(kube.jobs()) <= 1, what="old Jobs are gone")
    status = kube.status(job)
    for each in status.get("conditions", []):
        del each["lastTransitionTime"]
    for field in ("startTime", "completionTime", "restartTimes"):
        status.pop(field, None)
    status.get("lastFailure", {}).pop("time", None)
    return {"status": status, "jobs": kube.jobs(), "services": kube.services()}
