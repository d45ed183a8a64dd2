"""Rows of the embeddings that train while the others stay: the gradients of a whole matrix, without its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Adapter, Lora, Method
from finetune_trainer.train.method_support import answer
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout
from finetune_trainer.vocabulary import derived
from finetune_trainer.vocabulary.rows import VocabularyRows
from tests.support.training import (
    CPU,
    VOCAB,
    Knobs,
    Run,
    documents,
    interrupted,
    largest_difference,
    make_run,
    model,
    network,
    replace,
)

IDS = (5, 40, 41, 96)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "untied": ("Llama", {}),
    "transposed": ("GPT2", {}),
    "capped logits": ("Gemma2", {}),
    "scaled embeddings": ("Gemma3Text", {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCAB}),
}


def made(folder: Path, kind: str) -> tuple[nn.Module, Path]:
    name, changes = KINDS[kind]
    net = network(name, **changes)
    net.save_pretrained(folder)  # type: ignore[operator]
    return net.requires_grad_(False), folder


def with_rows(net: nn.Module, folder: Path) -> tuple[LanguageModel, VocabularyRows]:
    rows = VocabularyRows.of(net, folder, IDS, device=CPU)
    probed = replace(model(net), rows=rows)
    rows.install(net)
    return probed, rows


def batch() -> tuple[Layout, object]:
    layout = Layout(max_tokens=64, sequence_length=64, packing=True, pad_id=0)
    return layout, layout.batches(documents([20, 30], masked=0.0), torch.arange(2).numpy())[0]


def nats(of: LanguageModel) -> torch.Tensor:
    return of.nats(batch()[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_rows_of_a_whole_matrix(tmp_path: Path, kind: str) -> None:
    net, folder = made(tmp_path, kind)
    whole = network(KINDS[kind][0], **KINDS[kind][1])
    expected = nats(model(whole))
    expected.backward()  # type: ignore[no-untyped-call]
    ours, rows = with_rows(net, folder)
    found = nats(ours)
    found.backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(found, expected, rtol=1e-6)
    given, wanted = whole.get_input_embeddings().weight, whole.get_output_embeddings().weight  # type: ignore[operator]
    assert rows.tied == (given is wanted)
    assert rows.given.grad is not None
    assert rows.wanted.grad is not None
    assert float(rows.wanted.grad.abs().sum()) > 0
    assert torch.allclose(rows.given.grad, given.grad[list(IDS)], atol=1e-5)
    assert torch.allclose(rows.wanted.grad, wanted.grad[list(IDS)], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_computes_with_rows_that_changed_and_keeps_all_others(tmp_path: Path, kind: str) -> None:
    net, folder = made(tmp_path, kind)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    ours, rows = with_rows(net, folder)
    with torch.no_grad():
        assert nats(ours) == nats(model(network(KINDS[kind][0], **KINDS[kind][1])))
        for parameter in rows.trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
        changed = nats(ours)
    derived.overwrite(folder, rows.written())
    again = type(net).from_pretrained(folder, dtype=torch.float32)  # type: ignore[attr-defined]
    again.set_attn_implementation(net.config._attn_implementation)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.allclose(nats(model(again)), changed, rtol=1e-6)
    others = torch.ones(VOCAB, dtype=torch.bool).index_fill(0, torch.tensor(IDS), value=False)
    for name, parameter in net.named_parameters():
        left, right = parameter.detach(), before[name]
        if name in {*rows.names, *(f"transformer.{each}" for each in rows.names)}:
            assert not torch.equal(left, right)
            left, right = left[others], right[others]
        assert torch.equal(left, right)


def test_settled_rows_are_those_that_are_written(tmp_path: Path) -> None:
    net = network("Llama").to(torch.bfloat16)
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    rows = VocabularyRows.of(net, tmp_path, IDS, device=CPU)
    with torch.no_grad():
        rows.given.add_(1e-3 * torch.randn(rows.given.shape, generator=torch.Generator().manual_seed(3)))
    rows.settle()
    derived.overwrite(tmp_path, rows.written())
    again = VocabularyRows.of(net, tmp_path, IDS, device=CPU)
    assert torch.equal(again.given, rows.given)
    assert torch.equal(rows.given, rows.given.to(torch.bfloat16).float())


LORA = Method(type="lora", lora=Lora(rank=4))


RUNS = {
    "lora": Knobs(method=LORA, rows=IDS),
    "lora, 8-bit": Knobs(method=LORA, rows=IDS, optimizer="adamw8bit"),
    "dora": Knobs(method=Method(type="dora", dora=Lora(rank=4)), rows=IDS),
    "qlora": Knobs(method=Method(type="qlora", qlora=Lora(rank=4)), rows=IDS),
    "adapter": Knobs(method=Method(type="adapter", adapter=Adapter(bottleneck=4)), rows=IDS),
    "ia3": Knobs(method=Method(type="ia3"), rows=IDS),
}


@pytest.mark.parametrize("knobs", RUNS.values(), ids=RUNS)
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, knobs: Knobs) -> None:
    def run(folder: Path) -> Run:
        net = network("Llama", hidden_size=64, intermediate_size=128)
        net.save_pretrained(tmp_path / "base")  # type: ignore[operator]
        return make_run(folder, knobs, net=net, base=tmp_path / "base")

    whole = run(tmp_path / "whole")
    state = whole.finish()
    tensors = whole.tensors()
    assert tensors["weights/vocabulary.embeddings"].shape == (len(IDS), 64), "nothing of the whole matrix is kept"
    start = VocabularyRows.of(whole.net, tmp_path / "base", IDS, device=CPU)
    assert not torch.equal(tensors["weights/vocabulary.head"], start.wanted)
    again = interrupted(lambda: run(tmp_path / "cut"), 4)
    resumed = again.finish()
    assert largest_difference(again.tensors(), tensors) == 0.0
    assert [point.loss for point in resumed.curve] == [point.loss for point in state.curve]


def test_embeddings_that_are_computed_otherwise_are_refused(tmp_path: Path) -> None:
    net, folder = made(tmp_path, "untied")

    class Doubled(nn.Embedding):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(tokens)

    net.set_input_embeddings(Doubled(VOCAB, 32))  # type: ignore[operator]
    with pytest.raises(FinetuneError, match=r"vocabulary trains rows of nn\.Embedding, and .* has Doubled") as refused:
        VocabularyRows.of(net, folder, IDS, device=CPU)
    assert refused.value.reason is Reason.ModelUnsupported


def test_a_class_is_asked_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = made(tmp_path, "untied")
    assert answer(folder, LORA, vocabulary=True) == {}
    monkeypatch.setattr(LlamaForCausalLM, "get_output_embeddings", lambda _: None)
    assert answer(folder, LORA) == {}
    told = answer(folder, LORA, vocabulary=True)
    assert told["message"] == "vocabulary trains rows of nn.Embedding, and LlamaForCausalLM has Embedding with NoneType"
