"""A merged model computes what base and adapter compute, and its folder is one that anybody loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_trainer.methods import merged
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.servable import judge
from tests.support.training import BASE, network

WIDE = {"hidden_size": 64, "intermediate_size": 128}
"""Rows of 64 weights, which the 4-bit kernel wants."""

METHODS = [
    Method(type="lora", lora=Lora(rank=4)),
    Method(type="lora", lora=Lora(rank=4, targets="attention", dropout=0.1)),
    Method(type="dora", dora=Lora(rank=4)),
    Method(type="qlora", qlora=Lora(rank=4)),
    Method(type="qlora", qlora=Lora(rank=4, targets="attention")),
]


def adapted(method: Method, folder: Path, *, kind: str = "Llama", **saved: Any) -> nn.Module:
    """A network whose base lies in `folder`, with an adapter that changes much."""
    changes = WIDE if kind == "Llama" else {}
    made: Any = network(kind, **changes)
    made.save_pretrained(folder, **saved)
    attached = method_of(method).attach(made, seed=3, base=BASE)
    chosen = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in attached.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=chosen), alpha=0.2)
    return made.eval()


@torch.no_grad()
def logits(net: nn.Module) -> torch.Tensor:
    return net(input_ids=torch.arange(2, 26)[None]).logits  # type: ignore[no-any-return]


def load(folder: Path, kind: str = "LlamaForCausalLM") -> nn.Module:
    import transformers

    made: nn.Module = getattr(transformers, kind).from_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.type}-{m.low_rank.targets}")
def test_a_merged_model_answers_as_base_and_adapter_do(method: Method, tmp_path: Path) -> None:
    net = adapted(method, tmp_path / "base")
    calls: list[int] = []
    merged.write(merged.low_rank_changes(net), tmp_path / "base", tmp_path / "merged", alive=lambda: calls.append(1))
    ours, base = logits(net), logits(load(tmp_path / "base"))
    found = logits(load(tmp_path / "merged"))
    assert (found - ours).abs().max() < 1e-4
    assert (ours - base).abs().max() > 0.1
    assert judge(tmp_path / "merged").servable == "merged"
    assert calls


def test_a_layer_that_keeps_its_weight_transposed_is_merged_so(tmp_path: Path) -> None:
    net = adapted(METHODS[0], tmp_path / "base", kind="GPT2")
    merged.write(merged.low_rank_changes(net), tmp_path / "base", tmp_path / "merged", alive=lambda: None)
    assert (logits(load(tmp_path / "merged", "GPT2LMHeadModel")) - logits(net)).abs().max() < 1e-4


def test_several_files_stay_several(tmp_path: Path) -> None:
    net = adapted(METHODS[0], tmp_path / "base", max_shard_size="100KB")
    merged.write(merged.low_rank_changes(net), tmp_path / "base", tmp_path / "merged", alive=lambda: None)
    names = sorted(file.name for file in (tmp_path / "merged").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "base").iterdir())
    assert sum(name.endswith(".safetensors") for name in names) > 1
    assert (logits(load(tmp_path / "merged")) - logits(net)).abs().max() < 1e-4


def test_only_adapted_matrices_change_and_dtypes_stay(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made: Any = network(**WIDE)
    made.bfloat16().save_pretrained(tmp_path / "base")
    net = load(tmp_path / "base")
    method_of(METHODS[1]).attach(net, seed=3, base=BASE)
    merged.write(merged.low_rank_changes(net), tmp_path / "base", tmp_path / "merged", alive=lambda: None)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "merged"))
    assert before.keys() == after.keys()
    for name, tensor in after.items():  # a fresh adapter is the identity
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]), name


def test_files_that_name_their_tensors_otherwise_are_refused_before_training(tmp_path: Path) -> None:
    net = adapted(METHODS[0], tmp_path / "base")
    merged.check(merged.low_rank_changes(net), tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    renamed = json.dumps({name.replace("q_proj", "query"): entry for name, entry in header.items()}).encode()
    file.write_bytes(len(renamed).to_bytes(8, "little") + renamed + content[8 + length :])
    with pytest.raises(FinetuneError, match=r"no tensor model\.layers\.0\.self_attn\.q_proj\.weight") as refused:
        merged.check(merged.low_rank_changes(net), tmp_path / "base")
    assert refused.value.reason is Reason.ModelUnsupported
