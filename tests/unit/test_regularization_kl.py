"""KL to the base: zero at the base, the textbook divergence away from it, and the gradient of that."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_api.methods import TRAITS, Adapter, Lora, Method
from finetune_trainer.methods.base import SwitchesOff
from finetune_trainer.methods.registry import method_of
from finetune_trainer.regularization.kl_to_base import KlToBase
from finetune_trainer.train.state import State
from finetune_trainer.transfer.evaluate import Layout
from tests.support.training import BASE, Knobs, disturb, documents, interrupted, largest_difference, make_run, network
from tests.support.training import model as model_of

METHODS = [
    Method(type="lora", lora=Lora(rank=4)),
    Method(type="lora", lora=Lora(rank=4, dropout=0.3)),
    Method(type="dora"),
    Method(type="ia3"),
    Method(type="adapter", adapter=Adapter(bottleneck=8)),
]
LORA = METHODS[0]


def _kl(*, replayed: bool = True) -> KlToBase:
    return KlToBase(1.0, replayed=replayed, as_base=nullcontext)


def _drawn(rows: int = 40, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """(hidden, base, head, targets)"""
    torch.manual_seed(seed)
    hidden, base = torch.randn(rows, 8, dtype=torch.float64), torch.randn(rows, 8, dtype=torch.float64)
    return hidden, base, torch.randn(23, 8, dtype=torch.float64), torch.randint(0, 23, (rows,))


def _plain(hidden: torch.Tensor, base: torch.Tensor, head: torch.Tensor, left_out: torch.Tensor | None) -> torch.Tensor:
    """By torch's own function, without the tokens that are left out."""
    tuned, reference = hidden @ head.T, base @ head.T
    if left_out is not None:
        kept = torch.ones_like(tuned, dtype=torch.bool).scatter(1, left_out[:, None], False)
        tuned, reference = (x[kept].view(len(x), -1) for x in (tuned, reference))
    logs = [torch.log_softmax(x, 1) for x in (tuned, reference)]
    return torch.nn.functional.kl_div(logs[0], logs[1], reduction="sum", log_target=True)


@pytest.mark.parametrize("replayed", [True, False], ids=["whole", "without the right token"])
def test_value_and_gradient_are_those_of_the_definition(replayed: bool) -> None:
    hidden, base, head, targets = _drawn()
    ours, theirs = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    kl = _kl(replayed=replayed)
    value = kl.divergence(ours, base, head, targets)
    expected = _plain(theirs, base, head, None if replayed else targets)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    (2.5 * value).backward()
    (2.5 * expected).backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert float((ours.grad - theirs.grad).abs().max()) < 1e-5
    assert float(kl.of_logits(hidden @ head.T, base @ head.T, targets)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("replayed", [True, False])
def test_chunks_do_not_change_it_and_the_base_has_none(replayed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, base, head, targets = _drawn()
    kl = _kl(replayed=replayed)
    whole = kl.divergence(hidden, base, head, targets)
    monkeypatch.setattr("finetune_trainer.regularization.kl_to_base.CHUNK_BYTES", {"cpu": 1})
    assert float(kl.divergence(hidden, base, head, targets)) == pytest.approx(float(whole), rel=1e-6)
    assert float(kl.divergence(base.clone(), base, head, targets)) == 0.0


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.type + "+dropout" * bool(m.low_rank and m.low_rank.dropout))
def test_switched_off_it_is_the_base_to_the_bit_and_still_trains(method: Method) -> None:
    untouched, net = network(), network()
    attached = method_of(method).attach(net, seed=1, base=BASE)
    disturb(attached)
    assert isinstance(attached, SwitchesOff)
    corpus = documents([9, 14, 6])
    [batch] = _layout().batches(corpus, np.arange(3))
    expected = model_of(untouched).outputs(batch)
    net.train()
    with attached.as_base():
        net.eval()
        assert torch.equal(model_of(net).outputs(batch), expected)
    assert not torch.equal(model_of(net).outputs(batch), expected)
    assert all(parameter.requires_grad for parameter in attached.trainable.values())


def test_methods_that_can_be_switched_off_say_so() -> None:
    for name, traits in TRAITS.items():
        if not traits.steps or traits.four_bits:
            continue
        method = Method.model_validate({"type": name})
        method = method.settled(1) if method.is_open else method
        attached = method_of(method).attach(network(), seed=1, base=BASE)
        assert isinstance(attached, SwitchesOff) == traits.switches_off, name


def test_a_run_begins_at_zero_and_stays_nearer_to_the_base(tmp_path: Path) -> None:
    """Training rows without the right token, and replayed rows."""
    for replay in (0.0, 5 / 3):
        states = [
            make_run(tmp_path / f"{replay}-{beta}", Knobs(steps=8, rate=2e-2, replay=replay, beta=beta)).finish()
            for beta in (1e-9, 20.0)
        ]
        free, held = map(_divergences, states)
        assert (free[0], held[0]) == (0.0, 0.0)
        assert free[-1] > 1e-3
        assert held[-1] < 0.5 * free[-1]


def test_a_run_that_was_stopped_and_resumed_is_the_same(tmp_path: Path) -> None:
    knobs = Knobs(method=Method(type="lora", lora=Lora(rank=4, dropout=0.2)), steps=6, replay=5 / 3, beta=3.0)
    whole = make_run(tmp_path / "whole", knobs)
    state = whole.finish()
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), 3)
    again = resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
    assert _divergences(again) == _divergences(state)


def test_beta_is_the_weight_of_the_mean_over_replayed_tokens() -> None:
    """3 training rows of 10 tokens and 1 replayed row of 40: the loss is divided by 30 + 10 weighted tokens."""
    kl = KlToBase.on_replay(0.5, _kl().as_base, fraction=0.25, weight=10 / 40)
    assert kl.weight * 40 / (30 + 10) == pytest.approx(0.5)


def _divergences(state: State) -> list[float]:
    return [point.regularization["klToBase"] for point in state.curve if point.regularization]


def _layout() -> Layout:
    return Layout(max_tokens=64, sequence_length=64, packing=True, pad_id=0)
