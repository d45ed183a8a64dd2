"""What the operator reads of a list: pages of a bounded size, and objects that are nested too deeply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from finetune_api import names
from finetune_operator.decide import decide
from finetune_operator.kube.client import MOST_EVENTS, PAGE, PAGE_BYTES, HttpClient
from finetune_operator.kube.json_depth import Lines, loads
from finetune_operator.kube.kopf_watch import _list_nothing
from finetune_operator.kube.resources import EVENTS, FINETUNEJOBS
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import observe
from tests.support.http_server import serving
from tests.support.operator_objects import DEFAULTS, NOW, SPEC, raw_job

KEY = ("ml", "a")
MIB = 2**20


def listed(count: int, size: int, *, first: int = 0) -> tuple[list[int], int]:
    """Objects of each page that was read of so many objects of so many bytes, the first of them perhaps of others; and
    the largest page in bytes."""
    pages: list[int] = []
    largest = 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal largest
        start, limit = int(request.query.get("continue") or 0), int(request.query["limit"])
        numbers = range(start, min(count, start + limit))
        items = [{"metadata": {"name": str(n)}, "spec": "x" * (size if n else first or size)} for n in numbers]
        pages.append(len(items))
        rest = str(start + limit) if start + limit < count else ""
        text = json.dumps({"metadata": {"resourceVersion": "7", "continue": rest}, "items": items})
        largest = max(largest, len(text) if start else 0)
        return web.Response(text=text, content_type="application/json")

    async def play() -> None:
        async with serving(answer) as url, aiohttp.ClientSession() as session:
            assert len((await HttpClient(session, url).list(FINETUNEJOBS, None)).items) == count

    asyncio.run(play())
    return pages, largest


def test_a_list_is_read_in_pages_of_fifty() -> None:
    pages, _ = listed(120, 10)
    assert (pages, PAGE) == ([50, 50, 20], 50)


def test_a_page_that_is_too_long_is_asked_for_again_with_fewer_objects() -> None:
    pages, largest = listed(30, MIB)
    assert pages[:3] == [30, 12, 3], "the first two were not read to their end"
    assert sum(pages[2:]) == 30
    assert largest <= PAGE_BYTES


def test_a_long_object_does_not_make_the_rest_of_a_list_slow() -> None:
    pages, _ = listed(2000, 10, first=PAGE_BYTES + 1)
    assert pages[:4] == [50, 12, 3, 1]
    assert len(pages) < 120
    assert max(pages[10:]) == 50


def test_an_object_that_is_longer_than_a_page_is_read_alone() -> None:
    pages, _ = listed(2, PAGE_BYTES + 1)
    assert pages[-2:] == [1, 1]


REQUESTS: list[tuple[str, str, bool]] = [
    (f"/apis/finetune.dev/v1alpha1/{names.PLURAL}?limit=50", "kopf's list", True),
    (f"/apis/finetune.dev/v1alpha1/namespaces/ml/{names.PLURAL}?limit=50", "of a namespace", True),
    (f"/apis/finetune.dev/v1alpha1/{names.PLURAL}?watch=true&resourceVersion=7", "its watch", False),
    (f"/apis/finetune.dev/v1alpha1/namespaces/ml/{names.PLURAL}/a", "an object", False),
]


@pytest.mark.parametrize(("path", "what", "nothing"), REQUESTS, ids=[what for _, what, _ in REQUESTS])
def test_kopf_lists_nothing_and_watches_everything(path: str, what: str, nothing: bool) -> None:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.query.get("fieldSelector", ""))
        return web.json_response({})

    async def play() -> None:
        async with serving(answer) as url, aiohttp.ClientSession(middlewares=(_list_nothing,)) as session:
            await (await session.get(f"{url}{path}")).read()

    asyncio.run(play())
    assert asked == ["metadata.name=-" if nothing else ""]


def test_events_that_somebody_wrote_by_the_thousand_are_not_all_read() -> None:
    pages: list[int] = []

    async def answer(request: web.Request) -> web.Response:
        start = int(request.query.get("continue") or 0)
        pages.append(start)
        items = [{"metadata": {"name": str(n)}} for n in range(start, start + 50)]
        return web.json_response({"metadata": {"resourceVersion": "7", "continue": str(start + 50)}, "items": items})

    async def play() -> int:
        async with serving(answer) as url, aiohttp.ClientSession() as session:
            return len((await HttpClient(session, url).list(EVENTS, "ml")).items)

    assert asyncio.run(play()) == MOST_EVENTS


def nested(depth: int) -> str:
    return '{"a":' * depth + '"b{["' + "}" * depth


@pytest.mark.parametrize("depth", [300, 1500, 9000])
def test_a_spec_that_is_nested_too_deeply_is_refused_and_leaves_the_list_readable(depth: int) -> None:
    """The API server takes ten thousand levels below a field without a schema."""
    deep, other = raw_job(spec=SPEC | {"pod": {"affinity": "DEEP"}}), raw_job(uid="other")
    other["metadata"]["name"] = "other"
    page = json.dumps({"items": [deep, other]}).replace('"DEEP"', nested(depth)).encode()
    cache = Cache()
    for raw in loads(page)["items"]:
        cache.feed(FINETUNEJOBS, None, raw)
    assert len(cache.jobs) == 2
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    failure = decide(seen, NOW).status.last_failure
    assert failure is not None
    assert "nested too deeply" in failure.message
    fine = observe(cache, ("ml", "other"), DEFAULTS)
    assert fine is not None
    assert fine.spec is not None


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": [}', b"}" * 2000, b'{"a":' * 2000, b'"' * 2000])
def test_what_is_not_json_is_not_json_at_any_depth(text: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        loads(text)


def test_kopf_can_read_what_is_nested_too_deeply() -> None:
    """Else each event of such a job ended the watch of all jobs, for up to half a minute."""
    events = f'{{"type":"ADDED","object":{nested(1500)}}}\n{{"type":"ADDED","object":{{"n":1}}}}\n'.encode()

    class Content:
        async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
            for start in range(0, len(events), size):
                yield events[start : start + size]

    async def read() -> list[Any]:
        text = b"".join([piece async for piece in Lines(Content()).iter_chunked(100)])
        return [json.loads(line) for line in text.splitlines()]

    deep, other = asyncio.run(read())
    assert (deep["type"], other) == ("ADDED", {"type": "ADDED", "object": {"n": 1}})
