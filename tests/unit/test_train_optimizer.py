"""Learning rates as tables; the flat optimizer is torch's AdamW, with clipping and an exact state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from finetune_trainer.parallel.flat_adamw import FlatAdamW
from finetune_trainer.train.checkpoint import Snapshot
from finetune_trainer.train.optimizer import default_peak, learning_rate, named

RATES = [
    # schedule, warm-up, total: rates of the steps, peak 1
    ("constant", 0.0, 3, [1, 1, 1]),
    ("linear", 0.0, 4, [1, 0.75, 0.5, 0.25]),
    ("linear", 0.5, 4, [1 / 3, 2 / 3, 1, 0.5]),
    ("cosine", 0.0, 4, [1, 0.853553, 0.5, 0.146447]),
    ("cosine", 0.25, 5, [1 / 3, 2 / 3, 1, 0.75, 0.25]),
    ("constant", 1.0, 3, [0.25, 0.5, 0.75]),
    ("cosine", 0.03, 1, [0.5]),
]


@pytest.mark.parametrize(("schedule", "warmup", "total", "rates"), RATES)
def test_rates(schedule: str, warmup: float, total: int, rates: list[float]) -> None:
    got = [
        learning_rate(step, peak=1.0, total_steps=total, warmup_ratio=warmup, schedule=schedule)
        for step in range(total)
    ]
    assert got == pytest.approx(rates, abs=1e-6)
    assert all(rate > 0 for rate in got)


def test_default_rates() -> None:
    """Llama-3.1-8B and SmolLM2-135M, as tinker-cookbook gives them for LoRA; all weights take a tenth."""
    assert default_peak(method="lora", hidden_size=4096) == pytest.approx(2.9e-4, rel=0.02)
    assert default_peak(method="lora", hidden_size=576) == pytest.approx(1.3e-3, rel=0.03)
    assert default_peak(method="full", hidden_size=576) == pytest.approx(1.3e-4, rel=0.03)


def test_the_line_that_tells_what_runs_names_the_optimizer() -> None:
    assert named("adamw", strategy="ddp") == "fused AdamW"
    assert named("adamw", strategy="deepspeed") == "AdamW"
    assert named("adamw8bit", strategy="fsdp") == "8-bit AdamW"


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 2))


def _train(flat: FlatAdamW, network: nn.Module, steps: range, *, divisor: float = 4.0, max_norm: float = 0.0) -> None:
    for step in steps:
        torch.manual_seed(step)
        network(torch.randn(4, 5)).pow(2).sum().backward()
        flat.step(0.01, divisor=divisor, max_norm=max_norm)


@pytest.mark.parametrize("max_norm", [0.0, 0.05], ids=["no clipping", "clipping"])
def test_it_is_torchs_adamw(max_norm: float) -> None:
    ours, theirs = _network(), _network()
    flat = FlatAdamW(dict(ours.named_parameters()), weight_decay=0.1)
    _train(flat, ours, range(5), max_norm=max_norm)
    matrices = [p for p in theirs.parameters() if p.ndim > 1]
    vectors = [p for p in theirs.parameters() if p.ndim == 1]
    adamw = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}])
    for group in adamw.param_groups:
        group["lr"] = 0.01
    for step in range(5):
        torch.manual_seed(step)
        (theirs(torch.randn(4, 5)).pow(2).sum() / 4).backward()
        if max_norm:
            nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
        adamw.step()
        adamw.zero_grad()
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-6)


def test_weights_gradients_and_moments_are_views_by_name() -> None:
    network = _network()
    flat = FlatAdamW(dict(network.named_parameters()), weight_decay=0.0)
    network(torch.ones(1, 5)).sum().backward()
    assert any(gradient.any() for gradient in flat.gradients)
    assert set(flat.tensors()) == {f"weights/{name}" for name, _ in network.named_parameters()}
    flat.step(0.1, divisor=1.0, max_norm=0.0)
    assert "moments/0.weight.second" in flat.tensors()
    torch.testing.assert_close(flat.tensors()["weights/0.weight"], network[0].weight.data)
    assert not any(gradient.any() for gradient in flat.gradients)


def test_a_loaded_state_goes_on_to_the_bit() -> None:
    first, second = _network(), _network()
    whole, part = (FlatAdamW(dict(n.named_parameters()), weight_decay=0.1) for n in (first, second))
    _train(whole, first, range(6))
    _train(part, second, range(3))
    saved = {name: tensor.clone() for name, tensor in part.tensors().items()}
    third = _network()
    resumed = FlatAdamW(dict(third.named_parameters()), weight_decay=0.1)
    resumed.restore(Snapshot(saved, {}), steps=3)
    _train(resumed, third, range(3, 6))
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name


def test_nothing_is_updated_by_a_gradient_that_is_not_finite() -> None:
    network = _network()
    flat = FlatAdamW(dict(network.named_parameters()), weight_decay=0.0)
    before = network[0].weight.clone()
    (network(torch.ones(1, 5)).sum() * float("inf")).backward()
    assert not math.isfinite(flat.step(0.1, divisor=1.0, max_norm=1.0))
    assert torch.equal(network[0].weight, before)
