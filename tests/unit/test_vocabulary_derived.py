"""The extended model as a folder: new rows are means of old ones, every other byte is the base model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.methods.servable import judge
from finetune_trainer.store.tensors import stored_tensors
from finetune_trainer.vocabulary import derived
from finetune_trainer.vocabulary.bpe import Bpe
from finetune_trainer.vocabulary.extension import Extension, Growing
from tests.support.tiny_model import tiny_model, tiny_tokenizer


def extended(base: Path, target: Path, *words: str) -> tuple[Bpe, Extension]:
    bpe = Bpe.of(base)
    growing = Growing(bpe, most=50)
    for word in words:
        assert growing.add(word)
    target.mkdir()
    derived.write(base, bpe, growing.made(), target)
    return bpe, growing.made()


def loaded(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    network: nn.Module = AutoModelForCausalLM.from_pretrained(folder)
    return network


def untied(folder: Path, *, dtype: torch.dtype = torch.float32, shards: str = "5GB") -> Path:
    """259 tokens, embeddings for 264, and a head of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    tiny_tokenizer(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=264, tie_word_embeddings=False, **sizes, **heads)).to(dtype)
    made.save_pretrained(folder, max_shard_size=shards)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_new_rows_are_the_means_of_their_pieces_and_old_ones_stay(tmp_path: Path, dtype: torch.dtype) -> None:
    base = untied(tmp_path / "base", dtype=dtype)
    _, extension = extended(base, tmp_path / "more", "STEMI", "ĠSTEMI")
    before, after = (
        [net.get_input_embeddings().weight.detach(), net.get_output_embeddings().weight.detach()]  # type: ignore[operator]
        for net in (loaded(base), loaded(tmp_path / "more"))
    )
    for old, new in zip(before, after, strict=True):
        assert new.dtype == dtype
        assert torch.equal(new[:259], old[:259])
        for id, pieces in zip(extension.ids, extension.pieces, strict=True):
            mean = old[list(pieces)].float().mean(0)
            assert torch.allclose(new[id].float(), mean, rtol=2**-8 if dtype == torch.bfloat16 else 1e-3)
            assert torch.equal(new[id], new[id].float().to(dtype))


def test_spare_rows_are_used_first_and_the_matrices_grow_by_what_is_lacking(tmp_path: Path) -> None:
    base = untied(tmp_path / "base")
    _, few = extended(base, tmp_path / "few", "abcd")
    assert few.ids == (259, 260, 261)
    assert loaded(tmp_path / "few").config.vocab_size == 264  # type: ignore[union-attr]
    for name, tensor in stored_tensors(tmp_path / "few").items():
        assert tensor.shape == stored_tensors(base)[name].shape
    extended(base, tmp_path / "more", "abcdefgh")
    network = loaded(tmp_path / "more")
    assert network.config.vocab_size == 266  # type: ignore[union-attr]
    assert network.get_input_embeddings().weight.shape == (266, 32)  # type: ignore[operator]


def test_every_other_tensor_is_the_base_models_to_the_bit(tmp_path: Path) -> None:
    base = untied(tmp_path / "base", shards="40KB")
    assert (base / "model.safetensors.index.json").exists()
    extended(base, tmp_path / "more", "abcdefgh")
    before, after = loaded(base).state_dict(), loaded(tmp_path / "more").state_dict()
    same = [name for name in before if torch.equal(before[name], after[name][: len(before[name])])]
    assert before.keys() == after.keys()
    assert set(before) - set(same) == {"model.embed_tokens.weight", "lm_head.weight"}, "spare rows got values"
    index = json.loads((tmp_path / "more" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.size for t in stored_tensors(tmp_path / "more").values())
    assert judge(tmp_path / "more").servable == "merged"


def test_the_library_reads_the_tokenizer_as_we_do(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = tiny_model(tmp_path / "base")
    (base / "vocab.json").write_text("{}")
    (base / "tokenizer.model").write_text("old")
    _, extension = extended(base, tmp_path / "more", "ĠSTEMI")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "more")
    assert tokenizer(" STEMI").input_ids == [extension.ids[-1]]
    assert tokenizer.decode(tokenizer("ST-segment, STEMI!").input_ids) == "ST-segment, STEMI!"
    assert tokenizer.eos_token_id == 258
    assert not (tmp_path / "more" / "vocab.json").exists(), "it lacks the new tokens"
    assert not (tmp_path / "more" / "tokenizer.model").exists()


def test_a_copy_has_other_rows_and_leaves_its_source_alone(tmp_path: Path) -> None:
    base = untied(tmp_path / "base")
    (base / "vocab.json").write_text("{}")
    before = {name: tensor.clone() for name, tensor in loaded(base).state_dict().items()}
    row = torch.full((32,), 7.0).numpy()
    derived.copy(base, tmp_path / "copy", rows={"lm_head.weight": {3: row}})
    after = loaded(tmp_path / "copy").state_dict()
    assert after["lm_head.weight"][3].tolist() == [7.0] * 32
    after["lm_head.weight"][3] = before["lm_head.weight"][3]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(now, before[name]) for name, now in loaded(base).state_dict().items())
    assert (tmp_path / "copy" / "vocab.json").exists(), "the tokenizer is the same"


def _config(base: Path, **changes: object) -> None:
    file = base / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"text_config": {"vocab_size": 264}}, "this model has towers next to its decoder"),
        ({"vocab_size": 265}, "this model has them as tensors of unknown names"),
    ],
)
def test_embeddings_that_are_not_known_are_refused(tmp_path: Path, changes: dict[str, object], why: str) -> None:
    base = untied(tmp_path / "base")
    _config(base, **changes)
    with pytest.raises(FinetuneError, match=why) as refused:
        derived.by_token(base)
    assert refused.value.reason is Reason.ModelUnsupported


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tmp_path: Path) -> None:
    base = untied(tmp_path / "base")
    content = json.loads((base / "tokenizer.json").read_text())
    content["model"]["vocab"]["xyz"] = 300
    (base / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(FinetuneError, match="the tokenizer has 301 tokens, and the model embeddings for 264"):
        extended(base, tmp_path / "more", "abc")
