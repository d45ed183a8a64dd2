"""The stores against a real S3 server (MinIO): credentials, outages, large files, damage.

server      a MinIO of the test's own on loopback
bucket      a new bucket and the environment that reaches it
"""

from __future__ import annotations

import io
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import JobIdentity
from finetune_api.spec import ModelSource
from finetune_trainer.data.read import iter_rows
from finetune_trainer.store.artifact import Fault, commit_artifact, verify
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.fetch import fetch_folder
from finetune_trainer.store.folder import BucketMissing, Folder, NotFound, digest_of
from finetune_trainer.store.models import resolve_model
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.sources import SourceFile, find_files
from tests.support.minio import MINIO, MISSING, Server

pytestmark = pytest.mark.skipif(not MINIO.exists(), reason=MISSING)

RUN = JobIdentity(namespace="team", name="cardiology", uid="uid-1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("minio"))
    server.start()
    yield server
    server.kill()


@dataclass(frozen=True)
class Bucket:
    uri: str
    environ: dict[str, str]
    path: Path
    """Where MinIO keeps the bucket's objects, each in a folder of its own."""


@pytest.fixture
def bucket(server: Server) -> Bucket:
    name = server.s3.bucket()
    keys = {"AWS_ACCESS_KEY_ID": server.key, "AWS_SECRET_ACCESS_KEY": server.secret}
    environ = {"FINETUNE_OUTPUT_" + k: v for k, v in keys.items()} | {"AWS_ENDPOINT_URL": server.endpoint}
    return Bucket(f"s3://{name}/models/a", environ, server.folder / "data" / name)


PREFIX = "FINETUNE_OUTPUT_"
ENDINGS = (".jsonl", ".parquet")
FILES: dict[str, bytes | Path] = {"weights.safetensors": b"weights" * 1000, "config.json": b"{}"}


def test_files_go_there_and_come_back(bucket: Bucket, tmp_path: Path) -> None:
    folder = open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ)
    folder.check_writable()
    assert folder.list() == []
    folder.put("a/b c.txt", b"content")
    assert [(e.path, e.size) for e in folder.list()] == [("a/b c.txt", 7)]
    assert folder.list("a") == folder.list()
    assert folder.read("a/b c.txt") == b"content"
    assert folder.exists("a/b c.txt")
    assert not folder.exists("a")
    folder.delete("a/b c.txt")
    folder.delete("a/b c.txt")
    with pytest.raises(NotFound, match="there is no file s3://"):
        folder.read("a/b c.txt")


def test_a_large_file_goes_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    block = secrets.token_bytes(1 << 20)
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(100):
            file.write(block)
    folder = open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ)
    folder.put("large", large)
    stored = list((bucket.path / "models/a/large").rglob("part.*"))
    assert len(stored) == 13  # 100 MiB in parts of 8 MiB
    assert folder.digest("large") == digest_of(large)
    assert folder.download("large", tmp_path / "back") == digest_of(large)
    assert digest_of(tmp_path / "back") == digest_of(large)


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, Reason.CredentialsRejected, "refused the credentials (HTTP 403"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, Reason.CredentialsRejected, "InvalidAccessKeyId"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, Reason.CredentialsMissing, "no credentials for s3://"),
    ],
)
def test_bad_credentials_fail_at_once_even_with_patience(
    bucket: Bucket, change: dict[str, str], reason: Reason, says: str
) -> None:
    environ = bucket.environ | {PREFIX + name: value for name, value in change.items()}
    for patience in (0, 300):
        with pytest.raises(FinetuneError) as caught:
            open_folder(bucket.uri, prefix=PREFIX, environ=environ, patience=patience).check_writable()
        assert caught.value.reason is reason
        assert says in caught.value.message
        assert "CANARY" not in f"{caught.value}{caught.value.__cause__!r}"


def test_a_bucket_that_is_not_there(bucket: Bucket, tmp_path: Path) -> None:
    folder = open_folder("s3://no-such-bucket/x", prefix=PREFIX, environ=bucket.environ)
    with pytest.raises(FinetuneError, match="there is no bucket no-such-bucket") as caught:
        folder.check_writable()
    assert caught.value.reason is Reason.InvalidSpec
    with pytest.raises(BucketMissing, match="there is no bucket no-such-bucket"):
        find_files("s3://no-such-bucket/x/train.jsonl", prefix=PREFIX, endings=ENDINGS, environ=bucket.environ)
    with pytest.raises(FinetuneError, match="there is no bucket no-such-bucket") as caught:
        resolve_model(ModelSource(uri="s3://no-such-bucket/m"), cache=tmp_path, environ=plain(bucket))
    assert caught.value.reason is Reason.ModelNotFound


