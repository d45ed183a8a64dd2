"""What people and Prometheus see of the operator: arguments, metrics, events, probes, progress; and what it costs."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from prometheus_client.exposition import generate_latest

from finetune_api import series as metric
from finetune_api.failures import ExitCode, Reason
from finetune_api.plan import ProgressReport
from finetune_api.status import Phase, Progress, Restarts
from finetune_operator import main
from finetune_operator.decision import Event
from finetune_operator.events import MESSAGE_LIMIT, event_object
from finetune_operator.health import serve
from finetune_operator.kube.connection import NotConfigured, connect
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import Report
from finetune_operator.state.status import failure_of, rfc3339
from tests.support.operator_objects import NOW, SPEC, job, raw_job, vitals_of

KEY = ("ml", "a")


def scraped(cache: Cache, counters: Counters | None = None) -> dict[str, float]:
    counters = counters or Counters()
    counters.registry.register(State(cache, WorkQueue(), now=lambda: NOW))
    lines = generate_latest(counters.registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def running_job(**progress: Any) -> dict[str, Any]:
    return raw_job(
        status={
            "phase": Phase.Running.value,
            "attempt": 2,
            "nodes": 4,
            "restarts": Restarts(counted=1).to_json(),
            "progress": Progress(step=5, total_steps=10, loss=2.5, **progress).to_json(),
        }
    )


def test_a_jobs_gauges_come_from_its_status() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, running_job(last_update_time="2026-01-02T03:04:05Z"))
    series = scraped(cache)
    of = 'name="a",namespace="ml"'
    assert series[f'{metric.JOB_PHASE}{{{of},phase="Running"}}'] == 1
    assert series[f"{metric.JOB_ATTEMPT}{{{of}}}"] == 2
    assert series[f"{metric.JOB_PROGRESS_RATIO}{{{of}}}"] == 0.5
    assert series[f"{metric.JOB_LOSS}{{{of}}}"] == 2.5
    assert series[f"{metric.JOB_LAST_PROGRESS_TIMESTAMP}{{{of}}}"] == NOW.timestamp()


def test_a_jobs_own_deadlines_are_there_for_its_alerts() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec={"deadlines": {"stall": "90s", "active": "1d"}}))
    series = scraped(cache)
    found = {name: series.get(f'{metric.JOB_DEADLINE_SECONDS}{{deadline="{name}",name="a",namespace="ml"}}')
             for name in ("startup", "active", "stall")}  # fmt: skip
    assert found == {"startup": 1800, "active": 86400, "stall": 90}


def restarted(*times: str, retry: dict[str, Any]) -> dict[str, float]:
    cache = Cache()
    status = {"phase": "Running", "restarts": {"counted": len(times)}, "restartTimes": list(times)}
    cache.feed(FINETUNEJOBS, None, raw_job(status=status, spec={"retry": retry}))
    return scraped(cache)


@pytest.mark.parametrize(
    ("retry", "left"), [({}, 2), ({"maxRestarts": 1}, 0), ({"window": "5d"}, 1), ({"maxRestarts": 5}, 4)]
)
def test_restarts_left_are_those_that_the_window_has_not_used_up(retry: dict[str, Any], left: int) -> None:
    times = [rfc3339(NOW - timedelta(days=days)) for days in (8, 1)] if not retry.get("window") else [
        rfc3339(NOW - timedelta(days=days)) for days in (6, 4, 1)]  # fmt: skip
    assert restarted(*times, retry=retry)[f'{metric.JOB_RESTARTS_LEFT}{{name="a",namespace="ml"}}'] == left


def test_a_job_that_never_restarted_says_so_in_numbers() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job())
    series = scraped(cache)
    assert series[f'{metric.JOB_RESTARTS}{{counted="true",name="a",namespace="ml"}}'] == 0
    assert series[f'{metric.JOB_RESTARTS_LEFT}{{name="a",namespace="ml"}}'] == 3


def test_the_last_failure_is_known_by_class_and_reason() -> None:
    cache = Cache()
    failure = failure_of(Reason.LossNonFinite, "m", attempt=1, at=NOW)
    cache.feed(FINETUNEJOBS, None, raw_job(status={"phase": "Running", "lastFailure": failure.to_json()}))
    of = 'class="NonFinite",name="a",namespace="ml",reason="LossNonFinite"'
    assert scraped(cache)[f"{metric.JOB_LAST_FAILURE_TIMESTAMP}{{{of}}}"] == NOW.timestamp()


def test_of_a_job_that_ended_alerts_still_know_why_and_what_it_left() -> None:
    """And whether it ran a script, which leaves no artifact."""
    cache = Cache()
    failure = failure_of(Reason.DataEmpty, "m" * 2000, attempt=1, at=NOW)
    status = {"phase": "Failed", "lastFailure": failure.to_json(), "completionTime": rfc3339(NOW)}
    artifact = {"uri": "s3://corp/out", "digest": "0", "sizeBytes": 9, "kind": "adapter"}
    cache.feed(FINETUNEJOBS, None, raw_job(status=status | {"artifact": artifact}, spec={"command": ["a.py"]}))
    series = scraped(cache)
    of = 'name="a",namespace="ml"'
    assert series[f'{metric.JOB_LAST_FAILURE_TIMESTAMP}{{class="Data",{of},reason="DataEmpty"}}'] == NOW.timestamp()
    assert series[f"{metric.JOB_ARTIFACT_BYTES}{{{of}}}"] == 9
    assert series[f'{metric.JOB_INFO}{{method="command",model="",{of}}}'] == 1


def test_a_long_spec_has_its_own_thresholds_too() -> None:
    cache = Cache()
    spec = SPEC | {"pod": {"x": "y" * 20_000}, "retry": {"maxRestarts": 9}, "checkpoint": {"every": "1m"}}
    cache.feed(FINETUNEJOBS, None, raw_job(spec=spec))
    series = scraped(cache)
    assert series[f'{metric.JOB_RESTARTS_LEFT}{{name="a",namespace="ml"}}'] == 9
    assert series[f'{metric.JOB_CHECKPOINT_INTERVAL_SECONDS}{{name="a",namespace="ml"}}'] == 60


def test_jobs_of_another_manager_are_not_exported() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec=SPEC | {"managedBy": "kueue.x-k8s.io/multikueue"}))
    assert not [name for name in scraped(cache) if 'name="a"' in name]


def test_only_nodes_that_are_still_avoided_count() -> None:
    cache = Cache()
    nodes = [
        {"name": name, "failures": 2, "lastFailureTime": rfc3339(NOW)} | ({"until": rfc3339(until)} if until else {})
        for name, until in (("n1", NOW + timedelta(hours=1)), ("n2", NOW - timedelta(hours=1)), ("n3", None))
    ]
    cache.feed(FINETUNEJOBS, None, raw_job(status={"phase": "Running", "avoidedNodes": nodes}))
    assert scraped(cache)[f'{metric.JOB_AVOIDED_NODES}{{name="a",namespace="ml"}}'] == 1


@pytest.mark.parametrize(("every", "seconds"), [(None, 600), ("2m", 120), (100, None)])
def test_a_checkpoint_interval_is_known_where_it_is_a_time(every: str | int | None, seconds: float | None) -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec={"checkpoint": {"every": every}} if every else {}))
    assert scraped(cache).get(f'{metric.JOB_CHECKPOINT_INTERVAL_SECONDS}{{name="a",namespace="ml"}}') == seconds


def test_a_script_is_told_from_a_method() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec={"command": ["train.py"]}))
    assert scraped(cache)[f'{metric.JOB_INFO}{{method="command",model="",name="a",namespace="ml"}}'] == 1


def test_a_fresh_report_comes_before_the_status() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, running_job())
    report = ProgressReport(attempt=2, phase="training", progress=Progress(step=7, total_steps=10, loss=1.5))
    cache.note(KEY, report=Report("u", report))
    assert scraped(cache)[f'{metric.JOB_PROGRESS_RATIO}{{name="a",namespace="ml"}}'] == 0.7


def test_a_job_has_few_series_and_none_when_it_is_gone() -> None:
    cache = Cache()
    raw = running_job(eval_loss=1.0, tokens_per_second=9.0, eta_seconds=3, last_update_time="2026-01-02T03:04:05Z")
    raw["spec"] = raw["spec"] | {"deadlines": {"active": "1d"}}
    raw["status"] |= {
        "startTime": rfc3339(NOW),
        "lastFailure": failure_of(Reason.LossNonFinite, "m", attempt=1, at=NOW).to_json(),
        "artifact": {"uri": "s3://corp/out", "digest": "0", "sizeBytes": 9, "kind": "adapter"},
    }
    cache.feed(FINETUNEJOBS, None, raw)
    own = [name for name in scraped(cache) if 'name="a"' in name]
    assert len(own) == 22, "as docs/metrics.md says; 40 would be too many"
    cache.feed(FINETUNEJOBS, "DELETED", raw)
    assert not [name for name in scraped(cache) if 'name="a"' in name]


REQUESTS = [
    ("GET", "/api/v1/namespaces/ml/pods", False, ("list", "pods")),
    ("GET", "/api/v1/pods", True, ("watch", "pods")),
    ("GET", "/apis/batch/v1/namespaces/ml/jobs/a-1", False, ("get", "jobs")),
    ("PATCH", "/apis/finetune.dev/v1alpha1/namespaces/ml/finetunejobs/a/status", False, ("patch", "finetunejobs")),
    ("POST", "/api/v1/namespaces/ml/services", False, ("create", "services")),
    ("PUT", "/apis/coordination.k8s.io/v1/namespaces/system/leases/finetune-operator", False, ("update", "leases")),
    ("GET", "/apis/finetune.dev/v1alpha1/namespaces/jobs/finetunejobs/pods", False, ("get", "finetunejobs")),
    ("GET", "/version", False, ("list", "other")),
]


@pytest.mark.parametrize(("method", "path", "watch", "then"), REQUESTS)
def test_requests_are_counted_by_bounded_labels(method: str, path: str, watch: bool, then: tuple[str, str]) -> None:
    counters = Counters()
    counters.request(method, path, watch, 200)
    verb, resource = then
    assert scraped(Cache(), counters)[f'{metric.API_REQUESTS}{{code="200",resource="{resource}",verb="{verb}"}}'] == 1


def test_an_event_has_one_name_for_a_job_a_reason_and_an_attempt() -> None:
    def name(reason: Reason, attempt: int) -> str:
        made = event_object(job(), Event(reason, "m"), attempt=attempt, now=NOW)
        return str(made["metadata"]["name"])

    assert name(Reason.Restarting, 2) == name(Reason.Restarting, 2)
    assert len({name(Reason.Restarting, 2), name(Reason.Restarting, 3), name(Reason.Suspended, 2)}) == 3


def test_a_long_event_is_cut_where_the_api_server_would_refuse_it() -> None:
    made = event_object(job(), Event(Reason.Restarting, "x" * 5000), attempt=1, now=NOW)
    assert len(made["message"]) == MESSAGE_LIMIT


@pytest.mark.parametrize(("wrong", "status"), [("", 200), ("the watch of pods is silent", 503)])
def test_probes_say_what_is_wrong(wrong: str, status: int) -> None:
    async def play() -> tuple[int, str]:
        runner = await serve("127.0.0.1:0", registry=Counters().registry, healthy=lambda: wrong, ready=lambda: "")
        try:
            url = f"http://127.0.0.1:{runner.addresses[0][1]}/healthz"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return response.status, await response.text()
        finally:
            await runner.cleanup()

    assert asyncio.run(play()) == (status, wrong or "ok")


ARGUMENTS = [
    (["--namespace", "a", "--namespace", "b"], {}, ["a", "b"]),
    (["--all-namespaces"], {}, []),
    ([], {"FINETUNE_OPERATOR_NAMESPACES": "a,b"}, ["a", "b"]),
    ([], {"FINETUNE_OPERATOR_ALL_NAMESPACES": "true"}, []),
    (["--all-namespaces"], {"FINETUNE_OPERATOR_NAMESPACES": "a"}, []),
]


@pytest.mark.parametrize(("argv", "environ", "then"), ARGUMENTS)
def test_namespaces_by_argument_or_environment(argv: list[str], environ: dict[str, str], then: list[str]) -> None:
    assert main.parse(argv, environ).namespace == then


def test_a_scope_must_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.parse([], {})
    assert "--all-namespaces" in capsys.readouterr().err


WRONG = [
    (["--workers", "many"], {}, "invalid int value: 'many'"),
    (["--workers", "0"], {}, "at least 1"),
    (["--grow-after", "-5"], {}, "at least 0"),
    (["--grow-after", "nan"], {}, "at least 0"),
    (["--listen", "127.0.0.1:99999"], {}, "write HOST:PORT"),
    (["--trainer-command", "finetune 'agent"], {}, "--trainer-command"),
    ([], {"FINETUNE_OPERATOR_WORKERS": "many"}, "invalid int value: 'many'"),
    ([], {"FINETUNE_OPERATOR_LEASE_SECONDS": "soon"}, "invalid int value: 'soon'"),
]


@pytest.mark.parametrize(("argv", "environ", "says"), WRONG)
def test_a_wrong_argument_is_told_in_a_line(
    argv: list[str], environ: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.parse(["--all-namespaces", *argv], environ)
    assert ended.value.code == ExitCode.USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no kubeconfig"),
        (b"a:\n\t- b", "is not YAML"),
        (b"\xff\xfe", "is not YAML"),
        (b"a: b", "current-context"),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_told(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "config"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(NotConfigured, match=says):
        asyncio.run(connect(str(file)))


def test_a_port_that_is_taken_is_told() -> None:
    async def play() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with vitals_of(Counters(), listen=f"127.0.0.1:{taken.getsockname()[1]}").shown():
                pass

    with pytest.raises(NotConfigured, match="cannot listen on 127"):
        asyncio.run(play())


def test_the_trainers_command_is_a_list_of_words() -> None:
    args = main.parse(["--namespace", "a", "--trainer-command", "/opt/env/bin/finetune agent"], {})
    assert main.options(args).defaults.trainer_command == ("/opt/env/bin/finetune", "agent")


def test_one_replica_needs_no_lease_and_several_agree_on_one(capsys: pytest.CaptureFixture[str]) -> None:
    scope = ["--namespace", "a"]
    assert main.options(main.parse(scope, {})).election is None
    args = main.parse([*scope, "--leader-elect"], {"FINETUNE_OPERATOR_LEASE_NAMESPACE": "system"})
    one, other = main.election(args), main.election(args)
    assert one is not None
    assert other is not None
    assert (one.namespace, one.name, one.lease) == ("system", "finetune-operator", 13)
    assert one.renew < one.lease - one.retry
    assert one.lease + 2 * one.retry < 20, "a look, the wait, and the look that takes it"
    assert one.identity != other.identity
    with pytest.raises(SystemExit):
        main.parse([*scope, "--leader-elect", "--lease-namespace", "system", "--lease-seconds", "1"], {})
    assert "at least 3" in capsys.readouterr().err


def test_the_operator_needs_no_torch_and_little_memory() -> None:
    code = (
        "import sys, finetune_operator.main, finetune_operator.service\n"
        "heavy = {'torch', 'transformers', 'numpy', 'finetune_trainer'} & set(sys.modules)\n"
        # VmHWM and not ru_maxrss, which a child inherits from whoever started it
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(sorted(heavy), int(peak.split()[1]) // 1024)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    heavy, mebibytes = out.rsplit(" ", 1)
    assert heavy == "[]"
    assert int(mebibytes) <= 110


def test_the_document_names_the_labels_that_are_exported() -> None:
    counters, state = Counters(), State(Cache(), WorkQueue(), SimpleNamespace(age_seconds=dict))
    own = [each for each in vars(counters).values() if hasattr(each, "_labelnames")]
    exported = {each._name: each._labelnames for each in own}
    exported |= {family.name: tuple(family._labelnames) for family in state.collect()}
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().partition("## Agents")[0]
    told = {
        name.removesuffix("_total"): tuple(filter(None, labels.strip().split(", ")))
        for name, labels in re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", text, re.MULTILINE)
    }
    assert told == exported
