"""The cache of models that pods share: one download for all, whole, and never in the way of a run.

Processes are real ones; the store is a stand-in for the hub, or a bucket in memory, that counts what it gives."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource
from finetune_trainer.store import shared_entries, shared_leases
from finetune_trainer.store.models import LocalModel
from finetune_trainer.store.shared_leases import cache_outcome, keeping
from finetune_trainer.store.shared_lock import Pace, held
from tests.support.fake_hub import COMMIT, environ, serving
from tests.support.shared_models import Bucket, Pod, counting
from tests.unit.test_store_models import MODEL, safetensors

HUB_SOURCE = ModelSource(uri="hf://org/name")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return counting(monkeypatch)


@pytest.fixture
def pod(tmp_path: Path) -> Callable[..., Pod]:
    return lambda name="pod", **more: Pod(tmp_path, name, more=more)


# One download


def test_the_second_pod_finds_what_the_first_one_downloaded(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    first, second = pod("first"), pod("second")
    model = first.resolve()
    assert second.resolve() == model
    assert {file.name: file.read_bytes() for file in model.path.iterdir()} == MODEL
    assert bucket.given == dict.fromkeys(MODEL, 1)
    assert (first.result, second.result) == ("miss", "hit")
    assert not (second.tmp / "second" / "folders").exists(), "nothing is copied into the pod"
    assert first.said[-1].startswith("model cache: miss, 0.0 MB downloaded in ")
    assert second.said == [line for line in second.said if line.startswith("model cache: hit, 0.0 MB verified in ")]


def test_two_processes_that_ask_at_once_get_each_file_once(tmp_path: Path) -> None:
    files = MODEL | {"model.safetensors": safetensors(1 << 20)}
    program = (
        "import json, sys; from pathlib import Path; from finetune_api.spec import ModelSource\n"
        "from finetune_trainer.store.models import resolve_model\n"
        "model = resolve_model(ModelSource(uri='hf://org/name'), cache=Path(sys.argv[1]))\n"
        "print(json.dumps([str(model.path), model.revision]))"
    )
    with serving("models/org/name", files) as hub:
        given = os.environ | environ(hub) | {names.ENV_MODEL_CACHE: str(tmp_path / "shared")}
        started = [
            subprocess.Popen([sys.executable, "-c", program, tmp_path / each], env=given, stdout=subprocess.PIPE)
            for each in ("a", "b")
        ]
        (first, _), (second, _) = (process.communicate(timeout=120) for process in started)
    assert json.loads(first) == json.loads(second)
    path, revision = json.loads(first)
    assert revision == COMMIT
    assert {file.name: file.read_bytes() for file in Path(path).iterdir()} == files
    assert sorted(hub.given) == sorted(files)
    assert not list((tmp_path / "shared" / "leases").iterdir()), "a process takes its lease with it"


def test_threads_of_many_pods_get_each_file_once(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    with ThreadPoolExecutor(6) as pool:
        pods = [pod(f"pod-{number}") for number in range(6)]
        paths = set(pool.map(lambda each: each.resolve().path, pods))
    assert len(paths) == 1
    assert bucket.given == dict.fromkeys(MODEL, 1)
    assert sorted(each.result for each in pods) == ["hit"] * 5 + ["miss"]


def test_those_who_wait_verify_a_model_as_soon_as_it_is_there(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    """And not one after the other, when each gets the lock."""
    entry = pod("first").resolve().path.parent
    away = entry.rename(entry.with_name("away"))
    second = pod("second")
    with held(pod().root / "locks" / entry.name, pace=Pace()), ThreadPoolExecutor(1) as pool:
        found = pool.submit(second.resolve)
        while "model cache: another pod downloads the model; waiting for it" not in second.said:
            time.sleep(0.01)
        away.rename(entry)
        assert found.result(timeout=60).path.parent == entry
    assert second.result == "hit"


def test_later_processes_of_a_run_ask_no_store(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    preflight = pod()
    model = preflight.resolve()
    bucket.put("config.json", b"changed meanwhile")
    assert pod().resolve() == model, "a run keeps the model that its preflight has checked"
    assert pod().said == []


def test_what_was_verified_is_not_read_again_and_what_changed_since_is(
    bucket: Bucket, pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    pod("first").resolve()
    read: list[str] = []
    digest = shared_entries.digest_of
    monkeypatch.setattr(shared_entries, "digest_of", lambda path: read.append(path.name) or digest(path))
    model = pod().resolve()
    assert sorted(read) == sorted(MODEL)
    read.clear()
    pod().resolve()
    assert read == []
    os.utime(model.path / "tokenizer.json", (1, 1))
    pod().resolve()
    assert read == ["tokenizer.json"]


def test_another_version_is_another_model_and_the_old_one_stays(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    old = pod("first").resolve()
    bucket.put("model.safetensors", safetensors(16))
    new = pod("second").resolve()
    assert (new.path / "model.safetensors").read_bytes() == safetensors(16)
    assert (old.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]


def test_models_of_this_machine_and_of_claims_are_used_in_place(tmp_path: Path, pod: Callable[..., Pod]) -> None:
    for name, data in MODEL.items():
        (tmp_path / name).write_bytes(data)
    assert pod().resolve(ModelSource(uri=f"file://{tmp_path}")).path == tmp_path
    assert not pod().root.exists()


# Damage


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def linked(file: Path) -> None:
    twin = file.parents[4] / "elsewhere"
    twin.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(twin)


def folded(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a bit": flipped,
    "cut off": lambda file: os.truncate(file, 3),
    "gone": Path.unlink,
    "a link out of the cache with the same content": linked,
    "a folder in its place": folded,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_downloaded_again_and_no_other(
    bucket: Bucket, pod: Callable[..., Pod], damage: Callable[[Path], None]
) -> None:
    model = pod("first").resolve()
    damage(model.path / "model.safetensors")
    second = pod("second")
    assert second.resolve() == model
    assert (model.path / "model.safetensors").read_bytes() == MODEL["model.safetensors"]
    assert not (model.path / "model.safetensors").is_symlink()
    assert bucket.given == {**dict.fromkeys(MODEL, 1), "model.safetensors": 2}
    assert second.result == "healed"
    assert second.said[0] == ("model cache: damaged files of s3://corp/model are downloaded again: model.safetensors")
    third = pod("third")
    third.resolve()
    assert third.result == "hit"


@pytest.mark.parametrize("more", [["mine"], []], ids=["with more files", "with the same files"])
@pytest.mark.parametrize("where", ["entry", "files", "models"])
def test_a_link_in_the_place_of_a_folder_leads_nowhere(
    bucket: Bucket, pod: Callable[..., Pod], tmp_path: Path, where: str, more: list[str]
) -> None:
    model = pod("first").resolve()
    folder = {"entry": model.path.parent, "files": model.path, "models": model.path.parents[1]}[where]
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    for each in (elsewhere, elsewhere / "files", elsewhere / model.path.parent.name / "files"):
        for name in more if each.is_dir() else ():
            (each / name).write_text("kept")
    folder.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    found = pod("second").resolve()
    assert {file.name: file.read_bytes() for file in found.path.iterdir()} == MODEL
    assert sorted(elsewhere.rglob("*")) == before
    assert not found.path.resolve().is_relative_to(elsewhere)


def test_a_link_in_a_download_that_ended_early_leads_nowhere(
    bucket: Bucket, pod: Callable[..., Pod], tmp_path: Path
) -> None:
    bucket.put("sub/more.json", b"{}")
    model = pod("first").resolve()
    partial = model.path.parent.rename(model.path.parent.with_suffix(".partial"))
    elsewhere = (partial / "files" / "sub").rename(tmp_path / "elsewhere")
    (elsewhere / "more.json").unlink()
    (partial / "files" / "sub").symlink_to(elsewhere)
    assert pod("second").resolve() == model
    assert (model.path / "sub" / "more.json").read_bytes() == b"{}"
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("place", ["{}", "{}/files", "{}.partial", "{}.partial/files"])
def test_a_file_in_the_place_of_a_folder_is_removed(bucket: Bucket, pod: Callable[..., Pod], place: str) -> None:
    model = pod("first").resolve()
    entry = model.path.parent
    entry.rename(entry.with_name("away"))
    file = entry.parent / place.format(entry.name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("not a folder")
    assert pod("second").resolve() == model


def test_a_name_that_leads_out_of_the_cache_is_refused(pod: Callable[..., Pod], tmp_path: Path) -> None:
    name = "additional_chat_templates/../../../../../outside/x.jinja"
    with serving("models/org/name", MODEL | {name: b""}) as hub, pytest.raises(FinetuneError, match="not the name"):
        pod(**environ(hub)).resolve(HUB_SOURCE)
    assert not (tmp_path / "outside").exists()


def test_a_file_that_nobody_listed_is_removed(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    model = pod("first").resolve()
    (model.path / "model.safetensors.index.json").write_text("{}")
    (model.path / "more").symlink_to("/etc")
    assert pod("second").resolve() == model
    assert {file.name for file in model.path.iterdir()} == set(MODEL)
    assert bucket.given == dict.fromkeys(MODEL, 1)
    assert Path("/etc").is_dir()


@pytest.mark.parametrize("text", ["", "{", '{"uri": "x", "files": {"../../x": {"size": 0, "sha256": ""}}}'])
def test_a_manifest_that_cannot_be_believed_is_written_again(
    bucket: Bucket, pod: Callable[..., Pod], text: str
) -> None:
    model = pod("first").resolve()
    manifest = model.path.parent / shared_entries.MANIFEST
    whole = manifest.read_text()
    manifest.write_text(text)
    second = pod("second")
    assert second.resolve() == model
    assert (manifest.read_text(), second.result) == (whole, "healed")


def test_a_download_that_ended_early_is_continued(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    away = FinetuneError(Reason.StorageUnavailable, "away")

    def fails(path: str) -> None:
        if path == "tokenizer.json":
            raise away

    bucket.before.append(fails)
    with pytest.raises(FinetuneError) as caught:
        pod("first").resolve()
    assert caught.value is away, "what the store says is said without the cache, too"
    bucket.before.clear()
    model = pod("second").resolve()
    assert {file.name: file.read_bytes() for file in model.path.iterdir()} == MODEL
    assert bucket.given == {**dict.fromkeys(MODEL, 1), "tokenizer.json": 2}


def test_a_model_that_changes_while_it_is_downloaded_is_refused(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    bucket.before.append(lambda path: bucket.put(path, b"longer than what was listed" * 9))
    with pytest.raises(FinetuneError, match="changed while it was downloaded"):
        pod().resolve()


# Those who may not read a model do not get it from the cache


def test_a_gated_model_is_not_given_to_who_may_not_download_it(tmp_path: Path, pod: Callable[..., Pod]) -> None:
    with serving("models/org/name", MODEL) as hub:
        pod("first", **environ(hub, "token")).resolve(HUB_SOURCE)
        hub.gated = True
        with pytest.raises(FinetuneError) as caught:
            pod("second", **environ(hub)).resolve(HUB_SOURCE)
    assert caught.value.reason is Reason.CredentialsMissing


def test_a_hub_model_keeps_its_commit(pod: Callable[..., Pod]) -> None:
    with serving("models/org/name", MODEL) as hub:
        models = [pod(name, **environ(hub)).resolve(HUB_SOURCE) for name in ("first", "second")]
    assert [model.revision for model in models] == [COMMIT, COMMIT]
    assert {file.name for file in models[0].path.iterdir()} == set(MODEL)
    assert sorted(hub.given) == sorted(MODEL)


# Others of the namespace may write there, too


def rewritten(model: LocalModel, name: str, data: bytes) -> None:
    """Other content, with a manifest that fits it."""
    (model.path / name).write_bytes(data)
    manifest = model.path.parent / shared_entries.MANIFEST
    stored = json.loads(manifest.read_text())
    stored["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(stored))


def test_a_manifest_with_other_sizes_than_the_stores_is_not_believed(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    model = pod("first").resolve()
    rewritten(model, "tokenizer.json", b'{"another": "one"}')
    pod("second").resolve()
    assert (model.path / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]


def test_weights_are_those_whose_digest_the_hub_knows(pod: Callable[..., Pod]) -> None:
    other = bytes(reversed(MODEL["tokenizer.json"]))
    with serving("models/org/name", MODEL) as hub:
        hub.large = True
        model = pod("first", **environ(hub)).resolve(HUB_SOURCE)
        rewritten(model, "tokenizer.json", other)
        second = pod("second", **environ(hub))
        second.resolve(HUB_SOURCE)
    assert (model.path / "tokenizer.json").read_bytes() == MODEL["tokenizer.json"]
    assert second.result == "healed"


# What the agent keeps


def test_an_agent_touches_the_leases_of_its_processes_and_removes_them(
    bucket: Bucket, tmp_path: Path, pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_leases, "BEAT_SECONDS", 0.02)
    here = pod()
    with keeping(tmp_path / "pod", here.environ) as given:
        assert given == {names.ENV_MODEL_CACHE_NOTES: str(here.notes)}
        here.resolve()
        (lease,) = (here.root / "leases").iterdir()
        os.utime(lease, (1, 1))
        deadline = time.monotonic() + 120
        while lease.stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert lease.stat().st_mtime > 1
    assert list((here.root / "leases").iterdir()) == []
    assert cache_outcome(tmp_path / "pod"), "and leaves the outcome"
    with keeping(tmp_path / "pod", here.environ):
        assert cache_outcome(tmp_path / "pod") is None, "until the next attempt"


def test_without_a_cache_an_agent_has_nothing_to_keep(tmp_path: Path) -> None:
    with keeping(tmp_path, {}) as given:
        assert given == {}
    assert list(tmp_path.iterdir()) == []
