"""Requests, against a server that answers as told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_operator.kube import client as client_module
from finetune_operator.kube.client import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    HttpClient,
    Invalid,
    NotFound,
    TooManyRequests,
    Unavailable,
)
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS
from tests.support.http_server import serving

Answer = tuple[int, dict[str, Any], dict[str, str]]


class Server:
    """Gives the answers in turn, the last one for ever; keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, str, Any]] = []

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        sent = json.loads(body) if body else None
        self.requests.append((request.method, request.path_qs, request.headers.get("Content-Type", ""), sent))
        status, answer, headers = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.json_response(answer, status=status, headers=headers)


def ask(server: Server, question: Callable[[HttpClient], Awaitable[Any]]) -> Any:
    async def play() -> Any:
        async with asyncio.timeout(60), serving(server.answer) as url, aiohttp.ClientSession() as session:
            return await question(HttpClient(session, url))

    return asyncio.run(play())


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_PAUSE", 0.001)


ERRORS = [
    (400, "", Invalid),
    (403, "", Forbidden),
    (404, "", NotFound),
    (409, "AlreadyExists", AlreadyExists),
    (409, "Conflict", Conflict),
    (410, "", Gone),
    (422, "", Invalid),
    (429, "", TooManyRequests),
    (500, "", Unavailable),
    (503, "", Unavailable),
]


@pytest.mark.parametrize(("status", "reason", "kind"), ERRORS)
def test_errors_are_typed_and_carry_the_servers_words(status: int, reason: str, kind: type[ApiError]) -> None:
    server = Server((status, {"reason": reason, "message": "quota exceeded"}, {}))
    with pytest.raises(kind, match="quota exceeded") as raised:
        ask(server, lambda client: client.get(JOBS, ("ml", "a")))
    assert raised.value.status == status


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_passes_is_tried_again(status: int) -> None:
    server = Server((status, {}, {}), (200, {"kind": "Job"}, {}))
    assert ask(server, lambda client: client.get(JOBS, ("ml", "a"))) == {"kind": "Job"}
    assert len(server.requests) == 2


def test_tries_are_bounded() -> None:
    server = Server((503, {}, {}))
    with pytest.raises(Unavailable):
        ask(server, lambda client: client.get(JOBS, ("ml", "a")))
    assert len(server.requests) == client_module.TRIES


def test_a_long_retry_after_is_left_to_the_queue() -> None:
    server = Server((429, {}, {"Retry-After": "120"}))
    with pytest.raises(TooManyRequests) as raised:
        ask(server, lambda client: client.get(JOBS, ("ml", "a")))
    assert (raised.value.retry_after, len(server.requests)) == (120, 1)


def test_what_cannot_pass_is_not_tried_again() -> None:
    server = Server((422, {"message": "no"}, {}))
    with pytest.raises(Invalid):
        ask(server, lambda client: client.create(JOBS, {"metadata": {"namespace": "ml", "name": "a"}}))
    assert len(server.requests) == 1


def test_no_server_is_unavailable() -> None:
    async def play() -> None:
        async with aiohttp.ClientSession() as session:
            await HttpClient(session, "http://127.0.0.1:1").get(JOBS, ("ml", "a"))

    with pytest.raises(Unavailable):
        asyncio.run(play())


def test_a_status_is_replaced_on_the_subresource_under_our_name() -> None:
    body = {"metadata": {"namespace": "ml", "name": "a", "uid": "u"}, "status": {"phase": "Running"}}
    server = Server((200, {}, {}))
    ask(server, lambda client: client.replace_status(body))
    ((method, path, _, sent),) = server.requests
    assert (method, sent) == ("PUT", body | {"spec": {}})
    assert path == "/apis/finetune.dev/v1alpha1/namespaces/ml/finetunejobs/a/status?fieldManager=finetune-operator"


def test_deletion_is_of_one_uid_and_in_the_foreground() -> None:
    server = Server((200, {"kind": "Job", "metadata": {}}, {}))
    ask(server, lambda client: client.delete(JOBS, ("ml", "a-1"), uid="c"))
    ((_, _, _, sent),) = server.requests
    assert (sent["propagationPolicy"], sent["preconditions"]) == ("Foreground", {"uid": "c"})


@pytest.mark.parametrize("status", [404, 409])
def test_what_is_gone_is_deleted(status: int) -> None:
    server = Server((status, {"reason": "Conflict"}, {}))
    assert ask(server, lambda client: client.delete(JOBS, ("ml", "a-1"), uid="c")) is None


def test_a_list_takes_all_pages() -> None:
    first = {"items": [{"n": 1}], "metadata": {"continue": "next", "resourceVersion": "7"}}
    second = {"items": [{"n": 2}], "metadata": {"resourceVersion": "7"}}
    server = Server((200, first, {}), (200, second, {}))
    listing = ask(server, lambda client: client.list(PODS, None))
    assert ([item["n"] for item in listing.items], listing.version) == ([1, 2], "7")
    assert server.requests[0][1] == "/api/v1/pods?limit=50&labelSelector=finetune.dev%2Fjob-name"
    assert "continue=next" in server.requests[1][1]


def test_a_list_of_our_own_kind_has_no_selector() -> None:
    server = Server((200, {"items": [], "metadata": {}}, {}))
    ask(server, lambda client: client.list(FINETUNEJOBS, "ml"))
    assert server.requests[0][1] == "/apis/finetune.dev/v1alpha1/namespaces/ml/finetunejobs?limit=50"
