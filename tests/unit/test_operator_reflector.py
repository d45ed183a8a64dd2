"""Following Jobs and pods: where a watch goes on after it broke, and when a list is made again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from finetune_operator.kube import reflector
from finetune_operator.kube.client import ApiError, Forbidden, Gone, Unavailable, WatchEvent
from finetune_operator.kube.reflector import Reflector
from finetune_operator.kube.resources import PODS, Raw, Resource

LISTED = 100

BREAKS: list[tuple[str, ApiError | None, list[int], int]] = [
    ("the server ends it", None, [100, 107], 1),
    ("the connection is lost", Unavailable("reset"), [100, 107], 1),
    ("the server is busy", Unavailable("busy", status=503), [100, 107], 1),
    ("its history is gone", Gone("too old", status=410), [100, 100], 2),
    ("the version is ahead of the server", Unavailable("too large", status=504), [100, 100], 2),
    ("it may not watch", Forbidden("no", status=403), [100, 100], 2),
]


@pytest.mark.parametrize(("error", "begun", "lists"), [row[1:] for row in BREAKS], ids=[row[0] for row in BREAKS])
def test_where_a_watch_goes_on(
    error: ApiError | None, begun: list[int], lists: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "Backoff", lambda: [0.0] * 10)
    watched: list[int] = []
    listed: list[Resource] = []
    fed: list[str] = []
    done = asyncio.Event()

    class Stream:
        async def watch(self, _resource: Resource, _namespace: str | None, version: int) -> AsyncIterator[WatchEvent]:
            watched.append(version)
            if len(watched) == len(begun):
                done.set()
                await asyncio.Event().wait()
            yield WatchEvent("OPEN", None)
            yield WatchEvent("ADDED", {"metadata": {"name": "a", "resourceVersion": "105"}})
            yield WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "107"}})
            if error:
                raise error

    async def make_list(resource: Resource, namespace: str | None) -> int:
        listed.append(resource)
        return LISTED

    def feed(resource: Resource, kind: str | None, raw: Raw) -> None:
        fed.append(raw["metadata"]["name"])
        raise ValueError("an event that cannot be taken stops nothing")

    async def story() -> None:
        heard: dict[tuple[str, str | None], float] = {}
        following = Reflector(stream=Stream(), listed=make_list, fed=feed, heard=heard)
        task = asyncio.create_task(following.run([(PODS, None)]))
        async with asyncio.timeout(60):
            await done.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (PODS.plural, None) in heard

    asyncio.run(story())
    assert watched == begun
    assert len(listed) == lists
    assert fed == ["a"]
