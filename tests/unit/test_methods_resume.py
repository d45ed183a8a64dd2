"""Runs of the frozen methods, cut short and continued, through the real loop and real checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune_api.methods import Adapter, Lora, Method, Partial
from finetune_trainer.methods.fused import FusedLinear
from tests.support.training import Knobs, interrupted, largest_difference, make_run

RUNS = [
    Knobs(method=Method(type="partial", partial=Partial(layers=1))),
    Knobs(method=Method(type="dora", dora=Lora(rank=4, dropout=0.2))),
    Knobs(method=Method(type="adapter", adapter=Adapter(bottleneck=8))),
    Knobs(method=Method(type="adapter", adapter=Adapter(bottleneck=8, placement="pfeiffer")), kind="GPT2"),
    Knobs(method=Method(type="qlora", qlora=Lora(rank=4)), hidden=64),
]


@pytest.mark.parametrize("knobs", RUNS, ids=lambda knobs: f"{knobs.method.type} {knobs.kind}")
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, knobs: Knobs) -> None:
    """To the bit, across a validation, and what is frozen keeps every bit of the base."""
    whole = make_run(tmp_path / "whole", knobs)
    before = {name: p.detach().clone() for name, p in whole.net.named_parameters() if not p.requires_grad}
    state = whole.finish()
    assert (state.curve[-1].loss or 9.0) < (state.curve[0].loss or 0.0)
    after = dict(whole.net.named_parameters())
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), 4)
    again = resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
    assert [point.loss for point in again.curve] == [point.loss for point in state.curve]
    assert again.validation == state.validation


def test_dora_and_qlora_never_take_the_fused_layers(tmp_path: Path) -> None:
    """The fused forward reads a plain weight and knows no magnitudes."""
    for number in (1, 4):
        net = make_run(tmp_path / str(number), RUNS[number]).net
        assert not any(isinstance(module, FusedLinear) for module in net.modules())
