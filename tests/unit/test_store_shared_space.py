"""Space in the cache of models that pods share, and what follows when there is none or the volume fails."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource
from finetune_trainer.store import remote_models, shared_entries, shared_leases
from finetune_trainer.store.folder import Digest
from finetune_trainer.store.shared_lock import held
from finetune_trainer.store.shared_models import SharedModels, Unusable, _Waiting
from tests.support.fake_hub import environ, serving
from tests.support.shared_models import QUICK, Bucket, Pod, counting
from tests.unit.test_store_models import MODEL

HUB_SOURCE = ModelSource(uri="hf://org/name")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    return counting(monkeypatch)


@pytest.fixture
def pod(tmp_path: Path) -> Callable[..., Pod]:
    return lambda name="pod", **more: Pod(tmp_path, name, more=more)


# Space


@pytest.fixture(autouse=True)
def nobody_touches_it_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease or lock that looks old is watched for `dead` seconds, which pass at once here."""
    monkeypatch.setattr(shared_entries, "time", SimpleNamespace(sleep=lambda _: None))


MODEL_SIZE = sum(map(len, MODEL.values()))


def shared(root: Path, *, models: float) -> SharedModels:
    return SharedModels(root=root, bound=int(models * MODEL_SIZE), pace=QUICK)


def fetch(cache: SharedModels, bucket: Bucket, number: int) -> Path | None:
    """One of many models of the same size."""
    uri = f"s3://corp/{number}"
    found = cache.fetch(uri, lambda: remote_models.bucket_model(uri, patterns=("*",), environ={}))
    return found.path if found else None


def forget_leases(root: Path) -> None:
    shared_leases._OWN.clear()
    for lease in (root / "leases").iterdir():
        lease.unlink()


def keys(root: Path) -> set[str]:
    return {path.name for path in (root / "models").iterdir()}


def test_what_was_not_used_for_the_longest_time_is_removed_first(bucket: Bucket, tmp_path: Path) -> None:
    cache = shared(tmp_path, models=2.5)
    first, second = (fetch(cache, bucket, number) for number in (1, 2))
    assert first
    assert second
    for path, used in ((first, 2000), (second, 1000)):
        os.utime(path.parent / shared_entries.MANIFEST, (used, used))
    forget_leases(tmp_path)
    third = fetch(cache, bucket, 3)
    assert third
    assert keys(tmp_path) == {first.parent.name, third.parent.name}
    assert list((tmp_path / "trash").iterdir()) == []
    assert shared_entries.used_bytes(cache.shelf) == 2 * MODEL_SIZE


def test_a_use_renews_a_model(bucket: Bucket, tmp_path: Path) -> None:
    cache = shared(tmp_path, models=2.5)
    first, second = (fetch(cache, bucket, number) for number in (1, 2))
    assert first
    assert second
    for path in (first, second):
        os.utime(path.parent / shared_entries.MANIFEST, (1000, 1000))
    assert fetch(cache, bucket, 1) == first
    forget_leases(tmp_path)
    fetch(cache, bucket, 3)
    assert first.exists()
    assert not second.exists()


def test_a_model_in_use_is_never_removed_and_the_run_goes_on_without_the_cache(
    bucket: Bucket, tmp_path: Path, pod: Callable[..., Pod]
) -> None:
    said: list[str] = []
    cache = shared(tmp_path, models=1.5)
    cache.tell = said.append
    first = fetch(cache, bucket, 1)
    assert first
    assert fetch(cache, bucket, 2) is None
    assert first.exists()
    assert said[-1] == (
        "model cache: not used (full, and every model in it is in use); this pod downloads the model for itself"
    )


def test_a_model_larger_than_the_bound_removes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    first = fetch(shared(tmp_path, models=1), bucket, 1)
    assert first
    forget_leases(tmp_path)
    assert fetch(shared(tmp_path, models=0.5), bucket, 2) is None
    assert first.exists()


def test_a_model_that_does_not_fit_next_to_those_in_use_removes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    cache = shared(tmp_path, models=2.5)
    used, unused = (fetch(cache, bucket, number) for number in (1, 2))
    assert used
    assert unused
    (lease,) = (tmp_path / "leases").glob(f"{unused.parent.name}.*")
    lease.unlink()
    bucket.put("more.json", b"x" * MODEL_SIZE)
    assert fetch(cache, bucket, 3) is None
    assert used.exists()
    assert unused.exists()


