"""Checkpoints: deduplicated, verified, and safe against a store that dies at every possible moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError
from finetune_trainer.store.checkpoints import Broken, CheckpointStore
from finetune_trainer.store.folder import Folder
from tests.support.faulty_stores import OTHER_RUN, RUN, DyingFolder, MemoryFolder, deaths

ROOT = ".finetune/uid-1"
FROZEN = b"what never changes" * 100


def files(step: int) -> dict[str, bytes | Path]:
    return {"frozen": FROZEN, "weights": f"weights of {step}".encode(), "moments": f"moments of {step}".encode()}


def store(folder: Folder) -> CheckpointStore:
    return CheckpointStore(folder, RUN)


def saved(*steps: int) -> MemoryFolder:
    folder = MemoryFolder()
    checkpoints = store(folder)
    for step in steps:
        checkpoints.save(step, files(step), {"step": step})
    return folder


def blobs(folder: MemoryFolder) -> set[str]:
    return {path for path in folder.files if "/blobs/" in path}


def loaded(folder: Folder, tmp_path: Path) -> tuple[int, dict[str, bytes]] | None:
    """The newest step and its content, as a new process reads them."""
    checkpoint = store(folder).latest()
    if checkpoint is None:
        return None
    store(folder).load(checkpoint, tmp_path)
    return checkpoint.step, {name: (tmp_path / name).read_bytes() for name in checkpoint.files}


def blob_of(folder: MemoryFolder, step: int, name: str) -> str:
    return f"{ROOT}/blobs/{store(folder).get(step).files[name].sha256}"


def manifest_of(step: int) -> str:
    return f"{ROOT}/checkpoints/{step:09d}.json"


def test_the_newest_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = saved(10, 20, 9)
    assert store(folder).steps() == [9, 10, 20]
    assert loaded(folder, tmp_path) == (20, files(20))
    latest = store(folder).latest()
    assert latest is not None
    assert latest.meta == {"step": 20}


def test_nothing_saved_is_nothing_loaded() -> None:
    assert store(MemoryFolder()).latest() is None
    assert store(MemoryFolder()).steps() == []


def test_runs_do_not_see_each_other() -> None:
    assert CheckpointStore(saved(10), OTHER_RUN).latest() is None


def test_what_did_not_change_is_sent_once() -> None:
    folder = saved(10, 20, 30)
    sent = [path for change, path in folder.changes if change == "put" and "/blobs/" in path]
    assert len(sent) == len(set(sent)) == 1 + 2 * 3


def test_a_resumed_run_does_not_send_what_it_has_read(tmp_path: Path) -> None:
    folder = saved(10)
    again = store(folder)
    checkpoint = again.latest()
    assert checkpoint is not None
    folder.changes.clear()
    again.save(20, files(20), {})
    assert len([path for _, path in folder.changes if "/blobs/" in path]) == 2


def test_a_damaged_blob_that_is_still_needed_is_sent_again(tmp_path: Path) -> None:
    folder = saved(10)
    folder.files[blob_of(folder, 10, "frozen")] = b"x" * len(FROZEN)
    store(folder).save(20, files(20), {})
    assert loaded(folder, tmp_path) == (20, files(20))


def test_the_manifest_is_written_last() -> None:
    assert saved(10).changes[-1] == ("put", manifest_of(10))


def flip(folder: MemoryFolder, path: str, at: int) -> None:
    data = folder.files[path]
    folder.files[path] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("name", ["frozen", "weights", "moments"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_broken_newest_falls_back_loudly(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = saved(10)
    store(folder).save(20, files(20) | {"frozen": FROZEN + b"20"}, {})
    blob = blob_of(folder, 20, name)
    if damage == "flipped":
        flip(folder, blob, 3)
    elif damage == "truncated":
        folder.files[blob] = folder.files[blob][:-1]
    else:
        del folder.files[blob]
    assert loaded(folder, tmp_path) == (10, files(10))
    assert "checkpoint of step 20 is broken" in caplog.text
    assert name in caplog.text


def test_a_flipped_bit_anywhere_in_a_manifest_is_found() -> None:
    folder = saved(10)
    whole = folder.files[manifest_of(10)]
    for at in range(len(whole)):
        flip(folder, manifest_of(10), at)
        with pytest.raises(Broken):
            store(folder).get(10)
        folder.files[manifest_of(10)] = whole
    assert store(folder).get(10).step == 10


def test_damage_after_the_choice_is_found_while_loading(tmp_path: Path) -> None:
    folder = saved(10)
    checkpoint = store(folder).latest()
    assert checkpoint is not None
    flip(folder, blob_of(folder, 10, "weights"), 0)
    with pytest.raises(Broken, match="weights is corrupted"):
        store(folder).load(checkpoint, tmp_path)
    assert not (tmp_path / "weights").exists()


def test_an_unavailable_store_is_not_a_broken_checkpoint() -> None:
    dead = DyingFolder(saved(10), at=0, after=False, dead=True)
    with pytest.raises(FinetuneError, match="the store is away"):
        store(dead).latest()


def test_prune_keeps_the_newest_and_the_best() -> None:
    folder = saved(10, 20, 30, 40)
    store(folder).prune(2, {10})
    assert store(folder).steps() == [10, 30, 40]
    assert len(blobs(folder)) == 1 + 2 * 3


def test_what_is_saved_after_a_fall_back_is_kept_in_the_place_of_what_is_broken(tmp_path: Path) -> None:
    """Steps 20 and 30 broke after the best one, 10: the run goes on from there, and is killed again."""
    folder = saved(10, 20, 30)
    for step in (20, 30):
        flip(folder, blob_of(folder, step, "weights"), 0)
    again = store(folder)
    checkpoint = again.latest()
    assert checkpoint is not None
    assert checkpoint.step == 10
    again.save(15, files(15), {})
    again.prune(2, {10})
    assert again.steps() == [10, 15]
    assert loaded(folder, tmp_path) == (15, files(15))
    for step in (20, 30):
        again.save(step, files(step), {})
        again.prune(2, {10})
    assert again.steps() == [10, 20, 30]
    assert loaded(folder, tmp_path) == (30, files(30))


def test_clear_leaves_nothing() -> None:
    folder = saved(10, 20)
    store(folder).clear()
    assert folder.files == {}


def save_next(folder: Folder) -> None:
    checkpoints = store(folder)
    checkpoints.latest()
    checkpoints.save(30, files(30), {"step": 30})


def test_whenever_the_store_dies_while_saving_a_whole_checkpoint_is_left(tmp_path: Path) -> None:
    wholes = {20: (20, files(20)), 30: (30, files(30))}

    def watch(folder: MemoryFolder) -> None:
        newest = max(store(folder).steps())
        assert loaded(folder, tmp_path) == wholes[newest]

    for at, after in deaths(save_next, lambda: saved(10, 20)):
        inner = saved(10, 20)
        with pytest.raises(FinetuneError, match="the store is away"):
            save_next(DyingFolder(inner, at=at, after=after, watch=watch))
        save_next(inner)
        store(inner).prune(2)
        final = saved(10, 20, 30)
        store(final).prune(2)
        assert inner.files == final.files, f"died at change {at}, {'after' if after else 'before'} it took effect"


def test_whenever_the_store_dies_while_pruning_every_listed_checkpoint_is_whole(tmp_path: Path) -> None:
    def prune(folder: Folder) -> None:
        store(folder).prune(2, {10})

    def watch(folder: MemoryFolder) -> None:
        for step in store(folder).steps():
            store(folder).load(store(folder).get(step), tmp_path)
        assert loaded(folder, tmp_path) == (40, files(40))

    moments = deaths(prune, lambda: saved(10, 20, 30, 40))
    assert len(moments) == 2 * (1 + 2)  # one manifest and two blobs of step 20
    for at, after in moments:
        inner = saved(10, 20, 30, 40)
        with pytest.raises(FinetuneError, match="the store is away"):
            prune(DyingFolder(inner, at=at, after=after, watch=watch))
        watch(inner)
        prune(inner)
        assert store(inner).steps() == [10, 30, 40]
        assert len(blobs(inner)) == 7


def test_blobs_of_an_interrupted_save_are_cleared_away() -> None:
    folder = saved(10, 20)
    folder.put(f"{ROOT}/blobs/{'0' * 64}", b"left over")
    store(folder).prune(2)
    assert f"{ROOT}/blobs/{'0' * 64}" not in folder.files


def test_a_checkpoint_cannot_name_files_outside_its_folder(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="not the name of a file inside a folder"):
        store(MemoryFolder()).save(10, {"../outside": b""}, {})
