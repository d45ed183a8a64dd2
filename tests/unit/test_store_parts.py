"""Checkpoints that ranks save in parts: whole or not there, whoever dies when, and read by any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Event
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.parallel.base import Place, Saved, rows_of
from finetune_trainer.store import parts
from finetune_trainer.store.checkpoints import Broken, CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import FileEntry
from finetune_trainer.store.parts import Parts
from finetune_trainer.train.checkpoint import CheckpointWriter, Snapshot, load
from finetune_trainer.train.keeper import Keeper
from finetune_trainer.train.leave import SaveThread
from finetune_trainer.train.state import Best, State
from finetune_trainer.train.stored import Stored
from tests.unit.store_helpers import RUN, DyingFolder, MemoryFolder, deaths

T = TypeVar("T")


def tensors(step: int = 1) -> dict[str, Tensor]:
    """Of seven rows, of fewer than there are ranks, of bytes with their scales, of 16 bits."""
    made = torch.Generator().manual_seed(step)
    return {
        "weights/a": torch.randn(7, 3, generator=made),
        "weights/b": torch.randn(2, generator=made),
        "weights/c": torch.randn(6, 2, 2, generator=made).bfloat16(),
        "moments/a.first": torch.randint(0, 256, (7, 3), generator=made).to(torch.uint8),
        "moments/a.first.scales": torch.randn(7, 1, generator=made),
    }


def part_of(whole: dict[str, Tensor], part: int, count: int) -> dict[str, Tensor]:
    return {name: tensor[rows_of(part, count, len(tensor))] for name, tensor in whole.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize(
    ("count", "length", "rows"),
    [
        (1, 7, [(0, 7)]),
        (3, 7, [(0, 3), (3, 6), (6, 7)]),
        (4, 5, [(0, 2), (2, 4), (4, 5), (5, 5)]),
        (4, 2, [(0, 1), (1, 2), (2, 2), (2, 2)]),
        (2, 0, [(0, 0), (0, 0)]),
    ],
)
def test_rows_are_shared_out_as_torch_does(count: int, length: int, rows: list[tuple[int, int]]) -> None:
    shares = [rows_of(part, count, length) for part in range(count)]
    assert [(share.start, share.stop) for share in shares] == rows
    chunks = [len(chunk) for chunk in torch.empty(length).chunk(count)] if length else []
    assert [stop - start for start, stop in rows if stop > start] == chunks


# A gang in threads, with weights that are nothing but their rows.


class Gang:
    """The part of parallel.base.Gang that checkpoints need, between threads of this process."""

    def __init__(self, place: Place, shared: dict[int, Any], barrier: Barrier) -> None:
        self.place, self._shared, self._barrier = place, shared, barrier

    def broadcast_json(self, value: Any) -> Any:
        return self._gathered(value)[0]

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        return [float(sum(column)) for column in zip(*self._gathered(list(counters)), strict=True)]

    def barrier(self) -> None:
        self._barrier.wait(60)

    def _gathered(self, value: Any) -> list[Any]:
        self._shared[self.place.rank] = value
        self.barrier()
        all_values = [self._shared[rank] for rank in range(self.place.world_size)]
        self.barrier()
        return all_values


@dataclass
class Rows:
    """parallel.base.Weights, as far as checkpoints see them: one rank's rows of `tensors`."""

    parts: int
    part: int
    mine: dict[str, Tensor]
    steps: int = 0

    @classmethod
    def of(cls, step: int, place: Place, parts: int) -> Rows:
        return cls(parts, place.rank % parts, part_of(tensors(step), place.rank % parts, parts))

    def tensors(self) -> dict[str, Tensor]:
        return self.mine

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        self.steps = steps
        self._read(saved, list(self.mine))

    def restore_weights(self, saved: Saved | None) -> None:
        self._read(saved, [name for name in self.mine if name.startswith("weights/")])

    def _read(self, saved: Saved | None, names: list[str]) -> None:
        for name in names if saved is not None else ():
            rows = rows_of(self.part, self.parts, len(tensors()[name]))
            self.mine[name] = saved.read(name, rows)


