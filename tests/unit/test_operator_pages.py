"""The operator's pages: off its loop, made once for all who ask, with TLS and a token where they are wanted."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import os
import socket
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from finetune_api.pages import TEXT, Limits, Page, Route, serving
from finetune_operator import health, main
from finetune_operator.health import OLDEST_TURN, Guard, Running, serve
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.state.cache import Cache
from tests.support.operator_objects import raw_job, vitals_of


class Samples(Collector):
    """So many samples, once the gate is open; and the threads that asked for them."""

    def __init__(self, count: int = 1, gate: threading.Event | None = None) -> None:
        self.samples, self.gate = count, gate
        self.made: list[str] = []

    def collect(self) -> Any:
        self.made.append(threading.current_thread().name)
        assert self.gate is None or self.gate.wait(60)
        family = GaugeMetricFamily("finetune_test", "x", labels=("n",))
        for number in range(self.samples):
            family.add_metric((f"{number:06}",), 1)
        yield family


def registry(collector: Collector) -> CollectorRegistry:
    made = CollectorRegistry(auto_describe=False)
    made.register(collector)
    return made


async def served(collector: Collector, guard: Guard | None = None, wrong: str = "") -> Running:
    return await serve(
        "127.0.0.1:0", registry=registry(collector), healthy=lambda: wrong, ready=lambda: "", guard=guard
    )


def ask(running: Running, path: str, scheme: str = "http", **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{scheme}://127.0.0.1:{running.addresses[0][1]}{path}", headers=headers)
    context = ssl._create_unverified_context() if scheme == "https" else None
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_seven_scrapes_are_one_page_and_the_loop_goes_on_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "LONGEST", 3600.0)
    monkeypatch.setattr(health, "SHORTEST", 3600.0)
    samples = Samples(gate=(gate := threading.Event()))

    async def play() -> list[int]:
        running = await served(samples)
        scrapes = [asyncio.create_task(asyncio.to_thread(ask, running, "/metrics")) for _ in range(7)]
        async with asyncio.timeout(60):
            while not samples.made:
                await asyncio.sleep(0.01)
        gate.set()  # by the loop, which would never come to it if it made the page
        statuses = [(await scrape)[0] for scrape in scrapes]
        await running.cleanup()
        return statuses

    assert asyncio.run(play()) == [200] * 7
    assert len(samples.made) == 1
    assert threading.main_thread().name not in samples.made


@pytest.mark.parametrize(("took", "shown"), [(0.0, 1.0), (0.3, 3.0), (60.0, 15.0)])
def test_a_page_that_took_long_is_shown_for_longer(monkeypatch: pytest.MonkeyPatch, took: float, shown: float) -> None:
    routes: dict[str, Route] = {}

    @contextmanager
    def noted(_address: str | None, port: int, given: dict[str, Route], **_: Any) -> Iterator[int]:
        routes.update(given)
        yield port

    monkeypatch.setattr(health.pages, "serving", noted)
    asyncio.run(served(Samples()))
    assert routes["/metrics"].keep(took) == shown


def test_a_large_page_is_compressed_for_who_can_read_it() -> None:
    async def play() -> tuple[bytes, bytes]:
        running = await served(Samples(20_000))
        packed = await asyncio.to_thread(ask, running, "/metrics", **{"Accept-Encoding": "gzip"})
        plain = await asyncio.to_thread(ask, running, "/metrics")
        await running.cleanup()
        return packed[1], plain[1]

    packed, plain = asyncio.run(play())
    assert gzip.decompress(packed) == plain
    assert len(packed) * 5 < len(plain)


def test_metrics_want_the_token_and_the_probes_do_not(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("t0ken\n")

    async def play() -> list[int]:
        running = await served(Samples(), Guard(token=file))

        async def status(path: str, token: str = "") -> int:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return (await asyncio.to_thread(ask, running, path, **headers))[0]

        found = [await status("/metrics"), await status("/metrics", "t0ken"), await status("/healthz")]
        file.write_text("another")
        found += [await status("/metrics", "t0ken"), await status("/metrics", "another")]
        file.unlink()
        found.append(await status("/metrics", "another"))
        await running.cleanup()
        return found

    assert asyncio.run(play()) == [401, 200, 200, 401, 200, 401]


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    chain, key = folder / "tls.crt", folder / "tls.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    later = time.time() + len(name)  # files of one second are files of two times
    os.utime(chain, (later, later))
    return chain, key


def test_pages_come_by_tls_and_a_new_certificate_is_taken_up(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path, "first")

    async def play() -> tuple[list[bytes], tuple[int, bytes]]:
        running = await served(Samples(), Guard(certificate=chain, key=key))

        def shown() -> bytes:
            address = ("127.0.0.1", running.addresses[0][1])
            return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(address, timeout=30))

        found = [await asyncio.to_thread(shown)]
        certificate(tmp_path, "the second")
        running.renew()
        found.append(await asyncio.to_thread(shown))
        answer = await asyncio.to_thread(ask, running, "/healthz", "https")
        await running.cleanup()
        return found, answer

    (first, second), answer = asyncio.run(play())
    assert b"first" in first
    assert b"the second" in second
    assert answer == (200, b"ok")


def test_connections_in_their_tls_handshake_count_as_all_others(tmp_path: Path) -> None:
    """Strangers who connect and say nothing: the ninth of a peer ends the first, and who speaks is answered."""
    chain, key = certificate(tmp_path, "pages")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    routes = {"/healthz": Route(lambda: Page(TEXT, b"ok"))}
    limits = Limits(head_seconds=120.0, each=8)
    with ExitStack() as stack:
        port = stack.enter_context(serving("127.0.0.1", 0, routes, limits=limits, tls=context))
        silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)) for _ in range(9)]
        assert silent[0].recv(1) == b""
        running = Running([("127.0.0.1", port)], None, Guard(), ExitStack())
        for _ in range(3):
            assert ask(running, "/healthz", "https") == (200, b"ok")


def test_a_certificate_that_cannot_be_read_is_told_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(served(Samples(), Guard(certificate=tmp_path / "no.crt", key=tmp_path / "no.key")))
    with pytest.raises(OSError, match="No such file"):
        asyncio.run(served(Samples(), Guard(token=tmp_path / "none")))


def test_a_certificate_needs_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    scope = ["--all-namespaces"]
    with pytest.raises(SystemExit):
        main.parse([*scope, "--tls-cert", "a"], {})
    assert "give both" in capsys.readouterr().err
    given = {"FINETUNE_OPERATOR_TLS_CERT": "a", "FINETUNE_OPERATOR_TLS_KEY": "b"}
    guard = main.options(main.parse([*scope, "--metrics-token-file", "c"], given)).guard
    assert guard == Guard(certificate=Path("a"), key=Path("b"), token=Path("c"))
    assert main.options(main.parse(scope, {})).guard == Guard()


def test_a_loop_that_does_not_turn_is_not_healthy() -> None:
    vitals = vitals_of(Counters())
    assert vitals.unhealthy() == ""
    vitals.turned = time.monotonic() - OLDEST_TURN - 1
    assert "has been blocked for" in vitals.unhealthy()
    vitals.turned = time.monotonic()
    assert vitals.unhealthy() == ""


def test_jobs_that_come_and_go_while_a_page_is_made_break_nothing() -> None:
    cache, counters, done = Cache(), Counters(), threading.Event()
    counters.registry.register(State(cache, WorkQueue()))

    def comes_and_goes() -> None:
        version = 1
        while not done.is_set():
            version += 2
            raws = [raw_job(version, uid=f"u{n}") for n in range(20)]
            for number, raw in enumerate(raws):
                raw["metadata"] |= {"name": f"a{number}", "uid": f"{number}.{version}"}
                cache.feed(FINETUNEJOBS, "ADDED", raw)
            for raw in raws:
                cache.feed(FINETUNEJOBS, "DELETED", raw)

    changing = threading.Thread(target=comes_and_goes)
    changing.start()
    try:
        end = datetime.datetime.now() + datetime.timedelta(seconds=1)
        while datetime.datetime.now() < end:
            generate_latest(counters.registry)
    finally:
        done.set()
        changing.join()
