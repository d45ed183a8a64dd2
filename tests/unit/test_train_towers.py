"""Text rows train the language model inside a larger class, and what is written is what the class loads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method, Partial
from finetune_api.spec import Output, Training
from finetune_trainer.agent.preflight import check
from finetune_trainer.decoder_blocks import decoder_layers, language_weights
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.servable import judge
from finetune_trainer.parallel.single import Single
from finetune_trainer.planning.memory import trained_parameters
from finetune_trainer.planning.model import check_tensors, read_shape
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.models import check_model
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.tensors import tensors_of
from finetune_trainer.train import artifact_commit
from finetune_trainer.train.model import load_network
from finetune_trainer.train.run import Kept, _work
from finetune_trainer.train.setup import prepare
from tests.support.asked_in_process import ask_in_process
from tests.support.multimodal_models import SHAPES, tower_model
from tests.support.tiny_model import tiny_corpus
from tests.support.training import BASE, CPU, network, plan_for

FAMILIES = sorted(SHAPES)
TOKENS = torch.arange(20, 44).view(2, 12)


def logits(network: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, network.eval()(input_ids=tokens).logits)


def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, **output: Any) -> Tensor:
    """A run of a few steps on the model in tmp_path/model; answers with the logits of what trained."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    tiny_corpus(tmp_path, rows=8, heldout=2)
    plan = plan_for(
        tmp_path,
        method=method,
        data=Data(train=(TrainSource(uri=f"file://{tmp_path}/train.jsonl"),), sequence_length=64),
        training=Training(batch_size=4, max_steps=3, learning_rate=0.01),
        output=Output(uri=f"file://{tmp_path}/output", **output),
    )
    folder = open_folder(plan.spec.output.uri, prefix="")
    setup = prepare(plan, gang=Single(), device=CPU, output=folder, run_dir=RunDir(tmp_path / "run"))
    seen: list[Tensor] = []
    commit = artifact_commit.commit

    def watched(*given: Any) -> Any:
        ids = torch.from_numpy(getattr(setup.attached, "ids", np.zeros(0, np.int32))).long()
        seen.append(logits(setup.trainer.model.network, torch.cat([ids.expand(2, -1), TOKENS], 1)))
        return commit(*given)

    monkeypatch.setattr("finetune_trainer.train.run.commit", watched)
    artifact_commit.check_export(setup)
    _work(setup, folder, Kept(plan, folder, {}))
    return seen[0]


def by_the_card(artifact: Path) -> nn.Module:
    """What the model card's snippet loads."""
    snippet = cast(re.Match[str], re.search(r"```python\n(.+?)```", (artifact / "README.md").read_text(), re.S))[1]
    made: dict[str, Any] = {}
    exec(snippet.replace("path/of/this/folder", str(artifact)), made)
    assert made["tokenizer"].eos_token == "<|im_end|>"
    return cast(nn.Module, made["model"])


METHODS = [
    Method(type="lora", lora=Lora(rank=4)),
    Method(type="full"),
    Method(type="partial", partial=Partial(layers=1)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_cards_snippet_loads_what_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, method: Method
) -> None:
    source = tower_model(tmp_path / "model", family)
    untouched = logits(getattr(transformers, f"{family}ForConditionalGeneration").from_pretrained(source))
    measured = trained(tmp_path, monkeypatch, method)
    assert not torch.allclose(measured, untouched, atol=1e-3)
    loaded = by_the_card(tmp_path / "output")
    torch.testing.assert_close(logits(loaded), measured, rtol=1e-5, atol=1e-5)
    assert (tmp_path / "output" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("method", METHODS[1:], ids=lambda method: method.type)
@pytest.mark.parametrize("family", ["Gemma3", "Gemma4", "Qwen3_5"])
def test_a_whole_export_has_every_tensor_and_the_tower_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, method: Method
) -> None:
    """In bfloat16, but for a part of the tower; with a head for other tasks that the class leaves out."""
    source = tower_model(tmp_path / "model", family, dtype="bfloat16")
    before = load_file(source / "model.safetensors")
    precise = next(name for name in before if "vision" in name or "visual" in name)
    before[precise] = torch.randn(before[precise].shape)
    if family == "Qwen3_5":
        before["mtp.fc.weight"] = torch.randn(4, 4)
    save_file(before, source / "model.safetensors", metadata={"format": "pt"})
    trained(tmp_path, monkeypatch, method)
    after = load_file(tmp_path / "output" / "model.safetensors")
    assert after.keys() == before.keys()
    assert {name: tensor.dtype for name, tensor in after.items()} == {n: t.dtype for n, t in before.items()}
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    tower = {name for name in before if re.search("vis|multi_modal|mtp|layer_scalar", name)}
    assert changed
    assert not changed & tower
    if method.type == "partial":
        assert all(".layers.1." in name for name in changed)
    config = json.loads((tmp_path / "output" / "config.json").read_text())
    assert (config["dtype"], config["text_config"]["dtype"]) == ("bfloat16", "bfloat16")
    loaded = getattr(transformers, f"{family}ForConditionalGeneration").from_pretrained(tmp_path / "output")
    assert loaded.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_are_those_of_the_language_model_though_the_tower_is_deeper(tmp_path: Path, family: str) -> None:
    net, _ = load_network(tower_model(tmp_path, family), dtype=torch.float32, strategy=Single(), device=CPU)
    layers = decoder_layers(net)
    assert (layers.prefix, layers.count) == ("model.language_model.layers", 2)
    inside = language_weights(net)
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in inside)
    assert len(inside) < len(list(net.parameters()))


