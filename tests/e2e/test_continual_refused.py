"""What a job cannot start from: an artifact that is damaged, of another model, or not allowed. It is refused before
anything is trained."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.agent.preflight import check
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.folder import digest_of
from finetune_trainer.store.manifest import Manifest, entries
from finetune_trainer.train.run import run
from tests.support.task_sequence import output, plan, refused, task, trained
from tests.support.tiny_model import tiny_model

FULL = {"type": "full"}
EARLIER: dict[str, Any] = {"replay": {"fraction": 0.5, "source": "earlier"}}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny_model(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        trained(folder, "small", task(folder, "small", training={"maxSteps": 1, "batchSize": 8}), patch)
    return folder


def refused_after(small: Path, damage: Callable[[Path], None], spec: dict[str, Any], words: str) -> FinetuneError:
    """The error of a job after the artifact was damaged, which is whole again then."""
    kept = small.with_name(f"{small.name}-kept")
    shutil.copytree(small, kept)
    try:
        damage(output(small, "small"))
        shutil.rmtree(small / "cache", ignore_errors=True)
        with pytest.raises(FinetuneError, match=words) as caught:
            refused(small, "next", spec)
        return caught.value
    finally:
        shutil.rmtree(small)
        kept.rename(small)


def _without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _other_record(folder: Path) -> None:
    (folder / "run.json").write_text((folder / "run.json").read_text() + " ")


def _other_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"0")


def _not_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _large(folder: Path) -> None:
    (folder / "manifest.json").write_bytes(b" " * (17 << 20))


def _other_rows(folder: Path) -> None:
    test = folder.parents[1] / "data" / folder.name / "heldout.jsonl"
    test.write_text("\n".join(test.read_text().splitlines()[1:]))


def _no_rows(folder: Path) -> None:
    (folder.parents[1] / "data" / folder.name / "heldout.jsonl").unlink()


def _config(**changes: Any) -> Callable[[Path], None]:
    """Another adapter_config.json, which the manifest names."""

    def damage(folder: Path) -> None:
        content = json.dumps(json.loads((folder / "adapter_config.json").read_bytes()) | changes).encode()
        (folder / "adapter_config.json").write_bytes(content)
        found = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
        files = {**found.files, **entries({"adapter_config.json": digest_of(content)})}
        (folder / "manifest.json").write_bytes(found.model_copy(update={"files": files}).encode())

    return damage


DAMAGES: dict[str, tuple[Any, Reason, str]] = {
    "no artifact": (_without_manifest, Reason.ModelNotFound, "there is no artifact"),
    "not a manifest": (_not_json, Reason.DataUnreadable, "is not a manifest"),
    "a manifest without end": (_large, Reason.DataUnreadable, "bytes"),
    "another record": (_other_record, Reason.DataUnreadable, "run.json is not the file that"),
    "other weights": (_other_weights, Reason.DataUnreadable, "adapter_model.safetensors is not the file that"),
    "a rank of its own": (_config(r=512), Reason.ModelUnsupported, r"says rank 512, and .*lora_A.weight is \(4, "),
    "a rank in words": (_config(r="4"), Reason.ModelUnsupported, "adapter_config.json: r: Input should be a valid int"),
    "a rank without end": (_config(r=10**9), Reason.ModelUnsupported, "rank 1000000000 is more than 512"),
    "no scale": (_config(lora_alpha=None), Reason.ModelUnsupported, "adapter_config.json: lora_alpha: Input should be"),
    "layers by a pattern": (
        _config(target_modules=".*"),
        Reason.ModelUnsupported,
        "adapter_config.json: target_modules",
    ),
    "other test rows": (_other_rows, Reason.DataChanged, "has 23 rows and had 24, 23 of them in both"),
    "no test rows": (_no_rows, Reason.DataNotFound, "the test data of the earlier task small is measured again"),
}


@pytest.mark.parametrize(("damage", "reason", "words"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artifact_is_refused_before_anything_is_trained(
    small: Path, damage: Any, reason: Reason, words: str
) -> None:
    caught = refused_after(small, damage, task(small, "next", seed=1, after="small"), words)
    assert (caught.reason, bool(caught.hint)) == (reason, True)


def test_a_whole_model_that_is_not_the_committed_one_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one bit in the middle of its weights, and by weights that were added."""
    whole = task(small, "whole", method=FULL, training={"maxSteps": 1, "batchSize": 8})
    trained(small, "whole", whole, monkeypatch)
    after, weights = task(small, "next", seed=1, after="whole"), output(small, "whole") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(FinetuneError, match=r"whole/model.safetensors is not the file that") as caught:
        refused(small, "next", after)
    assert caught.value.reason is Reason.DataUnreadable
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    refused(small, "next", after)
    shutil.copyfile(weights, weights.with_name("consolidated.safetensors"))
    with pytest.raises(FinetuneError, match=r"whole/consolidated.safetensors is not the file that"):
        refused(small, "next", after)


