"""What a model can do is found out: isolation of packed documents, shared prompts, the shape of its head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_trainer.train.capabilities import hidden_states, probe
from finetune_trainer.transfer.evaluate import Layout
from tests.support.training import CPU, LENGTHS, VOCAB, documents, model, network

PACKED = Layout(max_tokens=128, sequence_length=64, packing=True, pad_id=0)
APART = Layout(max_tokens=32, sequence_length=64, packing=False, pad_id=0)
ARCHITECTURES = ["Llama", "Qwen2", "GPTNeoX", "Mistral", "GPT2"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_packed_rows_have_the_loss_and_gradients_of_separate_ones(kind: str) -> None:
    net = network(kind)
    assert probe(net, CPU).isolates
    corpus, rows = documents(LENGTHS), np.arange(len(LENGTHS))
    results = []
    for layout in (PACKED, APART):
        net.zero_grad()
        batches = layout.batches(corpus, rows)
        total = sum(model(net).nats(batch) for batch in batches)
        total.backward()
        results.append((total.detach(), [p.grad.clone() for p in net.parameters() if p.grad is not None]))
    (packed, packed_gradients), (apart, apart_gradients) = results
    torch.testing.assert_close(packed, apart, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(packed_gradients, apart_gradients, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_nothing_leaks_from_one_document_into_another(kind: str) -> None:
    """The gradient of one document's states with respect to another's embeddings is exactly zero.

    The states are projected at random: the sum of a LayerNorm's output has no gradient but rounding."""
    net = network(kind)
    (batch,) = Layout(max_tokens=200, sequence_length=64, packing=True, pad_id=0).batches(
        documents([9, 8, 7]), np.arange(3)
    )
    assert batch.segments.shape[0] == 1
    embedded = net.get_input_embeddings()(torch.from_numpy(batch.tokens)).detach().requires_grad_()
    states = net.base_model(
        inputs_embeds=embedded, position_ids=torch.from_numpy(batch.positions), use_cache=False
    ).last_hidden_state
    middle = torch.from_numpy(batch.segments == 1)
    direction = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((states[middle] @ direction).sum(), embedded)
    assert gradient[middle].abs().max() > 1e-3
    assert not gradient[~middle].any()


def test_a_model_that_ignores_positions_is_found_out() -> None:
    """Bloom counts distance instead of position, so documents in one row would see each other."""
    import transformers

    config = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    assert not probe(transformers.BloomForCausalLM(config).eval(), CPU).isolates


@pytest.mark.parametrize(
    ("kind", "changes", "fused"),
    [
        ("Llama", {}, True),
        ("Llama", {"tie_word_embeddings": True}, True),
        ("GPTNeoX", {}, True),
        ("Gemma2", {"final_logit_softcapping": 0.05}, False),
    ],
    ids=["plain head", "tied head", "another architecture", "capped logits"],
)
def test_the_fused_loss_is_the_models_own(kind: str, changes: dict[str, object], fused: bool) -> None:
    net = network(kind, **changes)
    ours = model(net)
    assert ours.capabilities.fused_head is fused
    corpus = documents([20, 11], masked=0.0)
    (batch,) = APART.batches(corpus, np.arange(1))
    tokens = torch.from_numpy(batch.tokens)
    loss = net(input_ids=tokens, labels=tokens, use_cache=False).loss
    torch.testing.assert_close(ours.nats(batch) / batch.target_count, loss, rtol=1e-5, atol=1e-5)


def test_token_nats_sum_to_the_batch() -> None:
    ours = model(network())
    (batch,) = PACKED.batches(documents([9, 8, 7]), np.arange(3))
    each = ours.token_nats(batch.tokens, batch.positions, batch.targets)
    assert each.sum() == pytest.approx(ours.nats(batch).item(), rel=1e-5)
    assert not each[batch.targets == -100].any()


def test_the_backward_ends_at_the_lowest_trainable_layer() -> None:
    net = network(layers=4).requires_grad_(False)
    net.model.layers[3].requires_grad_(True)
    reached: list[int] = []
    for index, layer in enumerate(net.model.layers):
        layer.register_full_backward_hook(lambda *_, index=index: reached.append(index))
    (batch,) = PACKED.batches(documents([9]), np.arange(1))
    model(net).nats(batch).backward()
    assert reached == [3]


class Waits(TorchDispatchMode):
    """Counts what would wait for a GPU: a number that is read, a size that depends on values."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_waits_for_the_device_once_at_most() -> None:
    """transformers asks whether documents share a row, before anything is computed; we ask nothing."""
    net = network()
    ours = model(net)
    (batch,) = Layout(max_tokens=200, sequence_length=64, packing=True, pad_id=0).batches(
        documents([9, 8, 7, 60]), np.arange(4)
    )
    with Waits() as waits:
        ours.nats(batch).backward()
    assert waits.count <= 1
    assert net.lm_head.weight.grad is not None


def test_one_line_says_what_runs() -> None:
    line = model(network()).describe()
    assert line == ("parameters float32, compute float32, attention sdpa, loss fused, documents share rows")


def test_hidden_states_end_after_the_last_norm() -> None:
    net = network()
    tokens = torch.arange(6)[None]
    states = hidden_states(net, tokens, tokens)
    torch.testing.assert_close(states @ net.lm_head.weight.T, net(tokens).logits)
