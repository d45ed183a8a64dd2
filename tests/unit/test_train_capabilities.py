"""What an architecture can do, decided in float32 whatever its weights are in: heads, packing, windows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_trainer.attention_windows import narrowest
from finetune_trainer.data.corpus import Choices, Corpus, corpus_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout, choice_nats, evaluate
from tests.support.model_families import WINDOW, config_of, network_of
from tests.support.training import CPU

ANSWERS = (np.array([5, 6, 1], np.int32), np.array([5, 1], np.int32), np.array([7, 8, 9, 1], np.int32))
APART = Layout(max_tokens=96, sequence_length=64, packing=False, pad_id=0)


def classification(lengths: tuple[int, ...] = (4, 9, 14, 21, 30)) -> Corpus:
    """Prompts of these lengths: some within a window of WINDOW tokens, most longer."""
    chosen = np.random.default_rng(4)
    prompts = [chosen.integers(2, 90, n).astype(np.int32) for n in lengths]
    gold = chosen.integers(0, len(ANSWERS), len(lengths)).astype(np.int32)
    tokens = [np.concatenate([p, ANSWERS[g]]) for p, g in zip(prompts, gold, strict=True)]
    trained = [np.arange(len(t)) >= len(p) for t, p in zip(tokens, prompts, strict=True)]
    return corpus_of(tokens, trained, [3] * len(lengths), choices=Choices(ANSWERS, np.array(lengths, np.int32), gold))


@torch.no_grad()
def plain(net: nn.Module, corpus: Corpus) -> np.ndarray:
    """(rows, answers): transformers' own logits of every answer behind its own prompt, nothing batched."""
    assert corpus.choices
    out = np.zeros((len(corpus), len(ANSWERS)))
    for i in range(len(corpus)):
        prompt = corpus.row(i).tokens[: corpus.choices.prompts[i]].astype(np.int64)
        for j, answer in enumerate(ANSWERS):
            whole = torch.from_numpy(np.concatenate([prompt, answer.astype(np.int64)]))
            logits = net(whole[None], use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            out[i, j] = nn.functional.cross_entropy(logits, whole[len(prompt) :], reduction="sum").item()
    return out


SCORED = [
    "llama", "mistral", "ministral", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "cohere2", "gpt_oss",
    "olmo3", "exaone4", "phi3", "starcoder2", "llama4_text", "gpt_neo", "vaultgemma", "recurrent_gemma", "bloom",
    "falcon_h1", "opt",
]  # fmt: skip


@pytest.mark.parametrize("family", SCORED)
def test_scores_of_answers_are_those_of_plain_transformers(family: str) -> None:
    net, corpus = network_of(family), classification()
    model = LanguageModel(net, CPU, None, probe(net, CPU))
    layout = replace(APART, packing=model.capabilities.isolates)
    expected = plain(net, corpus)
    scored = np.zeros_like(expected)
    for rows, nats in choice_nats(model, corpus, layout):
        scored[rows] = nats
    np.testing.assert_allclose(scored, expected, rtol=1e-5, atol=1e-5)
    assert corpus.choices
    with torch.no_grad():
        scores = evaluate(model, corpus, layout=layout, strategy=Single(), going_on=lambda: True).scores
    gold = corpus.choices.gold
    assert scores.loss * scores.tokens == pytest.approx(expected[np.arange(len(gold)), gold].sum(), rel=1e-5)
    assert scores.accuracy == pytest.approx((expected.argmin(1) == gold).mean())


def test_rows_within_the_window_share_their_prompt_and_longer_ones_do_not() -> None:
    net = network_of("mistral")
    capabilities = probe(net, CPU)
    assert capabilities.shares_prompts
    assert capabilities.shared_within == WINDOW
    assert probe(net, CPU, in_front=5).shared_within == WINDOW - 5


WIDTHS: list[tuple[str, dict[str, Any], int | None]] = [
    ("mistral", {"sliding_window": None}, None),
    ("mistral", {}, WINDOW),
    ("qwen2", {"use_sliding_window": False, "sliding_window": 16}, None),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}, 16),
    ("gemma3_text", {}, WINDOW),
    ("gemma3_text", {"layer_types": ["full_attention"] * 3}, None),
    ("cohere2", {}, WINDOW),
    ("llama4_text", {}, WINDOW),
    ("gpt_neo", {}, WINDOW),
    ("recurrent_gemma", {}, WINDOW),
    ("llama", {}, None),
]


