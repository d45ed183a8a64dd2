"""What pods say: whatever it is, what comes out of the parser can be decided on, stored and shown."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest

from finetune_api.failures import Reason, TerminationMessage, class_of
from finetune_api.measurements import MOST_DATA_SETS, Evaluation, Measurement
from finetune_api.plan import ProgressReport
from finetune_api.results import packed
from finetune_api.status import Artifact, FailureClass, Phase, Progress
from finetune_operator.decide import decide
from finetune_operator.diagnosis.root_cause import evidence_of
from finetune_operator.policies.finish import succeeded
from finetune_operator.state.parsing import view_pod
from finetune_operator.state.pod_reports import (
    LARGEST,
    LIMIT,
    OF_THE_OPERATOR,
    MalformedReport,
    below,
    progress_report,
    termination_message,
)
from finetune_operator.state.timestamps import parse_time
from tests.support.operator_objects import NOW, child, ended, job, later, pod, raw_pod, seen, status
from tests.support.pod_report_samples import GOOD, REPORT, reported, said


def test_an_agents_words_are_read_as_they_are() -> None:
    found = said()
    assert found is not None
    assert found.to_json() == TerminationMessage.model_validate_json(json.dumps(GOOD)).to_json()
    assert reported().to_json() == ProgressReport.model_validate_json(json.dumps(REPORT)).to_json()


def test_a_run_that_ended_well_says_so_and_names_its_artifact() -> None:
    """As node 0 says it: a reason that is no failure's, and no class."""
    good = {name: value for name, value in GOOD.items() if name not in ("class", "hint", "exitCode", "rank")}
    found = termination_message(json.dumps(good | {"reason": Reason.Succeeded.value, "message": "artifact committed"}))
    assert found is not None
    assert (found.reason, found.failure_class) == (Reason.Succeeded, None)
    assert found.artifact is not None
    assert found.artifact.uri == GOOD["artifact"]["uri"]


def slice_of(name: str) -> dict[str, Any]:
    return {"name": name, "kind": "slice", "metric": "loss", "base": 1.0}


def guard_of(name: str) -> dict[str, Any]:
    return {"name": name, "bound": 0.0, "value": 0.1, "low": 0.0, "high": 0.2, "verdict": "passed"}


def columns(*names: str) -> Any:
    """What is inside of packed results."""
    given = Evaluation(data=tuple(Measurement(name=name, kind="slice", metric="loss", base=1.0) for name in names))
    return json.loads(zlib.decompress(base64.b85decode(packed(given))))


def deflated(told: Any, *, beside: bytes = b"") -> str:
    return base64.b85encode(zlib.compress(json.dumps(told).encode()) + beside).decode()


def test_packed_results_are_read_as_if_they_were_written_out() -> None:
    evaluation = Evaluation.model_validate(GOOD["evaluation"], strict=False)
    plain = {name: value for name, value in GOOD.items() if name != "evaluation"}
    found = termination_message(json.dumps(plain | {"results": packed(evaluation)}))
    assert found is not None
    assert found.evaluation == evaluation
    assert found.results is None


def bombs() -> dict[str, str]:
    def raw(data: bytes) -> str:
        return base64.b85encode(zlib.compress(data, 9)).decode()

    return {
        "eight megabytes of nothing": raw(b"0" * (8 << 20)),
        "a name of a megabyte": raw(b'{"d": [["' + b"n" * (1 << 20) + b'"]], "o": null}'),
        "nested lists": raw(b"[" * 30_000),
        "a number of thirty thousand digits": raw(b"1" * 30_000),
        "something behind": deflated(columns("a"), beside=b"more"),
        "half of it": deflated(columns("a"))[:-20],
        "NaN": raw(b'{"d": [], "o": NaN}'),
        "no columns": deflated([]),
        "columns of different lengths": deflated({"d": [["a"], []]}),
        "a word that is not one": deflated({"d": [["a"], [9], *[[None]] * 10]}),
        "bytes that are no text": raw(b"\xff\xfe"),
    }


