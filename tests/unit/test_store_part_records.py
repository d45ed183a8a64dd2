"""How ranks report what each has stored of a checkpoint: late, damaged, or left by an earlier save."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Event

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store import checkpoint_parts
from finetune_trainer.store.checkpoint_parts import Parts
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import FileEntry
from tests.support.faulty_stores import RUN, MemoryFolder
from tests.support.sharded_saves import on, saving


@dataclass
class Hours:
    """A clock that only waiting moves; `events` happen in the wait that reaches their time."""

    now: float = 0.0
    events: dict[float, Callable[[], None]] = field(default_factory=dict)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.events if at <= self.now]:
            self.events.pop(at)()


FILE = {"weights.1-of-3.safetensors": FileEntry(sha256="1" * 64, size=1)}


def records(folder: Folder, hours: Hours, save: str = "second") -> Parts:
    return replace(CheckpointStore(folder, RUN).parts(save, 3), clock=lambda: hours.now, sleep=hours.sleep)


def test_what_another_save_of_the_step_has_left_is_not_taken() -> None:
    folder, hours = MemoryFolder(), Hours()
    for part in (1, 2):
        records(folder, hours, "first").tell(part, FILE)
    with pytest.raises(FinetuneError, match=r"nothing was heard in memory://test of the files of rank 1, 2 ") as error:
        records(folder, hours).told(Event())
    assert error.value.reason is Reason.StorageUnavailable
    assert checkpoint_parts.PATIENCE <= hours.now < checkpoint_parts.PATIENCE + 3


def test_every_save_has_a_name_of_its_own() -> None:
    folder = MemoryFolder()
    on(2, folder, saving(1))
    on(2, folder, saving(1))
    told = [path for change, path in folder.changes if change == "put" and "/parts/" in path]
    assert len(set(told)) == 2


def test_a_rank_that_is_slow_is_waited_for_as_long_as_others_go_on() -> None:
    folder, hours = MemoryFolder(), Hours()
    waiting = records(folder, hours)
    hours.events = {
        0.9 * checkpoint_parts.PATIENCE: lambda: waiting.tell(2, {}),
        1.8 * checkpoint_parts.PATIENCE: lambda: waiting.tell(1, FILE),
    }
    assert waiting.told(Event()) == FILE


@pytest.mark.parametrize("peer_saves_at", [None, 60 + checkpoint_parts.LEAVING / 2])
def test_who_wants_to_end_does_not_wait_long(peer_saves_at: float | None) -> None:
    folder, hours, leaving = MemoryFolder(), Hours(), Event()
    waiting = records(folder, hours)
    hours.events = {60.0: leaving.set}
    if peer_saves_at is None:
        with pytest.raises(FinetuneError, match="nothing was heard"):
            waiting.told(leaving)
        assert hours.now < 60 + checkpoint_parts.LEAVING + 5
    else:
        waiting.tell(2, {})
        hours.events[peer_saves_at] = lambda: waiting.tell(1, FILE)
        assert waiting.told(leaving) == FILE


def test_a_record_that_cannot_be_read_is_no_part() -> None:
    folder, hours = MemoryFolder(), Hours()
    for part in (1, 2):
        records(folder, hours).tell(part, FILE)
    folder.files[next(path for path in folder.files if path.endswith("/2.json"))] = b"{"
    with pytest.raises(FinetuneError, match=r"parts/second/2.json is damaged"):
        records(folder, hours).told(Event())
