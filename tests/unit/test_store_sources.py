"""What a data URI means: one file, a folder, a pattern, a data set on the hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store import sources
from finetune_trainer.store.folder import Folder, NotFound
from finetune_trainer.store.sources import SourceFile, find_files, local_paths
from tests.support.fake_hub import COMMIT, Hub, environ, serving
from tests.support.faulty_stores import MemoryFolder

ENDINGS = (".jsonl", ".parquet")
NAMES = ("b.jsonl", "a.jsonl", "a.parquet", "README.md", "_SUCCESS.jsonl", ".hidden.jsonl", "x[1].jsonl",
         "deep/c.jsonl", "deep/er/d.jsonl")  # fmt: skip

MEANINGS = [
    ("{}/b.jsonl", ["b.jsonl"]),
    ("{}/README.md", ["README.md"]),
    ("{}/", ["a.jsonl", "a.parquet", "b.jsonl", "x[1].jsonl"]),
    ("{}/*.jsonl", ["a.jsonl", "b.jsonl", "x[1].jsonl"]),
    ("{}/?.jsonl", ["a.jsonl", "b.jsonl"]),
    ("{}/x[1].*", ["x[1].jsonl"]),
    ("{}/*/*.jsonl", ["deep/c.jsonl"]),
    ("{}/de*/", ["deep/c.jsonl"]),
    ("{}/deep/er/*", ["deep/er/d.jsonl"]),
]
MISSING = [
    ("{}/none.jsonl", "there is no file"),
    ("{}/deep", "but a folder of that name"),
    ("{}/none/", "there is no data file in"),
    ("{}/*.arrow", "there is no data file in"),
]


def content(file: SourceFile) -> bytes:
    if isinstance(file.where, Path):
        return file.where.read_bytes()
    ranges = file.where()
    return ranges.read(0, ranges.size)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same files in a folder of this machine and below a key of a bucket."""
    for name in NAMES:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text(name)
    really = sources.open_folder

    def open_folder(uri: str, *, prefix: str, environ: Mapping[str, str]) -> Folder:
        if not uri.startswith("s3://corp/data"):
            return really(uri, prefix=prefix, environ=environ)
        below = uri.removeprefix("s3://corp/data").strip("/")
        cut = f"{below}/" if below else ""
        return MemoryFolder({n.removeprefix(cut): n.encode() for n in NAMES if n.startswith(cut)}, uri)

    monkeypatch.setattr(sources, "open_folder", open_folder)
    return {"disk": f"file://{tmp_path}/data", "bucket": "s3://corp/data"}


@pytest.mark.parametrize("where", ["disk", "bucket"])
@pytest.mark.parametrize(("uri", "names"), MEANINGS, ids=[case[0] for case in MEANINGS])
def test_what_a_uri_means(places: dict[str, str], tmp_path: Path, where: str, uri: str, names: list[str]) -> None:
    found = find_files(uri.format(places[where]), prefix="", endings=ENDINGS)
    assert [file.uri for file in found] == [f"{places[where]}/{name}" for name in names]
    for file, name in zip(found, names, strict=True):
        assert content(file) == name.encode()
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "nothing is left behind"


@pytest.mark.parametrize("where", ["disk", "bucket"])
@pytest.mark.parametrize(("uri", "says"), MISSING, ids=[case[0] for case in MISSING])
def test_what_is_not_there_is_named(places: dict[str, str], where: str, uri: str, says: str) -> None:
    asked = uri.format(places[where])
    with pytest.raises(NotFound) as caught:
        find_files(asked, prefix="", endings=ENDINGS)
    assert says in caught.value.message
    assert asked in caught.value.message
    assert caught.value.reason is Reason.DataNotFound


def test_paths_of_this_machine_by_uri(places: dict[str, str], tmp_path: Path) -> None:
    names = [path.name for path in local_paths(places["disk"] + "/*.jsonl", endings=ENDINGS)]
    assert names == ["a.jsonl", "b.jsonl", "x[1].jsonl"]
    assert local_paths(places["disk"] + "/none", endings=ENDINGS) == [tmp_path / "data" / "none"]


DATASET = {"README.md": b"", "data/train-00000-of-00002.jsonl": b"0", "data/train-00001-of-00002.jsonl": b"1"}
TEST = "data/test-00000-of-00001.jsonl"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving("datasets/org/name", DATASET) as hub:
        yield hub


HUB_URIS = [
    "hf://datasets/org/name",
    "hf://datasets/org/name@main",
    f"hf://datasets/org/name@{COMMIT}",
    f"hf://datasets/org/name@{COMMIT}/data/*.jsonl",
    "hf://datasets/org/name/data/",
    "hf://datasets/org/name/data/train-*.jsonl",
]


@pytest.mark.parametrize("uri", HUB_URIS)
def test_files_of_a_data_set_are_those_of_its_commit(hub: Hub, uri: str) -> None:
    found = find_files(uri, prefix="FINETUNE_DATA_", endings=ENDINGS, environ=environ(hub, "hf_1", section="DATA"))
    names = [name for name in DATASET if name.startswith("data/")]
    assert [file.uri for file in found] == [f"hf://datasets/org/name@{COMMIT}/{name}" for name in names]
    assert not any("/resolve/" in path for path in hub.asked), "nothing is downloaded yet"
    for number, file in enumerate(found):
        assert file.version == COMMIT
        assert content(file) == str(number).encode()
    assert hub.tokens == {"Bearer hf_1"}