@pytest.mark.parametrize("what", bombs())
def test_results_that_are_no_results_are_refused_before_they_grow(what: str) -> None:
    plain = {name: value for name, value in GOOD.items() if name != "evaluation"}
    text = json.dumps(plain | {"results": bombs()[what]})
    assert len(text) < LIMIT, "it is not its length that is refused"
    assert termination_message(text) is None
    ladder = json.dumps(plain | {"packedLadder": bombs()[what]})
    assert termination_message(ladder) is None


WEDGES: list[tuple[str, dict[str, Any]]] = [
    ("a number that no other reader has", {"step": 2**64}),
    ("a number that not all readers have", {"step": LARGEST + 1}),
    ("a negative one", {"rank": -1}),
    ("an exit code that no process has", {"exitCode": 256}),
    ("a fraction where there are none", {"step": 1.5}),
    ("true for one", {"step": True}),
    ("a reason that is no failure", {"reason": "Succeeded"}),
    ("a reason that nobody knows", {"reason": "Whatever"}),
    ("a reason that only Kubernetes knows", {"reason": "Evicted"}),
    ("a class that nobody knows", {"class": "Nonsense"}),
    ("a class that is no word", {"class": 3}),
    ("a path with an escape in it", {"artifact": GOOD["artifact"] | {"uri": "s3://corp/out\x1b[2J"}}),
    ("a long word", {"plan": {"method": "m" * 250_000}}),
    ("a long word within the bounds", {"plan": {"method": "m" * 2000}}),
    ("slices of one name", {"evaluation": {"data": [slice_of("a"), slice_of("a")]}}),
    ("guards of one name", {"evaluation": {"guards": [guard_of("minGain"), guard_of("minGain")]}}),
    ("many slices", {"evaluation": {"data": [slice_of(f"a{n}") for n in range(MOST_DATA_SETS + 1)]}}),
    ("a verdict of its own", {"evaluation": {"data": [slice_of("a") | {"verdict": "excellent"}]}}),
    ("results that are no text", {"results": {"d": []}}),
    ("results that nobody packed", {"results": "rubbish"}),
    ("results with an escape in a name", {"results": deflated(columns("a\x1b[31m"))}),
    ("results of one name", {"results": deflated(columns("a", "a"))}),
    ("no object", {"plan": []}),
]


@pytest.mark.parametrize(("what", "changes"), WEDGES, ids=[what for what, _ in WEDGES])
def test_words_that_would_wedge_a_job_are_refused_as_a_whole(what: str, changes: dict[str, Any]) -> None:
    assert said(**changes) is None


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", "-1e999"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    data = json.dumps(REPORT).replace("1.5", text)
    with pytest.raises(MalformedReport):
        progress_report(data.encode(), attempt=1, uid="u", nonce="n")
    assert termination_message(json.dumps(GOOD).replace("1.5", text)) is None


@pytest.mark.parametrize("said_class", [c.value for c in FailureClass])
def test_the_class_is_the_reasons_whatever_was_said(said_class: str) -> None:
    for reason in Reason:
        found = said(**{"class": said_class, "reason": reason.value})
        if found is not None:
            assert found.failure_class is class_of(reason)
            assert reason not in OF_THE_OPERATOR


def test_a_class_by_its_other_name_says_nothing() -> None:
    found = said(**{"failure_class": "Preemption", "exit_code": 10**9})
    assert found is not None
    assert (found.failure_class, found.exit_code) == (FailureClass.Data, 65)


