"""The Python API of a cluster's jobs: what each method does, and what it refuses."""

from __future__ import annotations

import asyncio
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.client import AsyncFineTuneJobs, FineTuneJobs, ManifestError, Outcome
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.status import Phase
from tests.support.fake_cluster import FakeCluster, raw_job, with_job

GUARD = {"class": "Guard", "reason": "GuardViolated", "message": "forgetting", "attempt": 1}
CRASH = {"class": "Internal", "reason": "UnexpectedError", "message": "boom", "attempt": 4}
STEPS = {"step": 30, "totalSteps": 120}
CANDIDATE = {"uri": "s3://corp/models/tickets/.finetune/u/candidate", "digest": "0" * 64}


@pytest.mark.parametrize("name", ["--all", "--selector=a", "-A", "", "a b", "a\n", "pods/a"])
def test_what_is_no_name_never_reaches_kubectl(name: str, cluster: FakeCluster) -> None:
    for verb in (FineTuneJobs().get, FineTuneJobs().delete, FineTuneJobs().retry, FineTuneJobs().stop):
        with pytest.raises(FinetuneError, match="no FineTuneJob can be named"):
            verb(name)
    assert cluster.calls == []


@pytest.mark.parametrize("read", ["get", "list", "events"])
def test_a_server_that_never_answers_keeps_no_reader_waiting(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nexec sleep 600\n")
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("finetune_api.client.verbs.READ_SECONDS", 0.05)
    arguments = () if read == "list" else ("tickets",)
    said = r"the API server did not answer within 0\.05 seconds"

    with pytest.raises(FinetuneError, match=said) as raised:
        getattr(FineTuneJobs(), read)(*arguments)
    assert raised.value.reason is Reason.ClusterUnavailable
    with pytest.raises(FinetuneError, match=said):
        asyncio.run(getattr(AsyncFineTuneJobs(), read)(*arguments))


def test_a_manifest_becomes_a_job(cluster: FakeCluster) -> None:
    done = FineTuneJobs().submit(raw_job())

    assert (done.action, done.name, done.namespace, done.changed) == ("submitted", "tickets", "team", True)
    assert done.next[0] == "finetune watch tickets -n team"
    assert FineTuneJobs().get("tickets").phase == "Pending"


def test_a_trial_creates_nothing(cluster: FakeCluster) -> None:
    done = FineTuneJobs().submit(raw_job(), dry_run=True)

    assert (done.changed, done.uid, done.next) == (False, "", ())
    assert cluster.jobs == {}


def test_a_bad_manifest_reaches_no_cluster(cluster: FakeCluster) -> None:
    with pytest.raises(ManifestError, match=r"spec.nodes: must be at least 1"):
        FineTuneJobs().submit(raw_job(spec={"nodes": 0}))
    assert cluster.calls == []


@pytest.mark.parametrize("form", ["path", "text of a path", "yaml", "object", "typed"])
def test_a_manifest_may_have_any_of_these_forms(form: str, tmp_path: Path, cluster: FakeCluster) -> None:
    raw = {key: value for key, value in raw_job().items() if key != "status"}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(raw))
    from finetune_api.manifest import load

    forms: dict[str, Any] = {
        "path": file, "text of a path": str(file), "yaml": file.read_text(), "object": raw, "typed": load(file),
    }  # fmt: skip
    FineTuneJobs().submit(forms[form])
    assert cluster.jobs["tickets"]["spec"]["output"] == {"uri": "s3://corp/models/tickets"}


