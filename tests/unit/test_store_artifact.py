"""Commit and verify: what a reader may rely on, with a store that dies at every possible moment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.artifact import (
    Fault,
    check_output,
    commit_artifact,
    read_manifest,
    verify,
)
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.manifest import MANIFEST, decode
from tests.support.faulty_stores import OTHER_RUN, RUN, DyingFolder, MemoryFolder, deaths

FILES: dict[str, bytes | Path] = {
    "adapter_model.safetensors": b"weights" * 1000,
    "adapter_config.json": b"{}",
    "tokenizer/merges.txt": b"a b",
}
OLD_FILES: dict[str, bytes | Path] = {"adapter_config.json": b"{'old': 1}", "model-00002.safetensors": b"old weights"}


def commit(folder: Folder) -> None:
    commit_artifact(folder, FILES, run=RUN, kind="adapter", overwrite=True)


def committed() -> MemoryFolder:
    folder = MemoryFolder()
    commit(folder)
    return folder


def with_older_artifact() -> MemoryFolder:
    folder = MemoryFolder({"notes.txt": b"a person's own file"})
    commit_artifact(folder, OLD_FILES, run=OTHER_RUN, kind="model", overwrite=False)
    return folder


def test_the_artifact_is_described_as_in_status() -> None:
    folder = MemoryFolder(uri="s3://corp/models/a")
    artifact = commit_artifact(folder, FILES, run=RUN, kind="adapter", overwrite=False)
    manifest = read_manifest(folder)
    assert artifact.uri == "s3://corp/models/a"
    assert artifact.size_bytes == 7000 + 2 + 3
    assert artifact.digest == manifest.digest
    assert artifact.kind == "adapter"
    assert verify(folder, artifact.digest).ok


def test_the_manifest_is_written_last_and_names_all() -> None:
    folder = committed()
    assert folder.changes[-1] == ("put", MANIFEST)
    assert json.loads(folder.files[MANIFEST]) == {
        "version": 1,
        "kind": "adapter",
        "run": {"namespace": "team", "name": "cardiology", "uid": "uid-1"},
        "files": {
            "adapter_config.json": {
                "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # of {}
                "size": 2,
            },
            "adapter_model.safetensors": {"sha256": hashlib.sha256(b"weights" * 1000).hexdigest(), "size": 7000},
            "tokenizer/merges.txt": {"sha256": hashlib.sha256(b"a b").hexdigest(), "size": 3},
        },
    }


def test_equal_content_has_an_equal_digest() -> None:
    assert committed().files[MANIFEST] == committed().files[MANIFEST]
    assert decode(committed().files[MANIFEST]).digest == read_manifest(committed()).digest


def test_files_of_an_earlier_artifact_go_and_other_files_stay() -> None:
    folder = with_older_artifact()
    commit(folder)
    assert folder.files.keys() == {*FILES, MANIFEST, "notes.txt"}


@pytest.mark.parametrize("start", [MemoryFolder, committed, with_older_artifact])
def test_whenever_the_store_dies_no_reader_is_deceived_and_a_retry_ends_well(start: Callable[[], MemoryFolder]) -> None:
    final = start()
    commit(final)

    def watch(folder: MemoryFolder) -> None:
        if MANIFEST in folder.files:
            assert verify(folder).ok

    for at, after in deaths(commit, start):
        inner = start()
        with pytest.raises(FinetuneError, match="the store is away"):
            commit(DyingFolder(inner, at=at, after=after, watch=watch))
        watch(inner)
        commit(inner)
        assert inner.files == final.files, f"died at change {at}, {'after' if after else 'before'} it took effect"


def test_another_runs_artifact_is_not_replaced_by_accident() -> None:
    folder = with_older_artifact()
    before = dict(folder.files)
    for act in (
        lambda: check_output(folder, RUN, overwrite=False),
        lambda: commit_artifact(folder, FILES, run=RUN, kind="adapter", overwrite=False),
    ):
        with pytest.raises(FinetuneError, match="holds the artifact of team/surgery") as caught:
            act()
        assert caught.value.reason is Reason.OutputExists
    assert folder.files == before
    check_output(folder, RUN, overwrite=True)
    check_output(folder, OTHER_RUN, overwrite=False)
    check_output(MemoryFolder(), RUN, overwrite=False)


def test_a_manifest_that_is_not_ours_is_not_replaced_by_accident() -> None:
    folder = MemoryFolder({MANIFEST: b'{"manifest_version": 3, "name": "a browser extension"}'})
    with pytest.raises(FinetuneError, match=r"holds a manifest.json that finetune did not write"):
        check_output(folder, RUN, overwrite=False)
    commit(folder)
    assert verify(folder).ok


@pytest.mark.parametrize("name", [MANIFEST, ".finetune/x"])
def test_names_of_the_stores_own_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="store's own"):
        commit_artifact(MemoryFolder(), {name: b""}, run=RUN, kind="adapter", overwrite=False)


WEIGHTS = "adapter_model.safetensors"


def flip(data: bytes, at: int = 10) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    ("damage", "path", "fault"),
    [
        (lambda f: f.update({WEIGHTS: flip(f[WEIGHTS])}), WEIGHTS, Fault.corrupted),
        (lambda f: f.update({WEIGHTS: f[WEIGHTS][:-1]}), WEIGHTS, Fault.truncated),
        (lambda f: f.update({WEIGHTS: b""}), WEIGHTS, Fault.truncated),
        (lambda f: f.update({WEIGHTS: f[WEIGHTS] + b"x"}), WEIGHTS, Fault.corrupted),
        (lambda f: f.pop(WEIGHTS), WEIGHTS, Fault.missing),
        (lambda f: f.pop(MANIFEST), MANIFEST, Fault.missing),
        (lambda f: f.update({MANIFEST: f[MANIFEST][:-5]}), MANIFEST, Fault.invalid),
        (lambda f: f.update({MANIFEST: b"[]"}), MANIFEST, Fault.invalid),
        (lambda f: f.update({MANIFEST: f[MANIFEST] + b" "}), MANIFEST, Fault.corrupted),
        (lambda f: f.update({MANIFEST: f[MANIFEST].replace(b'"version":1', b'"version":2')}), MANIFEST, Fault.invalid),
    ],
)
def test_damage_is_found_and_named(damage: Callable[[dict[str, bytes]], object], path: str, fault: Fault) -> None:
    folder = committed()
    damage(folder.files)
    report = verify(folder)
    assert [(p.path, p.fault) for p in report.problems] == [(path, fault)]
    assert not report.ok
    assert report.problems[0].message


def test_every_damaged_file_is_named() -> None:
    folder = committed()
    for name in FILES:
        folder.files[name] = flip(folder.files[name], at=0)
    assert [p.path for p in verify(folder).problems] == sorted(FILES)


def test_a_flipped_bit_anywhere_in_the_manifest_is_found_by_its_digest() -> None:
    folder = committed()
    digest, whole = read_manifest(folder).digest, folder.files[MANIFEST]
    for at in range(len(whole)):
        folder.files[MANIFEST] = flip(whole, at)
        assert not verify(folder, digest).ok, whole[max(0, at - 20) : at + 20]


@pytest.mark.parametrize("name", ["../outside", "/etc/cron.d/x", "a/../../outside"])
def test_a_manifest_cannot_name_files_outside_its_folder(name: str) -> None:
    folder = committed()
    folder.files[MANIFEST] = folder.files[MANIFEST].replace(b'"tokenizer/merges.txt"', json.dumps(name).encode())
    assert (name, Fault.invalid) in {(p.path, p.fault) for p in verify(folder).problems}


def test_nothing_committed_is_not_found() -> None:
    with pytest.raises(FinetuneError) as caught:
        read_manifest(MemoryFolder())
    assert caught.value.reason is Reason.DataNotFound
