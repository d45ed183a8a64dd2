"""Every load path accounts for every weight and every tensor, before a byte of them is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_trainer.agent.preflight import check
from finetune_trainer.agent.weights import check_weights
from finetune_trainer.methods.qlora import packed_layers
from finetune_trainer.parallel.lazy_weights import Files, empty_network, names_by_parameter
from finetune_trainer.parallel.single import Single
from finetune_trainer.parallel.weight_names import account_of
from finetune_trainer.planning.layout import is_exactly
from finetune_trainer.planning.model import check_tensors
from finetune_trainer.store.tensors import stored_tensors
from finetune_trainer.train.model import load_network
from tests.support.asked_in_process import ask_in_process
from tests.support.tiny_model import tiny_corpus
from tests.support.training import CPU, network, plan_for

Tensors = dict[str, Tensor]


def saved(folder: Path, kind: str = "Llama", change: Callable[[Tensors], Tensors] | None = None, **shape: Any) -> Path:
    """A tiny model in `folder`, its tensors changed."""
    network(kind, **shape).save_pretrained(folder)
    if change:
        file = folder / "model.safetensors"
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def with_rows(tensors: Tensors) -> Tensors:
    return tensors | {"model.embed_tokens.weight": torch.zeros(105, 32)}


def also(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(4)}


UNTIED = {"tie_word_embeddings": False}
WRONG = [
    pytest.param("Llama", also("model.layers.0.self_attn.q_proj.bias"), {}, "1 tensor(s) fit nothing: model.layers.0",
                 "", id="a bias that the class has not"),
    pytest.param("Llama", also("model.layers.0.attn.bias"), {}, "1 tensor(s) fit nothing: model.layers.0.attn.bias",
                 "", id="a bias, which is no mask"),
    pytest.param("Llama", without("layers.1.mlp.up_proj"), {}, "1 weight(s) are missing: model.layers.1.mlp.up_proj",
                 "LlamaForCausalLM.save_pretrained", id="a tensor absent"),
    pytest.param("Llama", without("up_proj"), {}, "2 weight(s) are missing", "again", id="one absent in all blocks"),
    pytest.param("Llama", without("model.norm"), {}, "missing: model.norm.weight", "", id="the last norm absent"),
    pytest.param("Llama", without("lm_head"), UNTIED, "missing: lm_head.weight", "tie_word_embeddings", id="no head"),
    pytest.param("GPTNeoX", without("embed_out"), UNTIED, "missing: lm_head.weight", "tie_word_embeddings",
                 id="no head of another name"),
    *[
        pytest.param("Llama", prefixed(prefix), {}, f"fit nothing: {prefix}", f"begin with {prefix}", id=prefix)
        for prefix in ("language_model.", "base_model.model.", "_orig_mod.", "module.")
    ],
    pytest.param("Llama", with_rows, {}, "(105, 32), config.json means (97, 32)", "vocab_size", id="more rows"),
    pytest.param("Llama", also("v_head.weight"), {}, "1 tensor(s) fit nothing: v_head.weight", "", id="a value head"),
    pytest.param("Llama", lambda t: t | {"lm_head.weight": torch.ones(97, 32)}, {"tie_word_embeddings": True},
                 "lm_head.weight and model.embed_tokens.weight", "tie_word_embeddings: false", id="tied and different"),
    pytest.param("Mixtral", without("experts.1.w1"), {}, "experts.1.w1.weight", "", id="an expert's tensor absent"),
    pytest.param("Mixtral", without("0.block_sparse_moe.experts.7."), {}, "(7, ", "", id="an expert absent"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "shape", "says", "hint"), WRONG)
def test_files_that_do_not_hold_the_model_are_refused_by_name(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors], shape: dict[str, Any], says: str, hint: str
) -> None:
    folder = saved(tmp_path, kind, change, **shape)
    with pytest.raises(FinetuneError) as caught:
        account_of(folder).require_even()
    assert caught.value.reason is Reason.ModelUnsupported
    assert says in caught.value.message
    assert hint in caught.value.hint


GPT2_MASKS = {f"h.{n}.attn.bias": torch.ones(1, 1, 4, 4) for n in range(2)}
RIGHT = [
    pytest.param("Llama", None, {}, "", id="as saved"),
    pytest.param("Llama", None, {"tie_word_embeddings": True}, "are tied to others: lm_head.weight", id="tied"),
    pytest.param("Llama", lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()},
                 {"tie_word_embeddings": True}, "", id="tied, and saved twice"),
    pytest.param("Llama", lambda t: {k.removeprefix("model."): v for k, v in t.items()}, {"tie_word_embeddings": True},
                 "embed_tokens.weight is model.embed_tokens.weight", id="a bare body"),
    pytest.param("Llama", also("model.layers.0.self_attn.rotary_emb.inv_freq"), {},
                 "1 tensor(s) are left out, which the model's class computes or declares unused: model.layers.0",
                 id="frequencies"),
    pytest.param("GPT2", lambda t: t | GPT2_MASKS, {}, "2 tensor(s) are left out", id="masks of GPT-2"),
    *[
        pytest.param(kind, lambda t, added=added: t | added, {}, "2 tensor(s) are left out", id=f"{kind} {what}")
        for kind, what, added in (
            ("GPT2", "fill of masks", {f"transformer.h.{n}.attn.masked_bias": torch.ones(1) for n in range(2)}),
            ("Llama", "masks", {f"model.layers.{n}.attn.attention.bias": torch.ones(1, 1, 4, 4) for n in range(2)}),
            ("GPTBigCode", "masks", {f"transformer.h.{n}.attn.bias": torch.ones(4, 4) for n in range(2)}),
            ("Llama", "tables", {f"model.layers.{n}.self_attn.rotary_emb.cos_cached": torch.ones(4) for n in range(2)}),
        )
    ],
    pytest.param("Mixtral", None, {}, "4 weight(s) are put together from other tensors", id="experts"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "change", "shape", "says"), RIGHT)
def test_what_the_class_declares_is_reported_and_no_fault(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors] | None, shape: dict[str, Any], says: str
) -> None:
    found = account_of(saved(tmp_path, kind, change, **shape))
    found.require_even()
    assert says in "\n".join(found.lines())
    assert bool(says) == bool(list(found.lines()))


LACKING = without("layers.1.mlp.up_proj")


@pytest.mark.parametrize("in_four_bits", [False, True], ids=["plain", "4 bits"])
def test_no_network_is_built_from_files_that_lack_something(tmp_path: Path, in_four_bits: bool) -> None:
    """load_network is where every strategy begins: plain, fsdp, ZeRO."""

    class Nowhere(Single):
        def build(self, *_: Any, **__: Any) -> nn.Module:
            raise AssertionError("weights were read")

    packed = partial(packed_layers, device=CPU) if in_four_bits else None
    with pytest.raises(FinetuneError, match="up_proj") as caught:
        load_network(
            saved(tmp_path, change=LACKING), dtype=torch.float32, strategy=Nowhere(), device=CPU, packed=packed
        )
    assert caught.value.reason is Reason.ModelUnsupported


@pytest.mark.parametrize("kind", ["Llama", "Mixtral"])
def test_the_preflight_refuses_before_the_gang_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    ask_in_process(monkeypatch)
    saved(tmp_path / "model", kind, without("layers.1.self_attn.q_proj"))
    tiny_corpus(tmp_path, rows=4, heldout=1)
    with pytest.raises(FinetuneError, match=r"layers\.1\.self_attn\.q_proj\.weight") as caught:
        check(plan_for(tmp_path, method=Method(type="lora")), cache=tmp_path / "cache")
    assert caught.value.reason is Reason.ModelUnsupported


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("Llama", with_rows, "(105, 32), config.json means (97, 32)"),
        ("Gemma2", with_rows, "(105, 32), config.json means (97, 32)"),
        ("Llama", LACKING, "missing: model.layers.1.mlp.up_proj.weight"),
        ("Llama", prefixed("_orig_mod."), "fit nothing: _orig_mod."),
        ("Llama", without("lm_head"), "missing: lm_head.weight"),
    ],
)
def test_a_plan_says_what_the_run_would(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors], says: str
) -> None:
    folder = saved(tmp_path, kind, change)
    for ask in (check_tensors, lambda folder: account_of(folder).require_even()):
        with pytest.raises(FinetuneError) as caught:
            ask(folder)
        assert says in caught.value.message
        assert caught.value.reason is Reason.ModelUnsupported


@pytest.mark.parametrize(("kind", "change", "shape", "says"), RIGHT)
def test_a_plan_refuses_nothing_that_trains(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors] | None, shape: dict[str, Any], says: str
) -> None:
    check_tensors(saved(tmp_path, kind, change, **shape))


DENSE = [
    ("Llama", {}), ("Llama", {"attention_bias": True, "mlp_bias": True}), ("Llama", {"tie_word_embeddings": True}),
    ("Llama", {"head_dim": 16}), ("Mistral", {}), ("Qwen2", {}), ("Qwen3", {"head_dim": 8}),
    ("Qwen3", {"head_dim": 8, "attention_bias": True}), ("SmolLM3", {"attention_bias": True, "pad_token_id": 0}),
    ("Gemma", {"head_dim": 8}), ("Gemma2", {}), ("Gemma3Text", {"head_dim": 8, "num_key_value_heads": 2}),
    ("Phi3", {"num_key_value_heads": 2, "pad_token_id": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shape"), DENSE)
def test_dense_families_are_known_without_torch(tmp_path: Path, kind: str, shape: dict[str, Any]) -> None:
    folder = saved(tmp_path, kind, **shape)
    config = json.loads((folder / "config.json").read_bytes())
    tensors = {name: tensor.shape for name, tensor in stored_tensors(folder).items()}
    assert is_exactly(config, tensors), "else the class is asked, which takes seconds"
    assert check_weights(folder) == []
    account_of(folder).require_even()
    for name, size in tensors.items():
        assert not is_exactly(config, {n: s for n, s in tensors.items() if n != name})
        assert not is_exactly(config, tensors | {name: (1, *size)})
    assert not is_exactly(config, tensors | {"more": (1,)})


@pytest.mark.parametrize(
    ("kind", "change"),
    [("Llama", None), ("GPT2", None), ("GPT2", prefixed("transformer.")), ("GPTNeoX", None)],
    ids=["llama", "a bare body", "a whole one", "neox"],
)  # fmt: skip
def test_a_network_that_is_read_in_slices_is_the_plain_one(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Tensors] | None
) -> None:
    folder = saved(tmp_path, kind, change)
    plain, _ = load_network(folder, dtype=torch.float32, strategy=Single(), device=CPU)
    empty = empty_network(type(plain), config=transformers.AutoConfig.from_pretrained(folder))
    files = Files.of(folder, empty)
    for names in names_by_parameter(empty).values():
        assert torch.equal(files.read(names), plain.get_parameter(names[0]))


def test_saved_buffers_are_read_in_slices_too(tmp_path: Path) -> None:
    """A scale for each layer, which trained models have and constructors set to 1."""

    class Scaled(nn.Module):
        base_model_prefix = "model"
        config = transformers.LlamaConfig()

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("layer_scalar", torch.ones(1))
            self.register_buffer("made", torch.ones(1), persistent=False)

    made = Scaled()
    save_file({"layer_scalar": torch.tensor([0.25])}, tmp_path / "model.safetensors")
    Files(stored_tensors(tmp_path), {"layer_scalar": "layer_scalar"}).fill_buffers(made)
    assert (float(made.layer_scalar), float(made.made)) == (0.25, 1.0)


def test_only_the_files_of_the_model_are_read(tmp_path: Path) -> None:
    """Adapters, and weights in other layouts, may lie beside them."""
    folder = saved(tmp_path)
    before = stored_tensors(folder)
    save_file({"model.norm.weight": torch.zeros(32)}, folder / "adapter_model.safetensors")
    save_file({"norm.weight": torch.zeros(32)}, folder / "consolidated.safetensors")
    assert stored_tensors(folder) == before
