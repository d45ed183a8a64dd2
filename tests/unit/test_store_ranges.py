"""Remote files that are read in place: the same bytes as of a local one, and no more of them than are needed."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass, field

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.ranges import FIRST, MOST, SHORT, Ranges, Seekable, Sequential


@dataclass
class Remote:
    content: bytes
    asked: list[tuple[int, int]] = field(default_factory=list)

    def ranges(self) -> Ranges:
        return Ranges("s3://corp/a", len(self.content), self.fetch)

    def fetch(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        return self.content[start:stop]


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, FIRST - 1, FIRST, FIRST + 1, 3 * FIRST, 3 * FIRST + 1, 40 << 20])
def test_from_start_to_end_every_byte_comes_once(size: int) -> None:
    remote = Remote(noise(size))
    with Sequential(remote.ranges()) as raw:
        assert io.BufferedReader(raw, 1000).read() == remote.content
        assert raw.sha256() == hashlib.sha256(remote.content).hexdigest()
    assert sum(stop - start for start, stop in remote.asked) == size
    assert max((stop - start for start, stop in remote.asked), default=0) <= MOST


def test_a_look_at_the_start_reads_one_block_and_the_rest_grows() -> None:
    remote = Remote(noise(20 << 20))
    with Sequential(remote.ranges()) as raw:
        assert raw.read(100) == remote.content[:100]
        assert remote.asked == [(0, FIRST)]
        raw.read(FIRST)
        raw.read(1)
    assert remote.asked == [(0, FIRST), (FIRST, 3 * FIRST), (3 * FIRST, 7 * FIRST)], "one block ahead"


def test_a_digest_is_of_the_whole_file_however_much_was_used() -> None:
    remote = Remote(noise(3 << 20))
    with Sequential(remote.ranges()) as raw:
        raw.read(100)
        assert raw.sha256() == hashlib.sha256(remote.content).hexdigest()


def test_a_failure_ahead_is_raised_where_its_bytes_are_wanted() -> None:
    content = noise(4 * FIRST)

    def fetch(start: int, stop: int) -> bytes:
        if start >= 3 * FIRST:
            raise FinetuneError(Reason.StorageUnavailable, "the store is away")
        return content[start:stop]

    with Sequential(Ranges("s3://corp/a", len(content), fetch)) as raw:
        reader = io.BufferedReader(raw)
        assert reader.read(3 * FIRST) == content[: 3 * FIRST]
        with pytest.raises(FinetuneError, match="the store is away"):
            reader.read(1)


def test_an_answer_that_is_too_short_is_no_answer() -> None:
    with pytest.raises(FinetuneError, match="9 bytes came where 10 were asked for") as caught:
        Ranges("s3://corp/a", 100, lambda start, stop: b"x" * (stop - start - 1)).read(0, 10)
    assert caught.value.reason is Reason.StorageUnavailable


def test_any_part_is_that_part() -> None:
    remote = Remote(noise(4 * SHORT + 17))
    chosen = random.Random(1)
    with Seekable(remote.ranges()) as file:
        for _ in range(300):
            start, size = chosen.randrange(len(remote.content)), chosen.choice([1, 8, 1000, SHORT, 2 * SHORT])
            file.seek(start)
            assert file.read(size) == remote.content[start : start + size]
            assert file.tell() == min(start + size, len(remote.content))
        assert file.seek(-5, io.SEEK_END) == len(remote.content) - 5
        assert file.read() == remote.content[-5:]
        assert file.read(3) == b""


def test_short_reads_near_each_other_are_one_request() -> None:
    remote = Remote(noise(4 * SHORT))
    with Seekable(remote.ranges()) as file:
        for start, size in ((4 * SHORT - 10, 10), (4 * SHORT - 300, 290), (0, 6), (8, 200)):
            file.seek(start)
            assert file.read(size) == remote.content[start : start + size]
    assert remote.asked == [(3 * SHORT, 4 * SHORT), (0, SHORT)]