def on(world: int, folders: Folder | Sequence[Folder], act: Callable[[Keeper, Place], T], *, keep: int = 2) -> list[T]:
    """What each of `world` ranks answers, which act at once."""
    shared: dict[int, Any] = {}
    barrier = Barrier(world)

    def rank(number: int) -> T:
        place = Place(number, number, world, world)
        folder = folders[number] if isinstance(folders, Sequence) else folders
        store = CheckpointStore(folder, RUN)
        keeper = Keeper(Gang(place, shared, barrier), store, keep, every_steps=1, every_seconds=None)  # type: ignore[arg-type]
        return act(keeper, place)

    def ended(number: int) -> T:
        try:
            return rank(number)
        except BaseException:
            barrier.abort()  # as a lost connection is noticed
            raise

    with ThreadPoolExecutor(world) as pool:
        return [future.result() for future in [pool.submit(ended, number) for number in range(world)]]


def saving(step: int, *, parts: int | None = None, best: int | None = None) -> Callable[[Keeper, Place], Rows]:
    def act(keeper: Keeper, place: Place) -> Rows:
        weights = Rows.of(step, place, parts or place.world_size)
        state = State(step=step, best=Best(step=best, loss=1.0) if best else None)
        keeper.save(state, weights)  # type: ignore[arg-type]
        keeper.wait()
        return weights

    return act


def resuming(keeper: Keeper, place: Place) -> tuple[int, Rows]:
    """(step, weights) of a new process, whose own were others."""
    weights = Rows.of(99, place, place.world_size)
    return keeper.resume(weights).step, weights  # type: ignore[arg-type]


def resumed(folder: Folder, world: int) -> tuple[int, dict[str, Tensor]] | None:
    """(step, whole tensors) as so many ranks read them; None where there is no checkpoint."""
    found = on(world, folder, resuming)
    assert len({step for step, _ in found}) == 1
    if not found[0][0]:
        return None
    names = found[0][1].mine
    return found[0][0], {name: torch.cat([rows.mine[name] for _, rows in found]) for name in names}


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
@pytest.mark.parametrize("writers", [1, 2, 3, 5])
def test_any_number_of_ranks_reads_what_any_number_saved(writers: int, readers: int) -> None:
    folder = MemoryFolder()
    on(writers, folder, saving(4))
    found = resumed(folder, readers)
    assert found is not None
    assert found[0] == 4
    assert same(found[1], tensors(4))


@pytest.mark.parametrize("writers", [1, 2, 5])
def test_whoever_wants_the_whole_gets_it(writers: int) -> None:
    folder = MemoryFolder()
    on(writers, folder, saving(4))
    store = CheckpointStore(folder, RUN)
    checkpoint = store.latest()
    assert checkpoint is not None
    assert same(dict(load(store, checkpoint).tensors), tensors(4))
    stored = Stored(store, checkpoint)
    assert same({name: stored.read(name, slice(None)) for name in tensors()}, tensors(4))


def test_replicas_save_once() -> None:
    """Four ranks, of which two have the same part."""
    folder = MemoryFolder()
    on(4, folder, saving(4, parts=2))
    found = resumed(folder, 2)
    assert found is not None
    assert same(found[1], tensors(4))
    assert set(CheckpointStore(folder, RUN).get(4).files) == {
        "state.json",
        *(f"{group}.{part}-of-2.safetensors" for group in ("weights", "moments") for part in (0, 1)),
    }


def test_a_rank_stores_no_more_than_its_share_and_the_manifest_is_last() -> None:
    folder = MemoryFolder()
    on(2, folder, saving(4))
    puts = [path for change, path in folder.changes if change == "put"]
    assert puts[-1].endswith("checkpoints/000000004.json")
    assert not [path for path in folder.files if "/parts/" in path]
    for name, entry in CheckpointStore(folder, RUN).get(4).files.items():
        group = name.partition(".")[0]
        rows = sum(t[rows_of(0, 2, len(t))].nbytes for n, t in tensors().items() if n.startswith(group))
        assert name == "state.json" or entry.size < rows + 600  # and a header


def test_only_what_changed_is_sent() -> None:
    folder = MemoryFolder()

    def twice(keeper: Keeper, place: Place) -> None:
        for step in (1, 2):
            weights = Rows.of(1, place, place.world_size)
            weights.mine["moments/a.first"] = weights.mine["moments/a.first"] + step
            keeper.save(State(step=step), weights)  # type: ignore[arg-type]
        keeper.wait()

    on(2, folder, twice)
    sent = [path for change, path in folder.changes if change == "put" and "/blobs/" in path]
    assert len(sent) == 2 + 2 * (2 + 1), "weights once, moments and the state twice"