def plain(bucket: Bucket) -> dict[str, str]:
    return {name.removeprefix(PREFIX): value for name, value in bucket.environ.items()}


def test_an_artifact_is_committed_verified_and_its_damage_named(bucket: Bucket) -> None:
    folder = open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ)
    artifact = commit_artifact(folder, FILES, run=RUN, kind="adapter", overwrite=False)
    assert artifact.uri == bucket.uri
    assert verify(folder, artifact.digest).ok
    assert {name: folder.read(name) for name in FILES} == FILES
    assert not any(b"CANARY" in folder.read(entry.path) for entry in folder.list())
    for damage, fault in [
        (lambda: folder.put("weights.safetensors", b"weightz" + b"weights" * 999), Fault.corrupted),
        (lambda: folder.put("weights.safetensors", b"weights"), Fault.truncated),
        (lambda: folder.delete("weights.safetensors"), Fault.missing),
    ]:
        damage()
        assert [(p.path, p.fault) for p in verify(folder).problems] == [("weights.safetensors", fault)]
    other = RUN.model_copy(update={"uid": "uid-2"})
    with pytest.raises(FinetuneError, match="holds the artifact of team/cardiology"):
        commit_artifact(folder, FILES, run=other, kind="adapter", overwrite=False)
    commit_artifact(folder, FILES, run=other, kind="adapter", overwrite=True)
    assert verify(folder).ok


def test_checkpoints_are_saved_loaded_and_pruned(bucket: Bucket, tmp_path: Path) -> None:
    store = CheckpointStore(open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ), RUN)
    for step in (10, 20, 30):
        store.save(step, {"frozen": b"same", "weights": str(step).encode()}, {"step": step})
        store.prune(2)
    again = CheckpointStore(open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ), RUN)
    latest = again.latest()
    assert latest is not None
    assert (again.steps(), latest.step) == ([20, 30], 30)
    again.load(latest, tmp_path)
    assert (tmp_path / "weights").read_bytes() == b"30"
    again.clear()
    assert again.folder.list() == []


def test_data_is_found_by_file_folder_and_pattern_and_new_when_it_changes(bucket: Bucket) -> None:
    folder = open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ)
    for name in ("data/b.jsonl", "data/a.jsonl", "data/deep/c.jsonl"):
        folder.put(name, name.encode())

    def found(uri: str) -> dict[str, str]:
        files = find_files(f"{bucket.uri}/{uri}", prefix=PREFIX, endings=ENDINGS, environ=bucket.environ)
        return {file.uri.removeprefix(bucket.uri): file.version for file in files}

    before = found("data/")
    assert list(before) == ["/data/a.jsonl", "/data/b.jsonl"]
    assert found("*/*.jsonl") == before
    assert list(found("data/deep/c.jsonl")) == ["/data/deep/c.jsonl"]
    folder.put("data/a.jsonl", b"DATA/A.JSONL")
    after = found("data/")
    assert (after["/data/a.jsonl"] == before["/data/a.jsonl"], after["/data/b.jsonl"] == before["/data/b.jsonl"]) == (
        False, True,
    )  # fmt: skip
    [file] = find_files(f"{bucket.uri}/data/a.*", prefix=PREFIX, endings=ENDINGS, environ=bucket.environ)
    assert not isinstance(file.where, Path)
    assert file.where().read(0, 12) == b"DATA/A.JSONL"


TABLE = ("text", "label")


def put_table(bucket: Bucket, name: str, rows: int) -> int:
    """A table in which what a format needs is a small part. Its size."""
    file = io.BytesIO()
    pictures = [secrets.token_bytes(2000) for _ in range(rows)]
    texts = [f"row {number} {secrets.token_hex(100)}" for number in range(rows)]
    table = pyarrow.table({"text": texts, "picture": pictures, "label": [str(number % 2) for number in range(rows)]})
    parquet.write_table(table, file, row_group_size=500)
    open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ).put(name, file.getvalue())
    return file.tell()


def counted(bucket: Bucket, name: str, asked: list[int]) -> SourceFile:
    [file] = find_files(f"{bucket.uri}/{name}", prefix=PREFIX, endings=ENDINGS, environ=bucket.environ)
    assert not isinstance(file.where, Path)
    ranges = file.where()

    def fetch(start: int, stop: int) -> bytes:
        asked.append(stop - start)
        return ranges.fetch(start, stop)

    return replace(file, where=lambda: replace(ranges, fetch=fetch))