def test_no_reason_that_costs_no_restart_can_be_had_by_a_contradiction() -> None:
    found = said(**{"class": "Preemption", "reason": "UnexpectedError"})
    given = seen(
        job(status(Phase.Running)), children=(child(failing=True, finished=True),),
        pods=(pod(0, "Failed", ended=ended(70, words=found)), pod(1, "Failed", ended=ended(70, words=found))),
    )  # fmt: skip
    decided = decide(given, NOW).status
    assert decided.restarts is not None
    assert (decided.restarts.counted, decided.restarts.free) == (1, 0)


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "1999-12-31T23:59:59Z", "soon", "2026", ""]
)
def test_a_time_that_is_nobodys_is_none(text: str) -> None:
    found = said(time=text)
    assert found is not None
    assert found.time in ("", "2026")
    assert parse_time("0001-01-01T00:00:00Z") is parse_time("9999-12-31T23:59:59-23:59") is None
    testified = evidence_of(pod(0, "Failed", ended=ended(65, words=found, at=3)))
    assert testified is not None
    assert testified.at == later(3) or text == "2026"


def test_the_operator_alone_says_when_progress_was_updated() -> None:
    assert reported(progress={"step": 1, "lastUpdateTime": "rubbish"}).progress == Progress(step=1)


def test_a_number_that_was_not_finite_leaves_the_rest_of_the_report() -> None:
    found = reported(evaluation={"data": [slice_of("a") | {"tuned": None}, slice_of("b") | {"tuned": 1.0}]})
    assert found.evaluation is not None
    assert [each.tuned for each in found.evaluation.data] == [None, 1.0]


@pytest.mark.parametrize("phase", ["x" * 250_000, "a\x1b[31mb", "", 3, None, "two words"])
def test_a_phase_is_one_short_word(phase: object) -> None:
    with pytest.raises(MalformedReport):
        reported(phase=phase)


@pytest.mark.parametrize("phase", ["training", "somethingNewer"])
def test_a_phase_of_a_newer_agent_is_read(phase: str) -> None:
    assert reported(phase=phase).phase == phase


def test_what_is_refused_leaves_the_exit_code_and_a_clean_text() -> None:
    text = json.dumps(GOOD | {"reason": "Succeeded", "message": "\x1b[31mred\x1b[0m https://s/x?sig=abcdefgh123"})
    state = {"terminated": {"exitCode": 65, "message": text}}
    view = view_pod(raw_pod(status={"phase": "Failed", "containerStatuses": [{"name": "trainer", "state": state}]}))
    testified = evidence_of(view)
    assert testified is not None
    assert testified.failure.reason == "DataUnreadable"
    assert "\x1b" not in testified.failure.message
    assert "abcdefgh123" not in testified.failure.message


# artifacts


BELOW = [
    ("s3://corp/out", True), ("s3://corp/out/", True), ("s3://corp/out/merged", True), ("s3://corp/outer", False),
    ("s3://corp", False), ("s3://corp/out/../evil", False), ("s3://corp/out/./a", False), ("s3://evil/out", False),
    ("s3://corp/out?x=1", False), ("s3://corp/out/%2e%2e/evil", False), ("s3://corp/out/a b", False),
    ("https://evil/s3://corp/out", False), ("S3://corp/out", False), ("s3://corp/out\\..", False),
]  # fmt: skip


@pytest.mark.parametrize(("uri", "ours"), BELOW)
def test_an_artifact_is_one_below_the_output(uri: str, ours: bool) -> None:
    artifact = Artifact(uri=uri, digest="d", size_bytes=1, kind="adapter")
    assert below(artifact, "s3://corp/out") is ours
    assert below(artifact, "s3://corp/out/") is ours
    done = tuple(
        pod(n, "Succeeded", ended=ended(words=TerminationMessage(artifact=artifact if n == 0 else None)))
        for n in range(2)
    )
    decision = succeeded(
        seen(job(status(Phase.Running)), children=(child(complete=True, finished=True),), pods=done), NOW
    )
    assert decision is not None
    assert decision.status.phase is Phase.Succeeded
    assert (decision.status.artifact == artifact) is ours
    if not ours:
        assert "which is ignored" in decision.status.conditions[-1].message