@pytest.mark.parametrize(("family", "changes", "width"), WIDTHS)
def test_the_narrowest_layer_is_read_from_the_config(family: str, changes: dict[str, Any], width: int | None) -> None:
    assert narrowest(config_of(family, **changes)) == width


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@DTYPES
@pytest.mark.parametrize(
    ("family", "changes", "fused"),
    [
        ("llama", {}, True),
        ("mamba", {}, True),
        ("mixtral", {}, True),
        ("gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}, True),
        ("gemma2", {"final_logit_softcapping": 30.0}, False),
        ("granite", {"logits_scaling": 1.01}, False),
        ("cohere", {"logit_scale": 1.01}, False),
        ("phi", {}, False),
        ("gptj", {}, False),
    ],
    ids=["plain", "mamba", "experts", "no cap", "wide cap", "scaled by a hundredth", "scaled logits", "bias", "gptj"],
)
def test_a_head_that_is_more_than_a_matrix_is_found(
    family: str, changes: dict[str, Any], fused: bool, dtype: torch.dtype
) -> None:
    """A cap at 30 moves these logits by a thousandth, which bfloat16 does not hold apart."""
    assert probe(network_of(family, **changes).to(dtype), CPU).fused_head is fused


@DTYPES
def test_a_bias_of_the_head_is_in_the_loss_and_trains(dtype: torch.dtype) -> None:
    net = network_of("phi").to(dtype)
    with torch.no_grad():
        net.lm_head.bias.normal_()
    batch = APART.batches(classification((20,)), np.arange(1))[0]
    nats = LanguageModel(net, CPU, None, probe(net, CPU)).nats(batch)
    nats.backward()
    assert net.lm_head.bias.grad.any()
    logits = net(torch.from_numpy(batch.tokens), use_cache=False).logits.float().flatten(0, 1)
    right = nn.functional.cross_entropy(logits, torch.from_numpy(batch.targets).flatten(), reduction="sum")
    torch.testing.assert_close(nats, right, rtol=1e-4, atol=1e-4)


class Leak(nn.Module):
    """A block that hands a little of each token to the next, whatever document that belongs to."""

    def __init__(self, inner: nn.Module, share: float) -> None:
        super().__init__()
        self.inner, self.share = inner, share

    def forward(self, hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        mixed = hidden.clone()
        mixed[:, 1:] += self.share * hidden[:, :-1]
        return self.inner(mixed, *args, **kwargs)


@DTYPES
@pytest.mark.parametrize(("share", "isolates"), [(0.0, True), (0.002, False), (0.03, False)])
def test_a_small_leak_between_packed_documents_is_found(share: float, isolates: bool, dtype: torch.dtype) -> None:
    net = network_of("llama").to(dtype)
    net.model.layers[0].mlp = Leak(net.model.layers[0].mlp, share)
    assert probe(net, CPU).isolates is isolates


@DTYPES
@pytest.mark.parametrize("family", ["bamba", "falcon_h1", "jamba", "lfm2", "qwen3_next", "olmo_hybrid", "nemotron_h"])
def test_hybrids_get_one_document_a_row(family: str, dtype: torch.dtype) -> None:
    assert not probe(network_of(family).to(dtype), CPU).isolates


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "mixtral", "gpt2", "olmoe", "deepseek_v3"])
def test_abilities_are_the_same_in_bfloat16_and_float32(family: str) -> None:
    assert probe(network_of(family).bfloat16(), CPU) == probe(network_of(family), CPU)
