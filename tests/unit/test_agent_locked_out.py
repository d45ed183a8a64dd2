"""Strangers who reach an agent's port, or the operator's, keep nobody from an answer."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from finetune_api import pages
from finetune_api.pages import TEXT, Limits, Page, Route, serving
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent import serve
from finetune_trainer.rundir import RunDir

PLAN = RunPlan(
    job=JobIdentity(namespace="team", name="a", uid="u"), attempt=3, token="t0ken", nonce="n0nce",
    spec=FineTuneJobSpec(command=("python", "train.py")),
)  # fmt: skip


def ask(port: int, path: str = "/healthz", token: str = "", **headers: str) -> tuple[int, bytes]:
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@contextmanager
def agent(tmp_path: Path, plan: RunPlan = PLAN, **limits: Any) -> Iterator[int]:
    known = Limits(**limits)
    with serve.serving("127.0.0.1", 0, plan=plan, run_dir=RunDir(tmp_path), phase=lambda: "waiting", limits=known) as p:
        yield p


def strangers(stack: ExitStack, port: int, count: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(count)]


def closed(connection: socket.socket) -> bool:
    """Waits for the other side's end."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("count", [16, 64, 200])
def test_silent_connections_do_not_keep_the_operator_out(tmp_path: Path, count: int) -> None:
    # They may stay for a minute here, so that what lets the operator in is not that they were timed out.
    with agent(tmp_path, head_seconds=60) as port, ExitStack() as stack:
        strangers(stack, port, count)
        status, body = ask(port, "/progress", "t0ken")
        assert (status, json.loads(body)["attempt"]) == (200, 3)


def test_one_peer_has_eight_connections_and_a_new_one_ends_the_oldest(tmp_path: Path) -> None:
    with agent(tmp_path, head_seconds=60) as port, ExitStack() as stack:
        first, *_ = strangers(stack, port, 9)
        assert closed(first)


def test_who_says_nothing_for_a_second_is_closed(tmp_path: Path) -> None:
    with agent(tmp_path, head_seconds=0.2) as port, ExitStack() as stack:
        silent, dripping = strangers(stack, port, 2)
        dripping.sendall(b"GET /progress HTTP/1.1\r\nX: ")
        assert closed(silent)
        assert closed(dripping)


def test_slow_readers_are_closed_and_hold_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, end = Event(), pages._Server._end

    def noted(server: pages._Server, connection: pages._Connection) -> None:
        end(server, connection)
        ended.set()

    monkeypatch.setattr(pages._Server, "_end", noted)
    routes = {"/big": Route(lambda: Page(TEXT, b"x" * 50_000_000))}
    limits = Limits(head_seconds=60, answer_seconds=0.2)
    with serving("127.0.0.1", 0, routes, limits=limits) as port, ExitStack() as stack:
        (slow,) = strangers(stack, port, 1)
        slow.sendall(b"GET /big HTTP/1.1\r\n\r\n")
        assert ended.wait(60), "before anything was read"
        got = 0
        while piece := _received(slow):
            got += len(piece)
        assert got < 50_000_000


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except ConnectionError:
        return b""


def test_who_showed_a_token_is_answered_whoever_else_comes() -> None:
    asked, go = Event(), Event()

    def slow() -> Page:
        asked.set()
        assert go.wait(60)
        return Page(TEXT, b"done")

    limits = Limits(each=2, total=4, head_seconds=60)
    with serving("127.0.0.1", 0, {"/progress": Route(slow, token=lambda: "t")}, limits=limits) as port:
        found: list[tuple[int, bytes]] = []
        operator = Thread(target=lambda: found.append(ask(port, "/progress", "t")))
        operator.start()
        assert asked.wait(30)
        with ExitStack() as stack:
            strangers(stack, port, 20)
            go.set()
            operator.join(30)
        assert found == [(200, b"done")]


