"""Folders in the cache: once, whole, and new when the source is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store import fetch
from finetune_trainer.store.fetch import at_once, fetch_folder
from finetune_trainer.store.folder import Digest, NotFound
from finetune_trainer.store.object_store import ObjectFolder


@dataclass(frozen=True)
class Counting(ObjectFolder):
    downloads: list[str] = field(default_factory=list)

    def download(self, path: str, target: Path) -> Digest:
        self.downloads.append(path)
        return super().download(path, target)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Counting:
    """What `s3://corp/data` is opened as."""
    folder = Counting("s3://corp/data", "corp", "", MemoryStore())
    monkeypatch.setattr(fetch, "open_folder", lambda _, **__: folder)
    return folder


def test_local_folders_are_used_in_place(tmp_path: Path) -> None:
    assert fetch_folder(f"file://{tmp_path}", prefix="", cache=tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no folder file:///"):
        fetch_folder(f"file://{tmp_path}/nothing", prefix="", cache=tmp_path)


def test_a_changed_folder_is_downloaded_anew(bucket: Counting, tmp_path: Path) -> None:
    bucket.put("a", b"old")
    old = fetch_folder("s3://corp/data", prefix="", cache=tmp_path)
    bucket.put("a", b"new")
    assert (fetch_folder("s3://corp/data", prefix="", cache=tmp_path) / "a").read_bytes() == b"new"
    assert (old / "a").read_bytes() == b"old"


def test_ranks_that_ask_at_once_share_one_download(bucket: Counting, tmp_path: Path) -> None:
    bucket.put("a", b"rows" * 1000)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: fetch_folder("s3://corp/data", prefix="", cache=tmp_path), range(8)))
    assert len(paths) == 1
    assert bucket.downloads == ["a"]


def test_a_folder_takes_what_matches(bucket: Counting, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "sub/x.json"):
        bucket.put(name, name.encode())
    patterns = ("*.json", "*.safetensors")
    path = fetch_folder("s3://corp/data", prefix="", cache=tmp_path, patterns=patterns)
    files = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    assert files == ["config.json", "model.safetensors", "sub/x.json"]
    assert fetch_folder("s3://corp/data", prefix="", cache=tmp_path, patterns=patterns) == path
    assert len(bucket.downloads) == 3
    with pytest.raises(NotFound, match=r"no file \*.txt in s3://corp/data"):
        fetch_folder("s3://corp/data", prefix="", cache=tmp_path, patterns=("*.txt",))


def test_an_interrupted_folder_goes_on_where_it_was(
    bucket: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        bucket.put(name, name.encode())
    download = Counting.download

    def failing(self: Counting, path: str, target: Path) -> Digest:
        if path == "c":
            raise FinetuneError(Reason.StorageUnavailable, "away")
        return download(self, path, target)

    monkeypatch.setattr(Counting, "download", failing)
    with pytest.raises(FinetuneError, match="away"):
        fetch_folder("s3://corp/data", prefix="", cache=tmp_path)
    assert not [p for p in tmp_path.glob("folders/*") if p.suffix != ".partial" and p.suffix != ".lock"]
    monkeypatch.setattr(Counting, "download", download)
    path = fetch_folder("s3://corp/data", prefix="", cache=tmp_path)
    assert {p.name: p.read_text() for p in path.iterdir()} == {"a": "a", "b": "b", "c": "c"}
    assert sorted(bucket.downloads) == ["a", "b", "c"]


def test_the_first_error_of_many_is_raised_and_the_rest_is_not_begun() -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item == 0:
            raise ValueError("first")
        done.append(item)

    with pytest.raises(ValueError, match="first"):
        at_once(work, range(1000))
    assert len(done) < 1000