def test_stopping_and_resuming_set_one_field_and_can_be_repeated(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Running", progress=STEPS)

    assert [jobs.stop("tickets").changed for _ in range(2)] == [True, False]
    assert cluster.jobs["tickets"]["spec"]["suspend"] is True
    assert [jobs.resume("tickets").changed for _ in range(2)] == [True, False]
    assert cluster.jobs["tickets"]["spec"]["suspend"] is False


def test_a_failed_job_is_created_again_from_its_manifest(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Failed", suspend=False, lastFailure=CRASH)
    cluster.jobs["tickets"]["metadata"] |= {
        "labels": {"team": "a"}, "resourceVersion": "7",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "note": "mine"},
    }  # fmt: skip
    done = jobs.retry("tickets")

    made = cluster.jobs["tickets"]
    assert (done.action, done.uid) == ("retried", "new-uid-of-tickets")
    assert made["metadata"] == {
        "name": "tickets", "namespace": "team", "uid": "new-uid-of-tickets", "labels": {"team": "a"},
        "annotations": {"note": "mine"},
    }  # fmt: skip
    assert "status" not in made
    verbs = [call[0] for call in cluster.calls]
    assert verbs == ["get", "create", "delete", "create"], "the API server checks it before the old job is deleted"
    assert "--dry-run=server" in cluster.calls[1]
    assert "--cascade=foreground" in cluster.calls[2], "no pod of the old job is left"


@pytest.mark.parametrize(("verb", "why"), [("create", "exceeded quota: q"), ("delete", "user u cannot delete")])
def test_a_job_stays_that_could_not_be_created_again_or_not_be_deleted(
    verb: str, why: str, cluster: FakeCluster
) -> None:
    jobs = with_job(cluster, "Failed", lastFailure=CRASH)
    cluster.refusals[verb] = [f"Error from server (Forbidden): {why}"]

    with pytest.raises(FinetuneError, match=why):
        jobs.retry("tickets")
    assert "tickets" in cluster.jobs


@pytest.mark.parametrize("fails", ["delete", "create"])
def test_the_manifest_of_a_job_is_kept_if_it_cannot_be_created_after_all(fails: str, cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Failed", lastFailure=CRASH)
    cluster.refusals_after_delete = {fails: ["error: timed out waiting for the condition"]}

    with pytest.raises(FinetuneError, match="was not created again: error: timed out") as error:
        jobs.retry("tickets")
    (file,) = re.findall(r"finetune submit (\S+)$", error.value.hint)
    try:
        assert jobs.submit(file).name == "tickets"
    finally:
        Path(file).unlink()


REFUSED = [
    ("stop", "Succeeded", {}, "is Succeeded, so there is nothing to stop", "finetune report tickets"),
    ("resume", "Failed", {}, "is Failed, so it cannot be resumed", "finetune retry tickets"),
    ("retry", "Succeeded", {}, "nothing to retry", "finetune clone tickets tickets-2"),
    ("retry", "Running", {}, "only a failed job can be retried", "restarts failed attempts by itself"),
    ("retry", "Suspended", {"suspend": True}, "only a failed job", "finetune resume tickets"),
    ("retry", "Failed", {"lastFailure": GUARD}, "because of a guard", "--file job.yaml"),
    ("retry", "Failed", {"lastFailure": GUARD, "candidate": CANDIDATE}, "because of", "finetune promote tickets"),
    ("delete", "Running", {}, "no other job resumes its training", "finetune stop tickets"),
    ("delete", "Suspended", {"progress": STEPS}, "no other job resumes", "finetune delete tickets --force"),
]


@pytest.mark.parametrize(("verb", "phase", "status", "message", "hint"), REFUSED)
def test_what_cannot_be_done_is_refused_with_the_next_command(
    verb: str, phase: str, status: dict[str, Any], message: str, hint: str, cluster: FakeCluster
) -> None:
    jobs = with_job(cluster, phase, **status)
    before = json.dumps(cluster.jobs)

    with pytest.raises(FinetuneError) as error:
        getattr(jobs, verb)("tickets")
    assert error.value.reason is Reason.WrongPhase
    assert message in error.value.message
    assert hint in error.value.hint
    assert json.dumps(cluster.jobs) == before


def test_a_job_of_another_object_is_retried_there(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Failed", lastFailure=CRASH)
    cluster.jobs["tickets"]["metadata"]["ownerReferences"] = [{"kind": "Workflow", "name": "w", "controller": True}]

    with pytest.raises(FinetuneError, match="belongs to Workflow w"):
        jobs.retry("tickets")


def test_a_guard_does_not_stop_a_changed_manifest(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Failed", lastFailure=GUARD)

    jobs.retry("tickets", raw_job(spec={"training": {"epochs": 9}}))
    assert cluster.jobs["tickets"]["spec"]["training"] == {"epochs": 9}
    cluster.jobs["tickets"]["status"] = {"phase": "Failed"}
    with pytest.raises(FinetuneError, match="the manifest is of other"):
        jobs.retry("tickets", raw_job("other"))


def test_a_clone_has_a_name_and_an_output_of_its_own(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Succeeded", suspend=True)
    done = jobs.clone("tickets", "tickets-2", settings={"training.epochs": 5, "spec.nodes": 2})

    made = cluster.jobs["tickets-2"]["spec"]
    assert (done.action, done.name) == ("cloned", "tickets-2")
    assert made["output"] == {"uri": "s3://corp/models/tickets-2"}
    assert (made["training"], made["nodes"], "suspend" in made) == ({"epochs": 5}, 2, False)


@pytest.mark.parametrize(
    ("output", "settings", "error", "words"),
    [
        (None, {}, FinetuneError, "needs a folder of its own"),
        ("s3://corp/b", {"training.epoch": 1}, ManifestError, "did you mean epochs"),
        ("s3://corp/b", {"data.train.uri": "s3://corp/x"}, FinetuneError, "spec.data.train is not an object"),
    ],
)
def test_a_clone_that_cannot_be_made(
    output: str | None, settings: dict[str, Any], error: type[Exception], words: str, cluster: FakeCluster
) -> None:
    jobs = with_job(cluster, "Succeeded")
    cluster.jobs["tickets"]["spec"]["output"]["uri"] = "s3://corp/shared"

    with pytest.raises(error, match=words):
        jobs.clone("tickets", "b", output=output, settings=settings)
    assert set(cluster.jobs) == {"tickets"}


def test_a_name_that_is_taken_is_refused_with_the_next_command(cluster: FakeCluster) -> None:
    jobs = with_job(cluster, "Failed")

    with pytest.raises(FinetuneError) as error:
        jobs.submit(raw_job())
    assert error.value.reason is Reason.AlreadyExists
    assert "finetune retry tickets --file FILE" in error.value.hint


def test_deleting_says_that_the_artifact_stays(cluster: FakeCluster) -> None:
    artifact = {"uri": "s3://corp/models/tickets", "digest": "0" * 64, "sizeBytes": 1, "kind": "adapter"}
    jobs = with_job(cluster, "Succeeded", artifact=artifact)

    assert "its artifact stays at s3://corp/models/tickets" in jobs.delete("tickets").message
    assert cluster.jobs == {}


def test_a_job_is_watched_and_awaited_until_it_is_finished(cluster: FakeCluster) -> None:
    later = [{"phase": "Running"}, {"phase": "Running"}, {"phase": "Succeeded"}]
    jobs = with_job(cluster, "Pending")
    cluster.later = list(later)
    assert [job.phase for job in jobs.watch("tickets", every=0)] == ["Pending", "Running", "Succeeded"]

    jobs = with_job(cluster, "Pending")
    cluster.later = list(later)
    assert jobs.wait("tickets", every=1).phase == "Succeeded"
    assert cluster.pauses == 3
    with_job(cluster, "Pending")
    with pytest.raises(TimeoutError, match="tickets is Pending after 2 s"):
        jobs.wait("tickets", timeout=2, every=1)


def test_the_async_methods_do_the_same(cluster: FakeCluster) -> None:
    async def life() -> list[str]:
        jobs = AsyncFineTuneJobs(namespace="team")
        said = [str(await jobs.submit(raw_job())), str(await jobs.stop("tickets")), str(await jobs.resume("tickets"))]
        said.append(str(await jobs.clone("tickets", "tickets-2")))
        cluster.later = [{"phase": "Failed"}]
        said += [job.phase async for job in jobs.watch("tickets", every=0)]
        said.append(str(await jobs.retry("tickets")))
        said.append(repr(await jobs.list()))
        said.append(str(len(await jobs.events("tickets"))))
        said.append((await jobs.wait("tickets", lambda job: not job.finished)).phase)
        said.append(str(await jobs.delete("tickets", force=True)))
        return said

    async_names = {name for name in vars(AsyncFineTuneJobs) if not name.startswith("_")}
    assert async_names == {name for name in vars(FineTuneJobs) if not name.startswith("_")}
    said = asyncio.run(life())
    assert said[0] == "<team/tickets: created tickets in namespace team>"
    assert said[4:6] == ["Pending", "Failed"]
    assert set(cluster.jobs) == {"tickets-2"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_api_server_that_is_away_for_a_while_ends_no_watch_and_no_wait(
    asynchronous: bool, cluster: FakeCluster
) -> None:
    gone = "The connection to the server was refused"

    async def watched() -> list[str]:
        return [job.phase async for job in AsyncFineTuneJobs().watch("tickets", every=0)]

    with_job(cluster, "Running")
    cluster.later = [{"phase": "Running"}, {"phase": "Succeeded"}]
    cluster.refusals_by_look = [[], [gone, gone], []]
    if asynchronous:
        assert asyncio.run(watched()) == ["Running", "Succeeded"]
    else:
        assert [job.phase for job in FineTuneJobs().watch("tickets", every=0)] == ["Running", "Succeeded"]

    with_job(cluster, "Running")
    cluster.later = [{"phase": "Running"}, {"phase": "Succeeded"}]
    cluster.refusals_by_look = [[], [gone], []]
    assert FineTuneJobs().wait("tickets", lambda job: job.finished, every=0).phase == "Succeeded"

    cluster.refusals["get"] = [gone]
    with pytest.raises(FinetuneError, match="was refused"):
        FineTuneJobs().wait("tickets", lambda job: job.finished)


def test_an_outage_that_lasts_ends_a_watch_with_its_reason(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with_job(cluster, "Running")
    watch = FineTuneJobs().watch("tickets", every=60)
    assert next(watch).phase == "Running"
    cluster.refusals["get"] = ["The connection to the server was refused"] * 100
    with pytest.raises(FinetuneError, match="was refused") as raised:
        next(watch)
    assert raised.value.reason is Reason.ClusterUnavailable
    assert cluster.pauses == 10


def test_a_job_prints_as_a_line_and_as_a_table_that_runs_no_script(cluster: FakeCluster) -> None:
    failure = {**CRASH, "message": "<script>alert(1)</script>"}
    jobs = with_job(cluster, "Failed", progress=STEPS, lastFailure=failure)
    job = jobs.get("tickets")

    assert repr(job).startswith("<FineTuneJob team/tickets: Failed  step 30/120 (25 %)  UnexpectedError: ")
    assert "<script>" not in job._repr_html_()
    assert "&lt;script&gt;" in jobs.list()._repr_html_()
    assert repr(jobs) == "<FineTuneJobs namespace team>"


def test_what_was_done_shows_the_next_commands_in_a_notebook_and_runs_no_script() -> None:
    done = Outcome(
        action="submitted", name="a", namespace="team", phase=Phase.Pending,
        message="<img src=x onerror=alert(1)>\x1b[2J", next=("finetune watch a", "<script>"),
    )  # fmt: skip
    assert done._repr_html_() == (
        "<p>&lt;img src=x onerror=alert(1)&gt;<br><code>finetune watch a</code><br><code>&lt;script&gt;</code></p>"
    )


def test_events_are_in_the_order_of_their_last_time(cluster: FakeCluster) -> None:
    cluster.events = [
        {"reason": "B", "type": "Warning", "lastTimestamp": "2026-01-01T00:00:02Z", "count": 3},
        {"reason": "C", "eventTime": "2026-01-01T00:00:01.000000Z",
         "series": {"lastObservedTime": "2026-01-01T00:00:03Z"}},
        {"reason": "A", "metadata": {"creationTimestamp": "2026-01-01T00:00:01Z"}},
    ]  # fmt: skip
    assert [event.reason for event in FineTuneJobs().events("tickets")] == ["A", "B", "C"]


ANSWERS = [
    ("get", 'Error from server (NotFound): finetunejobs "x" not found', Reason.NotFound, ExitCode.NO_INPUT),
    ("get", "The connection to the server was refused", Reason.ClusterUnavailable, ExitCode.UNAVAILABLE),
    ("get", 'Error from server (Forbidden): may not get "x"', Reason.ClusterUnavailable, ExitCode.UNAVAILABLE),
    ("create", 'The FineTuneJob "x" is invalid: spec.nodes: too many', Reason.InvalidSpec, ExitCode.CONFIG),
    ("create", 'ValidatingAdmissionPolicy "p" denied request: no', Reason.PolicyViolated, ExitCode.CONFIG),
    ("create", 'error: no matches for kind "FineTuneJob"', Reason.ClusterUnavailable, ExitCode.UNAVAILABLE),
    ("create", '(NotFound): namespaces "x" not found', Reason.ClusterUnavailable, ExitCode.UNAVAILABLE),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "answer", "reason", "status"), ANSWERS)
def test_what_the_api_server_refuses_has_a_reason(
    verb: str, answer: str, reason: Reason, status: int, cluster: FakeCluster
) -> None:
    cluster.refusals[verb] = [answer]
    jobs = FineTuneJobs()

    with pytest.raises(FinetuneError) as error:
        jobs.get("x") if verb == "get" else jobs.submit(raw_job("x"))
    assert (error.value.reason, error.value.exit_code) == (reason, status)
