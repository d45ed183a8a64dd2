"""Optional kernels: what is offered where, what is proved before it is used, and how documents reach it.

There is no GPU here. Kernels in plain torch stand in for those of others, and take the same ways.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.kernels import attention, loss
from finetune_trainer.kernels.selected import Kernels
from finetune_trainer.report.record import AttemptRecord
from finetune_trainer.train.activation_checkpointing import recompute_blocks
from finetune_trainer.train.artifact_commit import computed_otherwise
from finetune_trainer.train.frozen_layers import find_frozen_layers
from finetune_trainer.train.loss import trained_cross_entropy
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout, answer_nats
from tests.support import kernel_doubles as doubles
from tests.support.training import (
    CPU,
    LENGTHS,
    Knobs,
    Run,
    documents,
    interrupted,
    largest_difference,
    make_run,
    model,
    network,
)


def test_starts_are_those_of_all_documents_row_after_row_with_padding() -> None:
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    assert attention.starts(positions).tolist() == [[[[0, 3, 5, 7, 10]]]]
    (batch,) = Layout(max_tokens=200, sequence_length=32, packing=True, pad_id=0).batches(
        documents([20, 12, 9, 30]), np.arange(4)
    )
    found = attention.starts(batch.positions).ravel()
    assert found[-1] == batch.tokens.size
    for start, end in pairwise(found):
        assert len(set(batch.segments.ravel()[start:end])) == 1


LAYOUT = Layout(max_tokens=96, sequence_length=32, packing=True, pad_id=0)


KINDS = ["Llama", "Qwen2", "GPTNeoX", "GPT2", "windows"]


def _network(kind: str) -> nn.Module:
    return network("Mistral", sliding_window=5) if kind == "windows" else network(kind)


def _counted(calls: list[int]) -> Callable[..., Tensor]:
    def kernel(*parts: Tensor, **given: Any) -> Tensor:
        calls.append(len(parts[3]) - 1)
        return doubles.varlen(*parts, **given)

    return kernel


def _learned(scorer: LanguageModel, batches: list[MicroBatch]) -> tuple[Tensor, list[Tensor]]:
    scorer.network.zero_grad()
    total = torch.stack([scorer.nats(batch) for batch in batches]).sum()
    total.backward()
    return total.detach(), [p.grad.clone() for p in scorer.network.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_through_boundaries_have_the_loss_and_gradients_of_separate_ones(kind: str) -> None:
    """Several rows at once, several documents in each, and padding."""
    net, calls = _network(kind), list[int]()
    corpus, rows = documents(LENGTHS), np.arange(len(LENGTHS))
    apart = _learned(model(net), replace(LAYOUT, packing=False).batches(corpus, rows))
    packed = LAYOUT.batches(corpus, rows)
    assert any(batch.tokens.shape[0] > 1 and len(batch.documents) > batch.tokens.shape[0] for batch in packed)
    attention.install(net, "double", _counted(calls))
    together = _learned(model(net), packed)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=2e-4)
    assert max(calls) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks_through_boundaries(kind: str) -> None:
    net = _network(kind)
    attention.install(net, "double", doubles.varlen)
    (batch,) = replace(LAYOUT, max_tokens=200).batches(documents([9, 8, 7, 30]), np.arange(4))
    embedded = net.get_input_embeddings()(torch.from_numpy(batch.tokens)).detach().requires_grad_()
    states = net.base_model(
        inputs_embeds=embedded,
        position_ids=torch.from_numpy(batch.positions),
        attention_mask=torch.from_numpy(attention.starts(batch.positions)),
        use_cache=False,
    ).last_hidden_state
    one = torch.from_numpy(batch.segments == 2)
    (gradient,) = torch.autograd.grad(states[one][:, 0].sum(), embedded)
    assert gradient[one].abs().max() > 1e-3
    assert not gradient[~one].any()


def test_masks_of_pairs_and_plain_calls_go_the_old_way() -> None:
    """Answers that share a prompt, and readers of hidden states that know of no boundaries."""
    net, other = network(), network()
    attention.install(net, "double", doubles.raising)
    prompts, answers = [np.array([5, 6, 7]), np.array([8, 9])], (np.array([11, 12]), np.array([13]))
    assert np.array_equal(answer_nats(model(net), prompts, answers), answer_nats(model(other), prompts, answers))
    tokens, positions = torch.arange(6)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert torch.equal(*(n(input_ids=tokens, position_ids=positions, use_cache=False).logits for n in (net, other)))


def test_blocks_that_run_again_and_layers_that_are_left_out_go_by_the_same_boundaries() -> None:
    corpus = documents(LENGTHS)
    (batch, *_) = LAYOUT.batches(corpus, np.arange(len(LENGTHS)))
    plain, again = network(layers=3), network(layers=3)
    for net in (plain, again):
        attention.install(net, "double", doubles.varlen)
        net.train()
    recompute_blocks(again, lowest=0)
    for left, right in zip(_learned(model(plain), [batch])[1], _learned(model(again), [batch])[1], strict=True):
        assert torch.equal(left, right)
    below = find_frozen_layers(plain, 2, CPU)
    assert below is not None
    scorer = replace(model(plain), below=below)
    states = scorer.states(batch).numpy()
    assert torch.equal(scorer.nats(replace(batch, states=states)), scorer.nats(batch))


def test_a_loss_learns_by_its_kernel_and_evaluates_without() -> None:
    calls: list[int] = []

    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return doubles.cross_entropy(hidden, weight, targets)

    net = network()
    (batch,) = replace(LAYOUT, max_tokens=200).batches(documents([9, 8, 7]), np.arange(3))
    summed = loss.with_gradients(kernel, trained_cross_entropy)
    scorer = replace(model(net), kernels=Kernels(loss="double", summed=summed))
    wanted, gradients = _learned(model(net), [batch])
    got, theirs = _learned(scorer, [batch])
    torch.testing.assert_close((got, theirs), (wanted, gradients), rtol=1e-4, atol=1e-5)
    assert calls == [batch.target_count]
    with torch.no_grad():
        assert float(scorer.nats(batch)) == float(model(net).nats(batch))
    nothing = replace(batch, targets=np.full_like(batch.targets, -100))
    scorer.nats(nothing).backward()
    assert calls == [batch.target_count]


def test_a_run_on_kernels_learns_what_one_without_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    def made(folder: str) -> Run:
        run = make_run(tmp_path / folder, Knobs(steps=6))
        attention.install(run.net, "double", doubles.varlen)
        summed = loss.with_gradients(doubles.cross_entropy, trained_cross_entropy)
        return replace(
            run, trainer=replace(run.trainer, model=replace(run.trainer.model, kernels=Kernels("a", "b", summed)))
        )

    plain, whole = make_run(tmp_path / "plain", Knobs(steps=6)), made("whole")
    losses = [point.loss for point in plain.finish().curve]
    assert [point.loss for point in whole.finish().curve] == pytest.approx(losses, rel=1e-5)
    again = interrupted(lambda: made("stopped"), 3)
    again.finish()
    assert largest_difference(again.tensors(), whole.tensors()) == 0.0


def test_transformers_hands_masks_of_four_dimensions_through() -> None:
    """The fact that boundaries travel by."""
    from transformers.masking_utils import create_causal_mask

    net = network()
    bounds = torch.zeros(1, 1, 1, 3, dtype=torch.int32)
    embedded = torch.zeros(2, 5, 32)
    assert create_causal_mask(net.config, embedded, bounds, None) is bounds
    assert "attention_mask" in inspect.signature(type(net.base_model).forward).parameters


def test_transformers_own_flash_attention_sees_documents_in_a_single_row_alone() -> None:
    """The fact for which it is not used: in several rows it would compute plain causal attention."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    rows = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    assert _is_packed_sequence(rows[:1], 1)
    assert not _is_packed_sequence(rows, 2)


def test_an_attempt_that_computes_otherwise_says_so() -> None:
    attempts = [AttemptRecord(attempt=n, computed=line) for n, line in enumerate(["", "sdpa", "sdpa", "flash"])]
    assert computed_otherwise(attempts[:3]) == ""
    assert computed_otherwise(attempts) == (
        "attempt 3 continues, but not bit for bit: it computes with flash; attempt 2 with sdpa"
    )