def test_a_page_is_made_once_for_all_who_wait_for_it() -> None:
    made: list[int] = []
    first, go = Event(), Event()

    def page() -> Page:
        made.append(1)
        first.set()
        assert go.wait(60)
        return Page(TEXT, b"page")

    with serving("127.0.0.1", 0, {"/metrics": Route(page, keep=lambda _: 60.0)}) as port:
        readers = [Thread(target=ask, args=(port, "/metrics")) for _ in range(6)]
        for reader in readers:
            reader.start()
        assert first.wait(30)
        go.set()
        for reader in readers:
            reader.join(30)
        assert ask(port, "/metrics") == (200, b"page")
    assert len(made) == 1


def test_one_page_that_takes_long_does_not_hold_up_another() -> None:
    asked, go = Event(), Event()

    def slow() -> Page:
        asked.set()
        assert go.wait(60)
        return Page(TEXT, b"")

    routes = {"/metrics": Route(slow), "/healthz": Route(lambda: Page(TEXT, b"ok"))}
    with serving("127.0.0.1", 0, routes) as port:
        waiting = Thread(target=ask, args=(port, "/metrics"))
        waiting.start()
        assert asked.wait(30)
        assert ask(port) == (200, b"ok")
        go.set()
        waiting.join(30)


@pytest.mark.parametrize(("shown", "status"), [("", 401), ("other", 401), ("t0ken", 200)])
def test_progress_is_for_who_knows_the_plans_token(tmp_path: Path, shown: str, status: int) -> None:
    with agent(tmp_path) as port:
        assert ask(port, "/progress", shown)[0] == status
        assert ask(port, "/metrics", shown)[0] == 200


def test_a_report_says_whose_it_is(tmp_path: Path) -> None:
    with agent(tmp_path) as port:
        told = json.loads(ask(port, "/progress", "t0ken")[1])
    assert (told["uid"], told["nonce"]) == ("u", "n0nce")


def test_an_older_operators_plan_has_no_token_and_its_operator_is_answered(tmp_path: Path) -> None:
    older = PLAN.model_copy(update={"token": None, "nonce": None})
    with agent(tmp_path, older) as port:
        assert ask(port, "/progress")[0] == 200
        assert ask(port, "/progress", "whatever")[0] == 200


BROKEN = [
    (b"GET / HTTP/1.1\r\n\r\n", b"404"),
    (b"POST /healthz HTTP/1.1\r\n\r\n", b"405"),
    (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
    (b"GET /healthz\r\n\r\n", b"400"),
    (b"GET /healthz HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n", b"400"),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", b""),
    (b"GET /healthz HTTP/1.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n", b"200"),
]


@pytest.mark.parametrize(("sent", "then"), BROKEN)
def test_what_is_not_a_request_gets_a_short_answer_or_none(tmp_path: Path, sent: bytes, then: bytes) -> None:
    with agent(tmp_path) as port, ExitStack() as stack:
        (connection,) = strangers(stack, port, 1)
        connection.sendall(sent)
        head = b"".join(iter(lambda: _received(connection), b"")).partition(b"\r\n")[0]
        assert then in head
        assert ask(port)[0] == 200


def test_a_page_that_cannot_be_made_is_an_error_and_the_others_are_there() -> None:
    routes = {"/metrics": Route(lambda: Page(TEXT, b"" * (1 // 0))), "/healthz": Route(lambda: Page(TEXT, b"ok"))}
    with serving("127.0.0.1", 0, routes) as port:
        assert ask(port, "/metrics")[0] == 500
        assert ask(port) == (200, b"ok")


def test_who_stops_serving_is_not_held_up_by_a_thread_that_does_not_get_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, go = Event(), Event()

    def token() -> str:
        """Called by the event loop, which stands still meanwhile."""
        asked.set()
        assert go.wait(60)
        return "t"

    monkeypatch.setattr(pages, "ENDING_SECONDS", 0.05)
    with ExitStack() as stack:
        with serving("127.0.0.1", 0, {"/x": Route(lambda: Page(TEXT, b""), token=token)}) as port:
            (connection,) = strangers(stack, port, 1)
            connection.sendall(b"GET /x HTTP/1.1\r\n\r\n")
            assert asked.wait(30)
        go.set()


def test_a_port_that_is_taken_is_an_error_at_once() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Address already in use"),
        serving("127.0.0.1", taken.getsockname()[1], {}),
    ):
        pass
