"""What every folder does, on the disk and through obstore; what only the disk does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from obstore.store import MemoryStore

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.fetch import fetch_folder
from finetune_trainer.store.folder import Changed, Folder, NotFound, digest_of, safe_path
from finetune_trainer.store.local import LocalFolder, os_errors, replacing
from finetune_trainer.store.object_store import ObjectFolder
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.sources import find_files

Make = Callable[[], Folder]


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "disk":
        return LocalFolder(f"file://{tmp_path}/store", tmp_path / "store")
    return ObjectFolder("s3://bucket/store", "bucket", "", MemoryStore())


def test_what_is_put_is_read(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    folder.put("a/one", b"1")
    folder.put("a/two", source)
    folder.put("a/one", b"one")
    assert folder.read("a/one") == b"one"
    assert folder.read("a/two") == source.read_bytes()
    assert folder.digest("a/two") == digest_of(source)


def test_list_gives_files_below_a_folder_sorted(folder: Folder) -> None:
    for path in ("b", "a/2", "a/1", "ab/3"):
        folder.put(path, path.encode())
    assert [(e.path, e.size) for e in folder.list()] == [("a/1", 3), ("a/2", 3), ("ab/3", 4), ("b", 1)]
    assert [e.path for e in folder.list("a")] == ["a/1", "a/2"]
    assert folder.list("nothing/here") == []


def test_version_changes_with_the_content(folder: Folder) -> None:
    folder.put("a", b"1")
    before = folder.stat("a")
    folder.put("a", b"2")
    assert before is not None
    assert folder.stat("a") != before
    assert folder.stat("missing") is None


def test_missing_files_are_not_found_and_deleted_in_peace(folder: Folder, tmp_path: Path) -> None:
    folder.delete("missing")
    for act in (folder.read, folder.digest, lambda path: folder.download(path, tmp_path / "x")):
        with pytest.raises(NotFound, match=r"there is no file .*store/missing"):
            act("missing")
    assert not folder.exists("missing")
    assert not (tmp_path / "x").exists()


def test_download_says_what_it_received(folder: Folder, tmp_path: Path) -> None:
    folder.put("a", b"content")
    assert folder.download("a", tmp_path / "deep" / "x") == digest_of(b"content")
    assert (tmp_path / "deep" / "x").read_bytes() == b"content"


def test_parts_of_a_file_are_read_as_long_as_it_is_the_same(folder: Folder) -> None:
    folder.put("a", b"0123456789")
    entry = folder.stat("a")
    assert entry is not None
    assert [folder.read_range(entry, 2, 5), folder.read_range(entry, 0, 10)] == [b"234", b"0123456789"]
    for content in (b"9876543210", b"0123456789 and more"):
        folder.put("a", content)
        with pytest.raises(Changed, match=r"store/a changed while it was read") as caught:
            folder.read_range(entry, 2, 5)
        assert caught.value.reason is Reason.DataUnreadable
    folder.delete("a")
    with pytest.raises(NotFound):
        folder.read_range(entry, 2, 5)


def test_an_object_without_an_etag_is_known_by_the_second_of_its_last_change() -> None:
    class Dated(MemoryStore):
        """As a store that has no etags: lists have milliseconds, answers have seconds."""

        def get(self, path: str, *, options: dict[str, object]) -> object:
            assert "if_match" not in options
            answer = super().get(path, options=options)
            meta = {**answer.meta, "e_tag": None, "last_modified": answer.meta["last_modified"].replace(microsecond=0)}
            return SimpleNamespace(meta=meta, bytes=answer.bytes)

        def head(self, path: str) -> dict[str, object]:
            return {**super().head(path), "e_tag": None}

    objects = ObjectFolder("s3://bucket/store", "bucket", "", Dated())
    objects.put("a", b"0123456789")
    entry = objects.stat("a")
    assert entry is not None
    assert objects.read_range(entry, 2, 5) == b"234"
    with pytest.raises(Changed):
        objects.read_range(replace(entry, version="2020-01-01 00:00:00+00:00"), 2, 5)


def test_an_etag_is_the_same_with_quotes_and_without() -> None:
    class Bare(MemoryStore):
        """As Azure, whose lists leave the quotes out."""

        def list(self, prefix: str | None) -> list[list[dict[str, object]]]:
            return [[{**meta, "e_tag": meta["e_tag"].strip('"')} for meta in page] for page in super().list(prefix)]

    objects = ObjectFolder("s3://bucket/store", "bucket", "", Bare())
    objects.put("a", b"0123456789")
    [entry] = objects.list()
    assert entry == objects.stat("a")
    assert objects.read_range(entry, 2, 5) == b"234"
    objects.put("a", b"0123456789")
    with pytest.raises(Changed):
        objects.read_range(entry, 2, 5)


def test_check_writable_leaves_no_file(folder: Folder) -> None:
    folder.check_writable()
    assert folder.list() == []


UNSAFE = ["../x", "/etc/passwd", "a/../../x", "a//b", "", ".", "a/.", "a\\..\\b", "a\nb", "a\0b"]


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_leave_the_folder_are_refused(folder: Folder, path: str, tmp_path: Path) -> None:
    for act in (folder.read, folder.delete, lambda p: folder.put(p, b""), lambda p: folder.download(p, tmp_path / "x")):
        with pytest.raises(FinetuneError, match="not the name of a file inside a folder"):
            act(path)


@pytest.mark.parametrize("path", ["a", ".finetune/x", "a b", "ä/ö", "model-00001-of-00002.safetensors", "..a"])
def test_other_paths_are_fine(path: str) -> None:
    assert safe_path(path) == path


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def write() -> None:
        with replacing(target) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("sync"), sync(handle))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("rename"), rename(self, target))[1])
    LocalFolder("file:///x", tmp_path).put("a", b"1")
    assert order == ["sync", "rename", "sync"]


def test_files_that_are_being_written_are_not_listed(tmp_path: Path) -> None:
    folder = LocalFolder("file:///x", tmp_path)
    with replacing(tmp_path / "a") as file:
        file.write(b"1")
        assert folder.list() == []
    assert [e.path for e in folder.list()] == ["a"]


def test_files_are_readable_by_others_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        LocalFolder("file:///x", tmp_path).put("a", b"1")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EACCES, Reason.CredentialsRejected),
        (errno.EPERM, Reason.CredentialsRejected),
        (errno.EROFS, Reason.CredentialsRejected),
        (errno.ENOSPC, Reason.StorageUnavailable),
        (errno.EDQUOT, Reason.StorageUnavailable),
        (errno.EIO, Reason.StorageUnavailable),
        (errno.ESTALE, Reason.StorageUnavailable),
        (errno.ENOENT, Reason.DataNotFound),
        (errno.ENOTDIR, Reason.InvalidSpec),
        (errno.EISDIR, Reason.InvalidSpec),
    ],
)
def test_errors_of_the_disk_have_a_reason(error: int, reason: Reason) -> None:
    with pytest.raises(FinetuneError, match="file:///out/x") as caught, os_errors("write", "file:///out/x"):
        raise OSError(error, os.strerror(error))
    assert caught.value.reason is reason
    assert caught.value.hint


def test_a_file_where_a_folder_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(FinetuneError) as caught:
        open_folder(f"file://{tmp_path}/out", prefix="").check_writable()
    assert caught.value.reason is Reason.InvalidSpec


def test_claims_are_folders_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    environ = {"FINETUNE_PVC_ROOT": str(tmp_path)}
    open_folder("pvc://data/models/a", prefix="", environ=environ).put("x", b"1")
    assert (tmp_path / "data/models/a/x").read_bytes() == b"1"
    with pytest.raises(NotFound, match=r"claim other .* is not mounted"):
        open_folder("pvc://other/models", prefix="", environ=environ)


@pytest.fixture
def linked(tmp_path: Path) -> dict[str, str]:
    """The environment of a claim in which another writer has put links: one to a file of the pod, one to a folder of
    it, and one to a file of the same claim, as the hub's cache has them."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/token").write_text("t0ken")
    model = tmp_path / "claims/data/m"
    model.mkdir(parents=True)
    (model / "blob").write_bytes(b"1")
    (model / "config.json").symlink_to("blob")
    (model / "rows.jsonl").symlink_to(tmp_path / "secrets/token")
    (model.parent / "out").symlink_to(tmp_path / "secrets")
    return {"FINETUNE_PVC_ROOT": str(tmp_path / "claims")}