def test_rows_in_a_bucket_are_read_where_they_lie(bucket: Bucket) -> None:
    asked: list[int] = []
    size = put_table(bucket, "a.parquet", 5000)
    rows = list(iter_rows(counted(bucket, "a.parquet", asked), TABLE))
    assert (len(rows), {row.fields["label"] for row in rows}) == (5000, {"0", "1"})
    assert sum(asked) < size / 5
    lines = b"".join(b'{"text": "row %d %s"}\n' % (number, b"x" * 1000) for number in range(3000))
    open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ).put("a.jsonl", lines)
    asked.clear()
    with closing(iter_rows(counted(bucket, "a.jsonl", asked))) as first:
        assert next(first).fields["text"].startswith("row 0 ")
    assert sum(asked) < len(lines) / 10
    assert len(list(iter_rows(counted(bucket, "a.jsonl", asked)))) == 3000


def test_a_file_that_changes_while_it_is_read_is_refused(bucket: Bucket) -> None:
    put_table(bucket, "a.parquet", 2000)
    rows = iter_rows(counted(bucket, "a.parquet", []), TABLE)
    assert next(rows).line == 1
    put_table(bucket, "a.parquet", 2000)
    with pytest.raises(FinetuneError, match=r"a\.parquet changed while it was read") as caught:
        list(rows)
    assert caught.value.reason is Reason.DataUnreadable
    open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ).delete("a.parquet")
    with pytest.raises(FinetuneError, match="there is no file s3://") as caught:
        find_files(f"{bucket.uri}/a.parquet", prefix=PREFIX, endings=ENDINGS, environ=bucket.environ)
    assert caught.value.reason is Reason.DataNotFound


def test_rows_go_on_when_a_server_that_was_away_is_back(
    server: Server, bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    put_table(bucket, "a.parquet", 2000)
    rows = iter_rows(counted(bucket, "a.parquet", []), TABLE)
    found = [next(rows)]
    server.kill()
    reader = threading.Thread(target=lambda: found.extend(rows))
    reader.start()
    try:
        while reader.is_alive() and "trying again" not in caplog.text:  # the client's own tries have ended
            time.sleep(0.05)
    finally:
        server.start()
    reader.join(120)
    assert "trying again" in caplog.text
    assert [row.line for row in found] == list(range(1, 2001))


def test_models_are_fetched_as_folders(bucket: Bucket, tmp_path: Path) -> None:
    open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ).put("config.json", b"{}")
    path = fetch_folder(bucket.uri, prefix=PREFIX, cache=tmp_path, environ=bucket.environ)
    assert [p.name for p in path.iterdir()] == ["config.json"]


def test_a_server_that_is_down_is_reported(server: Server, bucket: Bucket) -> None:
    server.kill()
    try:
        with pytest.raises(FinetuneError, match="is not available") as caught:
            open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ).check_writable()
    finally:
        server.start()
    assert caught.value.reason is Reason.StorageUnavailable
    assert server.endpoint in caught.value.message


def test_a_commit_survives_a_server_that_is_killed_and_comes_back(
    server: Server, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: dict[str, bytes | Path] = {}
    for number in range(6):
        files[f"model-{number}.safetensors"] = tmp_path / str(number)
        (tmp_path / str(number)).write_bytes(secrets.token_bytes(30 << 20))
    folder = open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ, patience=300)
    found: list[object] = []
    killed, put = threading.Event(), type(folder).put

    def last_after_the_kill(self: Folder, path: str, data: bytes | Path) -> None:
        assert data != tmp_path / "5" or killed.wait(120)
        put(self, path, data)

    monkeypatch.setattr(type(folder), "put", last_after_the_kill)

    def commit() -> None:
        try:
            found.append(commit_artifact(folder, files, run=RUN, kind="model", overwrite=False))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    while not server.is_sent_parts() and thread.is_alive():
        time.sleep(0.005)
    server.kill()
    killed.set()
    time.sleep(12)  # longer than the client's own retries
    assert found == []
    server.start()
    thread.join(400)
    artifact = found[0]
    assert not isinstance(artifact, BaseException), artifact
    assert verify(open_folder(bucket.uri, prefix=PREFIX, environ=bucket.environ)).ok