def test_a_rank_that_cannot_store_its_part_ends_the_gang_and_nothing_is_committed() -> None:
    """Long before the first rank would give up waiting for it."""
    folder = MemoryFolder()

    def act(keeper: Keeper, place: Place) -> str:
        try:
            saving(1)(keeper, place)
        except (FinetuneError, BrokenBarrierError) as error:
            return f"{type(error).__name__} {error}"
        return "saved"

    full = DyingFolder(folder, at=1, after=False)
    first, second = on(2, [folder, cast(Folder, full)], act)
    for thread in threading.enumerate():
        if isinstance(thread, SaveThread):
            thread.leaving.set()
    assert second.startswith("FinetuneError StorageUnavailable: the store is away")
    assert first.startswith("BrokenBarrierError")
    assert CheckpointStore(folder, RUN).steps() == []


@dataclass
class Slow(MemoryFolder):
    """The first rank's view: it commits step 1 once others store something again, or have had the time."""

    stored_again: Event = field(default_factory=Event)

    def put(self, path: str, data: bytes | Path) -> None:
        if path.endswith("/000000001.json"):
            self.stored_again.wait(0.3)
        super().put(path, data)


@dataclass
class Watched(MemoryFolder):
    """Another rank's view of the same files."""

    first: Slow = field(default_factory=Slow)
    told: bool = False

    def put(self, path: str, data: bytes | Path) -> None:
        if self.told:
            self.first.stored_again.set()
        self.told = self.told or "/parts/" in path
        super().put(path, data)


def test_nobody_stores_what_the_first_rank_would_take_for_left_over() -> None:
    first = Slow()
    folders = [first, Watched(files=first.files, changes=first.changes, first=first)]

    def twice(keeper: Keeper, place: Place) -> None:
        for step in (1, 2):
            keeper.save(State(step=step), Rows.of(step, place, 2))  # type: ignore[arg-type]
        keeper.wait()

    on(2, folders, twice)
    manifest = first.changes.index(("put", f".finetune/{RUN.uid}/checkpoints/000000001.json"))
    blobs = [at for at, (change, path) in enumerate(first.changes) if change == "put" and "/blobs/" in path]
    assert len([at for at in blobs if at < manifest]) == 5
    found = resumed(first, 2)
    assert found is not None
    assert same(found[1], tensors(2))


def test_keep_and_the_best_are_honoured() -> None:
    folder = MemoryFolder()

    def act(keeper: Keeper, place: Place) -> None:
        for step in range(1, 6):
            saving(step, best=2 if step > 1 else None)(keeper, place)

    on(3, folder, act)
    assert CheckpointStore(folder, RUN).steps() == [2, 4, 5]
    assert len([path for path in folder.files if "/blobs/" in path]) == 3 * (3 * 2 + 1)


def test_the_best_weights_come_back_and_moments_stay() -> None:
    folder = MemoryFolder()

    def act(keeper: Keeper, place: Place) -> Rows:
        saving(1, best=1)(keeper, place)
        weights = saving(2, best=1)(keeper, place)
        keeper.restore_best(State(step=2, best=Best(step=1, loss=1.0)), weights)  # type: ignore[arg-type]
        return weights

    ranks = on(3, folder, act)
    found = {name: torch.cat([rank.mine[name] for rank in ranks]) for name in tensors()}
    expected = {name: t if name.startswith("weights/") else tensors(2)[name] for name, t in tensors(1).items()}
    assert same(found, expected)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
