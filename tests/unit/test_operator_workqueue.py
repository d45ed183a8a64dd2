"""The work queue: each key once, one worker a key, later looks, longer pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from finetune_operator.kube.workqueue import LONGEST_RETRY, WorkQueue


def run(story: Callable[[WorkQueue[str]], Awaitable[None]]) -> None:
    async def play() -> None:
        async with asyncio.timeout(60):
            await story(WorkQueue())

    asyncio.run(play())


def test_many_additions_are_one_look() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        for _ in range(5):
            queue.add("a")
        queue.add("b")
        assert queue.depth == 2
        assert [await queue.get(), await queue.get()] == ["a", "b"]

    run(story)


def test_a_key_that_a_worker_has_comes_back_after_it() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        assert queue.depth == 0
        queue.done(key)
        assert queue.depth == 1

    run(story)


def test_a_key_that_rests_holds_nobody_up_and_loses_no_news() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        queue.done(key, rest=0.01)
        queue.add("a")
        queue.add("b")
        assert queue.depth == 1
        assert [await queue.get(), await queue.get()] == ["b", "a"]
        queue.done("a", rest=0.01)
        await asyncio.sleep(0.05)
        assert queue.depth == 0, "no news, no look"
        queue.add("a")
        assert await queue.get() == "a"

    run(story)


def test_a_key_that_rests_does_not_come_back_into_a_queue_that_was_cleared() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        key = await queue.get()
        queue.add("a")
        queue.done(key, rest=0.01)
        queue.clear()
        await asyncio.sleep(0.05)
        assert queue.depth == 0, "a replica that stands by would become unhealthy by it"
        queue.add("a")
        assert await queue.get() == "a"

    run(story)


def test_what_is_urgent_while_a_worker_has_it_is_urgent_after_it() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add("a")
        queue.add("b")
        key = await queue.get()
        queue.add("a", urgent=True)
        queue.add("a")
        queue.done(key)
        assert [await queue.get(), await queue.get()] == ["a", "b"]

    run(story)


def test_the_earliest_of_several_times_counts() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.01)
        queue.add_after("a", 60)
        assert await queue.get() == "a"

    run(story)


def test_a_look_forgets_the_time_that_was_set() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        queue.add_after("a", 0.02)
        queue.add("a")
        queue.done(await queue.get())
        await asyncio.sleep(0.05)
        assert queue.depth == 0

    run(story)


def test_pauses_grow_and_a_success_ends_that() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        pauses = [queue.retry("a") for _ in range(12)]
        assert 0.18 < pauses[0] < 0.32
        assert pauses[3] > 3 * pauses[0]
        assert pauses[-1] <= LONGEST_RETRY * 1.25
        queue.forget("a")
        assert queue.retry("a") < 0.32
        assert queue.retry("a", at_least=7) == 7

    run(story)


def test_ages() -> None:
    now = [0.0]

    async def story(_: WorkQueue[str]) -> None:
        queue: WorkQueue[str] = WorkQueue(clock=lambda: now[0])
        assert queue.oldest_seconds() == 0
        queue.add("a")
        now[0] = 5.0
        queue.add("b")
        assert queue.oldest_seconds() == pytest.approx(5)

    run(story)


def test_urgent_keys_go_first_and_the_others_still_get_their_turn() -> None:
    async def story(queue: WorkQueue[str]) -> None:
        for key in ("later", "promoted", "last"):
            queue.add(key)
        for number in range(4):
            queue.add(f"u{number}", urgent=True)
        queue.add("promoted", urgent=True)
        taken = [await queue.get() for _ in range(queue.depth)]
        assert taken == ["u0", "u1", "u2", "later", "u3", "promoted", "last"]

    run(story)
