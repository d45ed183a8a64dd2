"""The fused linear cross-entropy is torch's cross-entropy, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from finetune_trainer.data.pack import IGNORED
from finetune_trainer.train.loss import token_nats
from tests.support.training import cross_entropy_of_trained

TOKENS, DIM, VOCAB = 37, 16, 53


def _problem(*, masked: float = 0.4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(TOKENS, DIM), torch.randn(VOCAB, DIM)
    targets = torch.randint(0, VOCAB, (TOKENS,))
    targets[torch.rand(TOKENS) < masked] = IGNORED
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def _reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("chunk_rows", [1, 5, 16, 1000], ids=lambda n: f"chunks of {n}")
@pytest.mark.parametrize("masked", [0.0, 0.4], ids=["all trained", "some masked"])
def test_loss_and_gradients_are_those_of_torch(chunk_rows: int, masked: float) -> None:
    hidden, weight, targets = _problem(masked=masked)
    wanted = torch.autograd.grad(3.0 * _reference(hidden, weight, targets), [hidden, weight])
    nats = cross_entropy_of_trained(hidden, weight, targets, chunk_rows=chunk_rows)
    torch.testing.assert_close(nats, _reference(hidden, weight, targets))
    got = torch.autograd.grad(3.0 * nats, [hidden, weight])
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_golden_value() -> None:
    """Two tokens, three words, by hand: ln(e^1 + e^0 + e^0) - 1 and ln(e^0 + e^2 + e^0) - 2."""
    hidden = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    nats = cross_entropy_of_trained(hidden, weight, torch.tensor([0, 1]))
    assert nats.item() == pytest.approx(0.551445 + 0.239543, abs=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden, weight, targets = _problem()
    cross_entropy_of_trained(hidden, weight.detach(), targets).backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert not hidden.grad[targets == IGNORED].any()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = _problem()
    nats = cross_entropy_of_trained(hidden * 1e4, weight, targets)
    torch.testing.assert_close(nats, _reference(hidden * 1e4, weight, targets))


def test_nothing_trained_is_zero() -> None:
    hidden, weight, targets = _problem(masked=1.1)
    nats = cross_entropy_of_trained(hidden, weight, targets)
    nats.backward()
    assert nats.item() == 0.0
    assert not hidden.grad.any()


def test_a_nan_is_seen() -> None:
    hidden, weight, targets = _problem(masked=0.0)
    assert cross_entropy_of_trained(hidden * float("nan"), weight, targets).isnan()


def test_half_precision_states_give_a_loss_in_full_precision() -> None:
    hidden, weight, targets = _problem()
    low, head = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16()
    nats = cross_entropy_of_trained(low, head, targets)
    nats.backward()
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, _reference(low, head, targets).float(), rtol=2e-2, atol=0)
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16


def test_autocast_is_honoured_and_gradients_keep_the_weights_precision() -> None:
    hidden, weight, targets = _problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = cross_entropy_of_trained(hidden, weight, targets)
    got = torch.autograd.grad(nats, [hidden, weight])
    wanted = torch.autograd.grad(_reference(hidden, weight, targets), [hidden, weight])
    assert [g.dtype for g in got] == [torch.float32, torch.float32]
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_nats_of_each_token_are_those_of_torch() -> None:
    hidden, weight, targets = _problem(masked=0.0)
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(token_nats(hidden, weight, targets, chunk_rows=7), wanted)
