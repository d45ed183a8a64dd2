"""Checkpoints that ranks save in parts: whole or not there, whoever dies when, and read by any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import BrokenBarrierError, Event
from typing import cast

import pytest
import torch

from finetune_api.failures import FinetuneError
from finetune_trainer.parallel.base import Place, rows_of
from finetune_trainer.store.checkpoints import Broken, CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import FileEntry
from finetune_trainer.train.checkpoint import CheckpointWriter, Snapshot, load
from finetune_trainer.train.checkpoint_reader import CheckpointReader
from finetune_trainer.train.checkpointer import Checkpointer
from finetune_trainer.train.process_exit import SaveThread
from finetune_trainer.train.state import Best, State
from tests.support.faulty_stores import RUN, DyingFolder, MemoryFolder, deaths
from tests.support.sharded_saves import Gang, Rows, on, part_of, resumed, same, saving, tensors


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
    stored = CheckpointReader(store, checkpoint)
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

    def twice(checkpointer: Checkpointer, place: Place) -> None:
        for step in (1, 2):
            weights = Rows.of(1, place, place.world_size)
            weights.mine["moments/a.first"] = weights.mine["moments/a.first"] + step
            checkpointer.save(State(step=step), weights)  # type: ignore[arg-type]
        checkpointer.wait()

    on(2, folder, twice)
    sent = [path for change, path in folder.changes if change == "put" and "/blobs/" in path]
    assert len(sent) == 2 + 2 * (2 + 1), "weights once, moments and the state twice"


def test_a_rank_that_cannot_store_its_part_ends_the_gang_and_nothing_is_committed() -> None:
    """Long before the first rank would give up waiting for it."""
    folder = MemoryFolder()

    def act(checkpointer: Checkpointer, place: Place) -> str:
        try:
            saving(1)(checkpointer, place)
        except (FinetuneError, BrokenBarrierError) as error:
            cast(Gang, checkpointer.strategy).leave()
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

    def twice(checkpointer: Checkpointer, place: Place) -> None:
        for step in (1, 2):
            checkpointer.save(State(step=step), Rows.of(step, place, 2))  # type: ignore[arg-type]
        checkpointer.wait()

    on(2, folders, twice)
    manifest = first.changes.index(("put", f".finetune/{RUN.uid}/checkpoints/000000001.json"))
    blobs = [at for at, (change, path) in enumerate(first.changes) if change == "put" and "/blobs/" in path]
    assert len([at for at in blobs if at < manifest]) == 5
    found = resumed(first, 2)
    assert found is not None
    assert same(found[1], tensors(2))


def test_keep_and_the_best_are_honoured() -> None:
    folder = MemoryFolder()

    def act(checkpointer: Checkpointer, place: Place) -> None:
        for step in range(1, 6):
            saving(step, best=2 if step > 1 else None)(checkpointer, place)

    on(3, folder, act)
    assert CheckpointStore(folder, RUN).steps() == [2, 4, 5]
    assert len([path for path in folder.files if "/blobs/" in path]) == 3 * (3 * 2 + 1)


def test_the_best_weights_come_back_and_moments_stay() -> None:
    folder = MemoryFolder()

    def act(checkpointer: Checkpointer, place: Place) -> Rows:
        saving(1, best=1)(checkpointer, place)
        weights = saving(2, best=1)(checkpointer, place)
        checkpointer.restore_best(State(step=2, best=Best(step=1, loss=1.0)), weights)  # type: ignore[arg-type]
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

    def act(checkpointer: Checkpointer, place: Place) -> str:
        with pytest.raises(Broken) as error:
            checkpointer.restore_best(State(step=2, best=Best(step=1, loss=1.0)), Rows.of(2, place, 2))  # type: ignore[arg-type]
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


def test_rows_that_are_not_there_are_a_broken_checkpoint() -> None:
    store = CheckpointStore(MemoryFolder(), RUN)
    store.save(1, {"weights.safetensors": b"x" * 40}, {})
    with pytest.raises(Broken, match=r"weights.safetensors is not a valid safetensors file"):
        CheckpointReader(store, store.get(1)).read("weights/a", slice(0, 1))
    with pytest.raises(Broken, match=r"moments.safetensors is missing"):
        CheckpointReader(store, store.get(1)).read("moments/a", slice(0, 1))
    on(2, store.folder, saving(2))
    with pytest.raises(Broken, match=r"weights.0-of-2.safetensors has no weights/z"):
        CheckpointReader(store, store.get(2)).read("weights/z", slice(0, 1))