@pytest.mark.parametrize("name", ["weights.0-of-2.safetensors", "moments.1-of-2.safetensors", "state.json"])
@pytest.mark.parametrize("readers", [2, 3])
def test_all_ranks_fall_back_where_one_finds_a_broken_part(
    readers: int, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = MemoryFolder()
    on(2, folder, saving(1))
    on(2, folder, saving(2))
    blob = f".finetune/{RUN.uid}/blobs/{CheckpointStore(folder, RUN).get(2).files[name].sha256}"
    data = folder.files.pop(blob)
    if damage != "missing":
        folder.files[blob] = data[:-1] + (bytes([data[-1] ^ 1]) if damage == "flipped" else b"")
    found = resumed(folder, readers)
    assert found is not None
    assert found[0] == 1
    assert same(found[1], tensors(1))
    assert f"checkpoint of step 2 is broken: {name} is " in caplog.text


def test_the_best_that_broke_with_no_other_stops_all_ranks() -> None:
    folder = MemoryFolder()
    on(2, folder, saving(1))
    entry = CheckpointStore(folder, RUN).get(1).files["weights.1-of-2.safetensors"]
    folder.files[f".finetune/{RUN.uid}/blobs/{entry.sha256}"] += b"?"

    def act(keeper: Keeper, place: Place) -> str:
        with pytest.raises(Broken) as error:
            keeper.restore_best(State(step=2, best=Best(step=1, loss=1.0)), Rows.of(2, place, 2))  # type: ignore[arg-type]
        return error.value.message

    first, second = on(2, folder, act)
    assert first == second
    assert first.partition(" ")[0] in ("another", "weights.1-of-2.safetensors")


def test_whoever_dies_when_the_checkpoint_before_or_the_new_one_is_whole() -> None:
    """Part 1 is stored and told, then part 0, the manifest, and what is pruned: one process after the other, so that
    every moment can be tried."""

    def act(folder: Folder) -> None:
        store = CheckpointStore(folder, RUN)
        for part in (1, 0):
            writer = CheckpointWriter(store, keep=2)
            writer.submit(2, Snapshot(part_of(tensors(2), part, 2), {"step": 2}, part, 2), save="second")
            writer.wait()

    def start() -> MemoryFolder:
        folder = MemoryFolder()
        on(2, folder, saving(1))
        return folder

    moments = deaths(act, start)
    assert len(moments) == 2 * (2 + 1 + 3 + 1 + 1), "files, a record; files, a manifest, and the record goes"
    for at, after in moments:
        folder = start()
        with pytest.raises(FinetuneError, match="the store is away"):
            act(DyingFolder(folder, at=at, after=after))
        committed = CheckpointStore(folder, RUN).steps()[-1]
        found = resumed(folder, 2)
        assert found is not None
        assert found[0] == committed
        assert same(found[1], tensors(committed))
        on(3, folder, saving(3))
        assert CheckpointStore(folder, RUN).steps()[-1] == 3
        assert not [path for path in folder.files if "/parts/" in path]
        needed = {entry.sha256 for s in CheckpointStore(folder, RUN).steps() for entry in _files(folder, s)}
        assert {path.rpartition("/")[2] for path in folder.files if "/blobs/" in path} == needed


def _files(folder: Folder, step: int) -> Iterator[FileEntry]:
    yield from CheckpointStore(folder, RUN).get(step).files.values()


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
    assert parts.PATIENCE <= hours.now < parts.PATIENCE + 3


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
        0.9 * parts.PATIENCE: lambda: waiting.tell(2, {}),
        1.8 * parts.PATIENCE: lambda: waiting.tell(1, FILE),
    }
    assert waiting.told(Event()) == FILE


@pytest.mark.parametrize("peer_saves_at", [None, 60 + parts.LEAVING / 2])
def test_who_wants_to_end_does_not_wait_long(peer_saves_at: float | None) -> None:
    folder, hours, leaving = MemoryFolder(), Hours(), Event()
    waiting = records(folder, hours)
    hours.events = {60.0: leaving.set}
    if peer_saves_at is None:
        with pytest.raises(FinetuneError, match="nothing was heard"):
            waiting.told(leaving)
        assert hours.now < 60 + parts.LEAVING + 5
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


def test_rows_that_are_not_there_are_a_broken_checkpoint() -> None:
    store = CheckpointStore(MemoryFolder(), RUN)
    store.save(1, {"weights.safetensors": b"x" * 40}, {})
    with pytest.raises(Broken, match=r"weights.safetensors is no safetensors file"):
        Stored(store, store.get(1)).read("weights/a", slice(0, 1))
    with pytest.raises(Broken, match=r"moments.safetensors is missing"):
        Stored(store, store.get(1)).read("moments/a", slice(0, 1))
    on(2, store.folder, saving(2))
    with pytest.raises(Broken, match=r"weights.0-of-2.safetensors has no weights/z"):
        Stored(store, store.get(2)).read("weights/z", slice(0, 1))