def test_a_model_larger_than_the_volume_removes_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shared(tmp_path, models=9)
    first = fetch(cache, bucket, 1)
    assert first
    forget_leases(tmp_path)
    monkeypatch.setattr(shared_entries, "free_bytes", lambda _: MODEL_SIZE // 2)
    bucket.put("more.json", b"x" * MODEL_SIZE)
    assert fetch(cache, bucket, 2) is None
    assert first.exists()


@pytest.mark.parametrize("begun", [False, True], ids=["used", "downloaded"])
def test_the_clock_of_a_node_whose_pod_is_alive_may_be_wrong(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    """Some network file systems take a file's time from the node that touches it."""
    cache = shared(tmp_path, models=1.5)
    found = fetch(cache, bucket, 1)
    assert found
    kept = found.parent
    (sign,) = (tmp_path / "leases").iterdir()
    shared_leases._OWN.clear()
    if begun:
        sign = sign.rename(tmp_path / "locks" / kept.name)
        kept = kept.rename(kept.with_name(f"{kept.name}.partial"))
    os.utime(sign, (1000, 1000))
    touch = SimpleNamespace(sleep=lambda _: os.utime(sign, (1060, 1060)))
    with monkeypatch.context() as patch:
        patch.setattr(shared_entries, "time", touch)
        assert fetch(cache, bucket, 2) is None
    assert kept.exists()
    assert fetch(cache, bucket, 3), "nobody touches it any more"
    assert not kept.exists()


def test_a_lease_that_nobody_touches_counts_no_more(bucket: Bucket, tmp_path: Path) -> None:
    cache = shared(tmp_path, models=1.5)
    first = fetch(cache, bucket, 1)
    assert first
    shared_leases._OWN.clear()
    (lease,) = (tmp_path / "leases").iterdir()
    long_ago = time.time() - shared_entries.LEASE_SECONDS - 60
    os.utime(lease, (long_ago, long_ago))
    assert fetch(cache, bucket, 2)
    assert not first.exists()
    assert not lease.exists()


def test_a_user_that_comes_while_a_model_is_removed_keeps_it(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = shared(tmp_path, models=1.5)
    first = fetch(cache, bucket, 1)
    assert first
    forget_leases(tmp_path)
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path == first.parent:
            (tmp_path / "leases" / f"{first.parent.name}.late").touch()
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    assert fetch(cache, bucket, 2) is None
    assert first.exists()


def test_what_a_dead_pod_had_begun_is_removed_first_and_what_a_living_one_downloads_does_not(
    bucket: Bucket, tmp_path: Path
) -> None:
    cache = shared(tmp_path, models=1.5)
    bucket.before.append(lambda _: (_ for _ in ()).throw(FinetuneError(Reason.StorageUnavailable, "away")))
    with pytest.raises(FinetuneError):
        fetch(cache, bucket, 1)
    bucket.before.clear()
    (begun,) = keys(tmp_path)
    with held(tmp_path / "locks" / begun.removesuffix(".partial"), pace=QUICK):
        assert fetch(cache, bucket, 2) is None
    assert fetch(cache, bucket, 3)
    assert begun not in keys(tmp_path)


def test_without_a_bound_nine_tenths_of_the_volume_may_be_used(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_entries, "capacity", lambda _: int(MODEL_SIZE / 0.9) - 1)
    assert fetch(SharedModels(root=tmp_path, pace=QUICK), bucket, 1) is None
    monkeypatch.setattr(shared_entries, "capacity", lambda _: int(MODEL_SIZE / 0.9) + 2)
    assert fetch(SharedModels(root=tmp_path, pace=QUICK), bucket, 1)


def test_a_disk_without_space_is_not_asked_for_more(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_entries, "free_bytes", lambda _: MODEL_SIZE - 1)
    assert fetch(shared(tmp_path, models=9), bucket, 1) is None
    assert not bucket.given


# A cache that cannot be used


def test_a_cache_that_cannot_be_used_costs_a_line_and_no_second_try(bucket: Bucket, pod: Callable[..., Pod]) -> None:
    preflight = pod()
    preflight.root.write_text("a file where the volume should be")
    model = preflight.resolve()
    assert preflight.said == [
        "model cache: not used (File exists); this pod downloads the model for itself"
    ] or preflight.said == ["model cache: not used (Not a directory); this pod downloads the model for itself"]
    assert model.path.is_relative_to(preflight.tmp / "pod" / "folders")
    preflight.root.unlink()
    rank = pod()
    assert rank.resolve() == model
    assert (rank.said, rank.result) == ([], "bypass")
    assert bucket.given == dict.fromkeys(MODEL, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.ESTALE])
def test_a_volume_that_fails_while_it_is_written_to_is_left_alone(
    bucket: Bucket, pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    download = Bucket.download

    def fails(folder: Bucket, path: str, target: Path) -> Digest:
        if target.is_relative_to(pod().root):
            error = FinetuneError(Reason.StorageUnavailable, "cannot write")
            raise error from OSError(number, os.strerror(number))
        return download(folder, path, target)

    monkeypatch.setattr(Bucket, "download", fails)
    model = pod().resolve()
    assert model.path.is_relative_to(pod().tmp / "pod" / "folders")
    assert pod().result == "bypass"


def test_a_volume_that_the_hubs_client_cannot_write_to_is_left_alone(
    pod: Callable[..., Pod], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with serving("models/org/name", MODEL) as hub:
        here = pod(**environ(hub))
        assert here.resolve(HUB_SOURCE).path.is_relative_to(here.tmp / "pod" / "hub")
    assert here.said == ["model cache: not used (No space left on device); this pod downloads the model for itself"]


def test_a_download_of_another_pod_that_hangs_is_not_waited_for(bucket: Bucket, tmp_path: Path) -> None:
    said: list[str] = []
    cache = SharedModels(root=tmp_path, pace=QUICK, stuck_seconds=0.2, tell=said.append)
    uri = "s3://corp/1"
    key = remote_models.bucket_model(uri, patterns=("*",), environ={}).key
    with held(tmp_path / "locks" / key, pace=QUICK):
        assert fetch(cache, bucket, 1) is None
    assert said[0] == "model cache: another pod downloads the model; waiting for it"
    assert "another pod's download has made no progress for 0 s" in said[1]


def test_a_repair_by_another_pod_is_waited_for_while_it_makes_progress(bucket: Bucket, tmp_path: Path) -> None:
    cache = SharedModels(root=tmp_path, pace=QUICK)
    entry = fetch(cache, bucket, 1)
    assert entry
    (entry / "config.json").unlink()
    key = entry.parent.name
    cache.stuck_seconds = 60.0
    waiting = _Waiting(key, cache)
    waiting()
    waiting.since -= 61
    waiting.next_look = 0.0
    (entry / ".config.json.1234.partial").write_text("{")
    waiting()
    waiting.since -= 61
    waiting.next_look = 0.0
    with pytest.raises(Unusable):
        waiting()