def test_the_whole_model_beside_an_adapter_is_the_class_with_the_tower_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tower_model(tmp_path / "model", "Gemma3")
    measured = trained(tmp_path, monkeypatch, METHODS[0], merged=True)
    merged = tmp_path / "output" / "merged"
    loaded = transformers.Gemma3ForConditionalGeneration.from_pretrained(merged)
    torch.testing.assert_close(logits(loaded), measured, rtol=1e-5, atol=1e-5)
    before, after = (load_file(folder / "model.safetensors") for folder in (source, merged))
    assert after.keys() == before.keys()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert all(re.fullmatch(r"language_model\.model\.layers\.\d\..+_proj\.weight", name) for name in changed)
    assert len(changed) == 14
    assert (merged / "preprocessor_config.json").is_file()
    record = json.loads((tmp_path / "output" / "run.json").read_text())
    assert record["servable"] == "lora"
    assert any("servable as merged" in note for note in record["notes"])


NOT_TAKEN = [("Gemma3", "prefix"), ("Gemma4", "prefix"), ("Gemma4", "prompt"), ("Gemma4", "ptuning")]
TAKEN = [
    (family, kind)
    for family in ("Gemma3", "Gemma4", "Mistral3", "Qwen2_5_VL")
    for kind in ("dora", "adapter", "prompt", "ptuning", "prefix")
    if (family, kind) not in NOT_TAKEN
]


@pytest.mark.parametrize(("family", "kind"), TAKEN)
def test_every_other_method_is_loaded_by_the_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: Any
) -> None:
    tower_model(tmp_path / "model", family)
    measured = trained(tmp_path, monkeypatch, Method(type=kind))
    torch.testing.assert_close(logits(by_the_card(tmp_path / "output")), measured, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "kind"), NOT_TAKEN)
def test_a_learned_input_that_the_class_cannot_take_is_refused_before_the_gang_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: Any
) -> None:
    tower_model(tmp_path / "model", family)
    tiny_corpus(tmp_path, rows=4, heldout=1)
    ask_in_process(monkeypatch)
    for refused in (
        lambda: check(plan_for(tmp_path, method=Method(type=kind)), cache=tmp_path / "cache"),
        lambda: trained(tmp_path, monkeypatch, Method(type=kind)),
    ):
        with pytest.raises(FinetuneError, match=f"method.type {kind} does not go with {family}For") as caught:
            refused()
        assert caught.value.reason is Reason.ModelUnsupported


def test_four_bits_are_those_of_the_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bitsandbytes")
    monkeypatch.setitem(SHAPES["Mistral3"]["text_config"], "hidden_size", 64)
    monkeypatch.setitem(SHAPES["Mistral3"]["text_config"], "head_dim", 16)
    tower_model(tmp_path / "model", "Mistral3")
    trained(tmp_path, monkeypatch, Method(type="qlora"))
    keys = stored_tensors_of(tmp_path / "output")
    assert keys
    assert all(key.startswith("base_model.model.model.language_model.layers.") for key in keys)
    by_the_card(tmp_path / "output")


def stored_tensors_of(artifact: Path) -> list[str]:
    return sorted(tensors_of(artifact / "adapter_model.safetensors"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_what_is_loaded_and_what_trains(tmp_path: Path, family: str) -> None:
    folder = tower_model(tmp_path, family)
    shape = read_shape(folder)
    scales = 2 if family == "Gemma4" else 0  # a saved buffer of each layer, which is no parameter
    for method in METHODS:
        net, _ = load_network(folder, dtype=torch.float32, strategy=Single(), device=CPU)
        assert abs(shape.parameters - sum(p.numel() for p in net.parameters())) <= scales
        attached = method_of(method).attach(net, seed=1, base=BASE)
        assert abs(trained_parameters(shape, method) - sum(p.numel() for p in attached.trainable.values())) <= scales, (
            method.type
        )
    assert len(shape.blocks) == shape.layers == 2
    check_tensors(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, "not a causal language model"),
        ({"architectures": ["XForConditionalGeneration"], "text_config": {"is_encoder_decoder": True}}, "not a causal"),
        ({"architectures": ["SiglipModel"], "text_config": {}}, "not a causal language model"),
    ],
)
def test_classes_without_a_language_model_inside_are_refused(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(FinetuneError, match=says) as caught:
        check_model(tmp_path, "file:///m")
    assert caught.value.reason is Reason.ModelUnsupported


def test_what_serves_a_class_with_towers(tmp_path: Path) -> None:
    tower_model(tmp_path, "Gemma3", processor=False)
    level, reasons = judge(tmp_path)
    assert (level, len(reasons)) == ("hf-only", 1)
    assert "neither preprocessor_config.json nor processor_config.json" in reasons[0]
    assert judge(tmp_path, beside=["processor_config.json"]).servable == "merged"


@pytest.mark.parametrize(
    ("kind", "level"),
    [("Gemma3ForConditionalGeneration", "lora"), ("Mistral3ForConditionalGeneration", "lora"),
     ("LlamaForCausalLM", "lora"), ("ChameleonForConditionalGeneration", "hf-only")],
)  # fmt: skip
def test_an_adapter_is_judged_against_the_class_that_it_is_for(tmp_path: Path, kind: str, level: str) -> None:
    method_of(METHODS[0]).attach(network(), seed=1, base=BASE).export(tmp_path)
    assert judge(tmp_path, kind=kind).servable == level
