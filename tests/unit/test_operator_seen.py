"""What people and Prometheus see of the operator: arguments, metrics, events, probes, progress; and what it costs."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.exposition import generate_latest

from finetune_api import names
from finetune_api.failures import ExitCode, Reason
from finetune_api.plan import ProgressReport
from finetune_api.status import Phase, Progress, Restarts
from finetune_operator import main
from finetune_operator.cache import Cache, Report
from finetune_operator.connection import NotConfigured, connect
from finetune_operator.decision import Event
from finetune_operator.events import MESSAGE_LIMIT, event_object
from finetune_operator.health import serve
from finetune_operator.metrics import Counters, State
from finetune_operator.progress import LIMIT, fetch
from finetune_operator.queue import WorkQueue
from finetune_operator.resources import FINETUNEJOBS
from finetune_operator.service import Options, Service
from tests.unit.operator_world import NOW, job, raw_job

KEY = ("ml", "a")


def scraped(cache: Cache, counters: Counters | None = None) -> dict[str, float]:
    counters = counters or Counters()
    counters.registry.register(State(cache, WorkQueue()))
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
    assert series[f'{names.JOB_PHASE}{{{of},phase="Running"}}'] == 1
    assert series[f"{names.JOB_ATTEMPT}{{{of}}}"] == 2
    assert series[f"{names.JOB_PROGRESS_RATIO}{{{of}}}"] == 0.5
    assert series[f"{names.JOB_LOSS}{{{of}}}"] == 2.5
    assert series[f"{names.JOB_LAST_PROGRESS_TIMESTAMP}{{{of}}}"] == NOW.timestamp()


def test_a_jobs_own_deadlines_are_there_for_its_alerts() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec={"deadlines": {"stall": "90s", "active": "1d"}}))
    series = scraped(cache)
    found = {name: series.get(f'{names.JOB_DEADLINE_SECONDS}{{deadline="{name}",name="a",namespace="ml"}}')
             for name in ("startup", "active", "stall")}  # fmt: skip
    assert found == {"startup": 1800, "active": 86400, "stall": 90}


def test_a_script_is_told_from_a_method() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec={"command": ["train.py"]}))
    assert scraped(cache)[f'{names.JOB_INFO}{{method="command",model="",name="a",namespace="ml"}}'] == 1


def test_a_fresh_report_comes_before_the_status() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, running_job())
    report = ProgressReport(attempt=2, phase="training", progress=Progress(step=7, total_steps=10, loss=1.5))
    cache.reports[KEY] = Report("u", report)
    assert scraped(cache)[f'{names.JOB_PROGRESS_RATIO}{{name="a",namespace="ml"}}'] == 0.7


def test_a_job_has_few_series_and_none_when_it_is_gone() -> None:
    cache = Cache()
    raw = running_job(eval_loss=1.0, tokens_per_second=9.0, eta_seconds=3, last_update_time="2026-01-02T03:04:05Z")
    cache.feed(FINETUNEJOBS, None, raw)
    own = [name for name in scraped(cache) if 'name="a"' in name]
    assert 14 <= len(own) <= 16, "as docs/metrics.md says; 40 would be too many"
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
    assert scraped(Cache(), counters)[f'{names.API_REQUESTS}{{code="200",resource="{resource}",verb="{verb}"}}'] == 1


def test_an_event_has_one_name_for_a_job_a_reason_and_an_attempt() -> None:
    def name(reason: Reason, attempt: int) -> str:
        made = event_object(job(), Event(reason, "m"), attempt=attempt, now=NOW)
        return str(made["metadata"]["name"])

    assert name(Reason.Restarting, 2) == name(Reason.Restarting, 2)
    assert len({name(Reason.Restarting, 2), name(Reason.Restarting, 3), name(Reason.Suspended, 2)}) == 3


def test_a_long_event_is_cut_where_the_api_server_would_refuse_it() -> None:
    made = event_object(job(), Event(Reason.Restarting, "x" * 5000), attempt=1, now=NOW)
    assert len(made["message"]) == MESSAGE_LIMIT


def get(handler: Any, path: str = "/progress") -> ProgressReport | None:
    async def play() -> ProgressReport | None:
        app = web.Application()
        app.router.add_get("/progress", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
                return await fetch(session, f"http://127.0.0.1:{runner.addresses[0][1]}{path}")
        finally:
            await runner.cleanup()

    return asyncio.run(play())


def test_progress_is_read_from_the_agent() -> None:
    report = ProgressReport(attempt=1, phase="training", progress=Progress(step=3))

    async def answer(_: web.Request) -> web.Response:
        return web.json_response(report.to_json())

    assert get(answer) == report


@pytest.mark.parametrize("text", ["<html>", "{}", "x" * (LIMIT + 10)])
def test_what_is_no_report_is_no_news(text: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text)

    assert get(answer) is None


def test_a_redirect_is_not_followed() -> None:
    async def answer(_: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    assert get(answer) is None


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
            options = Options(listen=f"127.0.0.1:{taken.getsockname()[1]}")
            async with Service(SimpleNamespace(), options)._health():  # type: ignore[arg-type]
                pass

    with pytest.raises(NotConfigured, match="nobody can listen at 127"):
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
