"""The base model: where it comes from, what is refused, and what a hub's refusal means."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource
from finetune_trainer.store.models import resolve_model
from tests.support.fake_hub import COMMIT, Hub, environ, serving


def safetensors(size: int = 8) -> bytes:
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


MODEL = {
    "config.json": json.dumps({"architectures": ["LlamaForCausalLM"]}).encode(),
    "model.safetensors": safetensors(),
    "tokenizer.json": b"{}",
}


def folder(path: Path, files: dict[str, bytes]) -> ModelSource:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return ModelSource(uri=f"file://{path}")


def test_a_local_model_is_used_in_place(tmp_path: Path) -> None:
    model = resolve_model(folder(tmp_path / "m", MODEL), cache=tmp_path / "cache")
    assert (model.path, model.revision, model.uri) == (tmp_path / "m", None, f"file://{tmp_path}/m")


def test_a_model_on_a_claim_is_used_in_place(tmp_path: Path) -> None:
    folder(tmp_path / "claim" / "m", MODEL)
    source = ModelSource(uri="pvc://claim/m")
    model = resolve_model(source, cache=tmp_path / "cache", environ={"FINETUNE_PVC_ROOT": str(tmp_path)})
    assert model.path == tmp_path / "claim" / "m"


INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
ELSEWHERE = json.dumps({"weight_map": {"a": "../other/model.safetensors"}}).encode()
BERT = json.dumps({"architectures": ["BertForSequenceClassification"]}).encode()
GPT2 = json.dumps({"architectures": ["GPT2LMHeadModel"]}).encode()
PACKED = json.dumps({"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}}).encode()


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        ({"config.json": None}, Reason.ModelNotFound, "no readable config.json"),
        ({"config.json": b"{"}, Reason.ModelNotFound, "no readable config.json"),
        ({"config.json": b'{"a": ' + b"[" * 100_000}, Reason.ModelNotFound, "no readable config.json"),
        ({"config.json": BERT}, Reason.ModelUnsupported, "is a BertForSequenceClassification, not a causal language"),
        ({"config.json": b"{}"}, Reason.ModelUnsupported, "of an unknown architecture"),
        ({"config.json": PACKED}, Reason.ModelUnsupported, "has its weights quantised already (gptq)"),
        ({"model.safetensors": None}, Reason.ModelUnsupported, "no weights in safetensors format"),
        ({"model.safetensors": b"version https://git-lfs"}, Reason.ModelUnsupported, "is not a valid safetensors file"),
        ({"model.safetensors": safetensors()[:-1]}, Reason.ModelUnsupported, "is truncated: 75 bytes of 76"),
        ({"model.safetensors": b""}, Reason.ModelUnsupported, "is not a valid safetensors file"),
        (
            {"model.safetensors.index.json": INDEX, "model-1.safetensors": safetensors()},
            Reason.ModelUnsupported,
            "lacks model-2.safetensors",
        ),
        (
            {
                "model.safetensors.index.json": INDEX,
                "model-1.safetensors": safetensors(),
                "model-2.safetensors": safetensors(),
            },
            Reason.ModelUnsupported,
            "holds two models",
        ),
        ({"model.safetensors": None, "model.safetensors.index.json": b"[]"}, Reason.ModelUnsupported, "not an index"),
        (
            {"model.safetensors": None, "model.safetensors.index.json": b"[" * 100_000},
            Reason.ModelUnsupported,
            "not an index",
        ),
        (
            {"model.safetensors": None, "model.safetensors.index.json": ELSEWHERE},
            Reason.ModelUnsupported,
            "names '../other/model.safetensors', which is not a file next to it",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(
    tmp_path: Path, change: dict[str, bytes | None], reason: Reason, says: str
) -> None:
    files = {name: data for name, data in (MODEL | change).items() if data is not None}
    (tmp_path / "m").mkdir()
    with pytest.raises(FinetuneError) as caught:
        resolve_model(folder(tmp_path / "m", files), cache=tmp_path)
    assert caught.value.reason is reason
    assert says in caught.value.message
    assert caught.value.hint


def test_gpt2_is_a_causal_model_by_another_name(tmp_path: Path) -> None:
    resolve_model(folder(tmp_path, MODEL | {"config.json": GPT2}), cache=tmp_path)


def test_a_missing_folder_is_a_missing_model(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        resolve_model(ModelSource(uri=f"file://{tmp_path}/none"), cache=tmp_path)
    assert caught.value.reason is Reason.ModelNotFound


@pytest.mark.parametrize("name", sorted(MODEL))
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a volume belongs to another user; told before the gang waits, whoever reads the file later."""
    source, really = folder(tmp_path / "m", MODEL), Path.open

    def open_it(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_it)
    with pytest.raises(FinetuneError) as caught:
        resolve_model(source, cache=tmp_path)
    assert caught.value.reason is Reason.CredentialsRejected
    assert caught.value.message == f"cannot read file://{tmp_path}/m/{name}: Permission denied"
    assert "pod.fsGroup" in caught.value.hint


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving("models/org/model", MODEL) as hub:
        yield hub