OUTSIDE = r"pvc://data/(m/rows\.jsonl|out) is a link to .*/secrets.* outside of its claim"
USES: dict[str, Callable[[dict[str, str], Path], Any]] = {
    "read": lambda claims, _: open_folder("pvc://data/m", prefix="", environ=claims).read("rows.jsonl"),
    "downloaded": lambda claims, to: open_folder("pvc://data/m", prefix="", environ=claims).download(
        "rows.jsonl", to / "x"
    ),
    "a model": lambda claims, to: fetch_folder("pvc://data/m", prefix="", cache=to, environ=claims),
    "rows": lambda claims, _: find_files("pvc://data/m/rows.jsonl", prefix="", endings=[".jsonl"], environ=claims),
    "rows by a pattern": lambda claims, _: find_files(
        "pvc://data/m/*.jsonl", prefix="", endings=[".jsonl"], environ=claims
    ),
    "an output": lambda claims, _: open_folder("pvc://data/out", prefix="", environ=claims),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_a_link_that_leads_out_of_a_claim_is_refused(
    linked: dict[str, str], tmp_path: Path, use: Callable[[dict[str, str], Path], Any]
) -> None:
    with pytest.raises(FinetuneError, match=OUTSIDE) as caught:
        use(linked, tmp_path)
    assert caught.value.reason is Reason.InvalidSpec


def test_a_link_within_a_claim_is_followed(linked: dict[str, str]) -> None:
    assert open_folder("pvc://data/m", prefix="", environ=linked).read("config.json") == b"1"


@pytest.mark.parametrize("uri", ["ftp://x/y", "s3:/x", "/just/a/path", "hf://org/name", "file://host"])
def test_what_is_no_folder_is_refused(uri: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        open_folder(uri, prefix="")
    assert caught.value.reason is Reason.InvalidSpec
    assert uri in caught.value.message