def test_a_file_at_a_commit_is_known_without_asking(hub: Hub) -> None:
    uri = f"hf://datasets/org/name@{COMMIT}/data/train-00000-of-00002.jsonl"
    assert [file.uri for file in find_files(uri, prefix="", endings=ENDINGS, environ=environ(hub))] == [uri]
    assert hub.asked == []


def test_a_data_set_with_several_splits_must_say_which(hub: Hub) -> None:
    hub.files[TEST] = b"2"
    with pytest.raises(FinetuneError) as caught:
        find_files("hf://datasets/org/name", prefix="", endings=ENDINGS, environ=environ(hub))
    assert caught.value.reason is Reason.InvalidSpec
    assert TEST in caught.value.message
    assert "hf://datasets/org/name/data/t" in caught.value.hint
    uri = "hf://datasets/org/name/data/test-*"
    [found] = find_files(uri, prefix="", endings=ENDINGS, environ=environ(hub))
    assert found.uri.endswith(TEST)


REFUSED = [
    ("hf://datasets/org/name/none.jsonl", None, "", Reason.DataNotFound, "there is no data file hf://"),
    ("hf://datasets/org/other", None, "", Reason.DataNotFound, "there is no data hf://datasets/org/other"),
    ("hf://datasets/org/name@v9", None, "", Reason.DataNotFound, "hf://datasets/org/name has no revision v9"),
    ("hf://datasets/org/name", (401, ""), "CANARY", Reason.CredentialsRejected, "refused HF_TOKEN"),
    ("hf://datasets/org/name", (403, "GatedRepo"), "", Reason.CredentialsMissing, "accepted its terms"),
    ("hf://datasets/org/name", (400, ""), "", Reason.StorageUnavailable, "not available (HTTP 400)"),
]


@pytest.mark.parametrize(("uri", "refuse", "token", "reason", "says"), REFUSED)
def test_a_hubs_refusals(
    hub: Hub, uri: str, refuse: tuple[int, str] | None, token: str, reason: Reason, says: str
) -> None:
    hub.refuse = refuse
    with pytest.raises(FinetuneError) as caught:
        find_files(uri, prefix="FINETUNE_DATA_", endings=ENDINGS, environ=environ(hub, token, section="DATA"))
    assert caught.value.reason is reason
    assert says in caught.value.message
    assert "data.credentials" in caught.value.hint or reason is not Reason.CredentialsMissing
    assert "CANARY" not in f"{caught.value} {caught.value.__cause__!r}"


def test_a_file_that_is_gone_at_its_commit_is_named(hub: Hub) -> None:
    uri = f"hf://datasets/org/name@{COMMIT}/data/none.jsonl"
    [file] = find_files(uri, prefix="", endings=ENDINGS, environ=environ(hub))
    with pytest.raises(FinetuneError) as caught:
        content(file)
    assert caught.value.reason is Reason.DataNotFound


def test_a_hub_that_gives_no_parts_of_files_is_named(hub: Hub) -> None:
    hub.parts = False
    name = "data/train-00000-of-00002.jsonl"
    hub.files[name] = bytes(range(250))
    [file] = find_files(f"hf://datasets/org/name@{COMMIT}/{name}", prefix="", endings=ENDINGS, environ=environ(hub))
    assert not isinstance(file.where, Path)
    ranges = file.where()
    assert ranges.read(0, 250) == bytes(range(250)), "the whole is a part as well"
    with pytest.raises(FinetuneError, match="gives whole files only") as caught:
        ranges.read(10, 20)
    assert caught.value.reason is Reason.InvalidSpec


def found(uri: str) -> list[str]:
    files = find_files(uri, prefix="FINETUNE_DATA_", endings=(".jsonl",))
    return [file.uri.rpartition("/")[2] for file in files]


def test_a_folder_with_files_of_several_splits_must_say_which(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl"):
        (tmp_path / name).write_text("{}\n")
    for uri in (f"file://{tmp_path}/", f"file://{tmp_path}/*.jsonl", f"file://{tmp_path}/t*"):
        with pytest.raises(FinetuneError, match=r"several splits: test-0\.jsonl, train-0") as caught:
            found(uri)
        assert caught.value.reason is Reason.InvalidSpec
        assert f"file://{tmp_path}/train-0.jsonl" in caught.value.hint
    assert found(f"file://{tmp_path}/train-*") == ["train-0.jsonl", "train-1.jsonl"]
    assert found(f"file://{tmp_path}/test-*") == ["test-0.jsonl"]
    (tmp_path / "train-0.jsonl").unlink()
    (tmp_path / "train-1.jsonl").unlink()
    (tmp_path / "test-1.jsonl").write_text("{}\n")
    assert found(f"file://{tmp_path}/") == ["test-0.jsonl", "test-1.jsonl"]
    (tmp_path / "dev.jsonl").write_text("{}\n")
    with pytest.raises(FinetuneError, match="several splits"):
        found(f"file://{tmp_path}/")


def test_files_in_folders_below_are_named(tmp_path: Path) -> None:
    for month in ("jan", "feb"):
        (tmp_path / "data" / month).mkdir(parents=True)
        (tmp_path / "data" / month / "a.jsonl").write_text("{}\n")
    with pytest.raises(FinetuneError, match="no data file") as caught:
        found(f"file://{tmp_path}/data/")
    assert "there are some in feb/, jan/" in caught.value.hint
    assert f"file://{tmp_path}/data/feb/" in caught.value.hint
    assert found(f"file://{tmp_path}/data/*/") == ["a.jsonl", "a.jsonl"]