HUB_MODEL = ModelSource(uri="hf://org/model")


def test_a_hub_model_is_downloaded_and_its_commit_recorded(hub: Hub, tmp_path: Path) -> None:
    hub.files |= {"pytorch_model.bin": b"pickle", "onnx/config.json": b"{}", "modeling.py": b"import os"}
    model = resolve_model(HUB_MODEL, cache=tmp_path, environ=environ(hub, token="hf_secret"))
    assert model.revision == COMMIT
    assert {p.name: p.read_bytes() for p in model.path.iterdir()} == MODEL
    assert hub.tokens == {"Bearer hf_secret"}


def test_named_chat_templates_come_with_a_hub_model(hub: Hub, tmp_path: Path) -> None:
    template = "additional_chat_templates/tool_use.jinja"
    hub.files |= {template: b"{{ tools }}", "original/params.json": b"{}", "assets/a.json": b"{}"}
    model = resolve_model(HUB_MODEL, cache=tmp_path, environ=environ(hub))
    found = {str(p.relative_to(model.path)) for p in model.path.rglob("*") if not p.is_dir()}
    assert found == {*MODEL, template}
    assert "tool_use.jinja" in model.digests(), "another template would be other training data"


def test_a_pinned_model_in_the_cache_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    pinned = ModelSource(uri="hf://org/model", revision=COMMIT)
    first = resolve_model(pinned, cache=tmp_path, environ=environ(hub))
    hub.refuse = (503, "")
    assert resolve_model(pinned, cache=tmp_path, environ=environ(hub)) == first


@pytest.mark.parametrize(
    ("refuse", "token", "reason"),
    [
        ((404, "RepoNotFound"), "", Reason.ModelNotFound),
        ((404, "RepoNotFound"), "CANARY", Reason.ModelNotFound),
        ((404, "RevisionNotFound"), "", Reason.ModelNotFound),
        ((401, ""), "", Reason.ModelNotFound),  # what the hub tells strangers about models that are not there
        ((401, ""), "CANARY", Reason.CredentialsRejected),
        ((403, "GatedRepo"), "", Reason.CredentialsMissing),
        ((403, "GatedRepo"), "CANARY", Reason.CredentialsRejected),
        ((403, ""), "CANARY", Reason.CredentialsRejected),
        ((400, ""), "", Reason.StorageUnavailable),
    ],
)
def test_a_hubs_refusals(hub: Hub, tmp_path: Path, refuse: tuple[int, str], token: str, reason: Reason) -> None:
    hub.refuse = refuse
    with pytest.raises(FinetuneError) as caught:
        resolve_model(HUB_MODEL, cache=tmp_path, environ=environ(hub, token))
    assert caught.value.reason is reason
    assert "hf://org/model" in caught.value.message
    assert "CANARY" not in f"{caught.value} {caught.value.__cause__!r}"


def test_an_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="hf://org/model has no revision v9"):
        resolve_model(ModelSource(uri="hf://org/model", revision="v9"), cache=tmp_path, environ=environ(hub))


def test_no_hub_at_all_is_said_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        resolve_model(HUB_MODEL, cache=tmp_path, environ={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert caught.value.reason is Reason.StorageUnavailable
    assert "HF_ENDPOINT" in caught.value.hint


def test_nothing_lets_a_model_run_its_code() -> None:
    trainer = Path(__file__).parents[2] / "trainer"
    assert [file.name for file in trainer.rglob("*.py") if "trust_remote_code" in file.read_text()] == []