def test_an_artifact_of_another_base_model_is_refused(small: Path) -> None:
    other = task(small, "next", seed=1, after="small", model={"uri": tiny_model(small / "other").as_uri()})
    with pytest.raises(FinetuneError, match=r"was trained from file:.*model, and model.uri is file:.*other") as caught:
        refused(small, "next", other)
    assert caught.value.reason is Reason.ModelUnsupported
    assert "Set model.uri: file:" in caught.value.hint


def test_training_rows_that_the_admin_does_not_allow_are_not_replayed(small: Path) -> None:
    spec = task(small, "next", seed=1, after="small", regularization=EARLIER)
    here = plan("next", spec).model_copy(update={"uri_prefixes": (small.as_uri(),)})
    check(here, cache=small / "cache")
    tests = (small / "data" / "small" / "heldout.jsonl").as_uri()
    elsewhere = here.model_copy(update={"uri_prefixes": (tests,)})
    with pytest.raises(
        FinetuneError, match=r"small are replayed, and .*train.jsonl is not allowed by the admin's"
    ) as e:
        check(elsewhere, cache=small / "cache")
    assert e.value.reason is Reason.InvalidSpec
    check(plan("next", spec | {"regularization": {}}).model_copy(update={"uri_prefixes": (tests,)}), cache=small)


def _without_names(folder: Path) -> None:
    found = Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    (folder / "manifest.json").write_bytes(found.model_copy(update={"trained_on": None}).encode())


def _other_measured(folder: Path) -> None:
    (folder / "evaluation" / "measured.bin").write_bytes(bytes(8))


def _more_rows(folder: Path) -> None:
    with (folder.parents[1] / "data" / folder.name / "train.jsonl").open("a") as file:
        file.write('{"prompt": "a", "completion": "b"}\n')


WITHOUT_ROWS = {
    "of an older release": (_without_names, Reason.InvalidSpec, "does not name the training data of its job"),
    "that measure something else": (_other_measured, Reason.DataUnreadable, "measured.bin is not the file that"),
    "that have changed": (_more_rows, Reason.DataChanged, "earlier task small .*train.jsonl is not the file that"),
}


@pytest.mark.parametrize(("damage", "reason", "words"), WITHOUT_ROWS.values(), ids=WITHOUT_ROWS)
def test_training_rows_that_cannot_be_replayed_are_refused(
    small: Path, damage: Any, reason: Reason, words: str
) -> None:
    caught = refused_after(small, damage, task(small, "next", seed=1, after="small", regularization=EARLIER), words)
    assert (caught.reason, bool(caught.hint)) == (reason, True)


def test_test_data_that_the_admin_does_not_allow_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its URI is in the earlier artifact, where no policy has seen it, and which may be another one after the
    preflight."""
    spec = task(small, "next", seed=1, after="small")
    here = plan("next", spec).model_copy(update={"uri_prefixes": (small.as_uri(),)})
    check(here, cache=small / "cache")
    elsewhere = here.model_copy(update={"uri_prefixes": ("s3://corp", (small / "output").as_uri())})
    with pytest.raises(FinetuneError, match=r"heldout.jsonl is not allowed by the admin's policy") as caught:
        check(elsewhere, cache=small / "cache")
    assert caught.value.reason is Reason.InvalidSpec
    monkeypatch.setenv(names.ENV_CACHE, str(small / "cache"))
    with pytest.raises(FinetuneError, match=r"heldout.jsonl is not allowed by the admin's policy"):
        run(elsewhere, RunDir(small / "runs" / "elsewhere"), dict(os.environ))


@pytest.mark.parametrize("method", ["full", "dora", "ia3"])
def test_an_adapter_is_no_start_for_a_method_that_needs_a_whole_model(small: Path, method: str) -> None:
    with pytest.raises(FinetuneError, match=f"method.type {method} needs a whole model") as caught:
        refused(small, "next", task(small, "next", seed=1, after="small", method={"type": method}))
    assert caught.value.reason is Reason.ModelUnsupported
    assert caught.value.hint == "Set method.type: lora, or use the earlier job with output.merged: true."
