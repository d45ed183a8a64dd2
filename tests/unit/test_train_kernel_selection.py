"""Which kernels a run uses: those that are right and faster on all ranks, and the same in every attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_trainer.kernels import attention, loss
from finetune_trainer.kernels.selected import Kernels
from finetune_trainer.parallel.single import Single
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.kernel_selection import Choice
from finetune_trainer.transfer.evaluate import Layout
from tests.support import kernel_doubles as doubles
from tests.support.kernel_cases import A100, INSTALLED, PACKED, WRONG
from tests.support.training import (
    CPU,
    JOB,
    LENGTHS,
    documents,
    model,
    network,
)

LAYOUT = Layout(max_tokens=96, sequence_length=32, packing=True, pad_id=0)


@dataclass
class Selection:
    """A choice on a machine that claims to be an A100, with doubles for kernels, and what was said."""

    patch: pytest.MonkeyPatch
    kernels: dict[str, Any]
    net: nn.Module = field(default_factory=lambda: network().to(torch.bfloat16))
    ratio: float = 0.5
    strategy: Any = field(default_factory=Single)
    said: list[str] = field(default_factory=list)
    installed: dict[str, str] = field(default_factory=lambda: dict(INSTALLED))

    def made(self, store: CheckpointStore | None = None, **job: Any) -> Kernels:
        for name, kernel in self.kernels.items():
            table = loss.KERNELS if name == "liger-kernel" else attention.KERNELS
            self.patch.setitem(table, name, kernel)  # type: ignore[call-overload]
        timed = iter([self.ratio, 1.0] * 8)
        choice = Choice(
            network=self.net,
            job=replace(PACKED, **job),
            machine=replace(A100, installed=self.installed),
            device=CPU,
            autocast=None,
            strategy=self.strategy,
            say=self.said.append,
            seconds=lambda work: (work(), next(timed))[1],
        )
        return choice.made(lambda: LAYOUT.batches(documents(LENGTHS), np.arange(len(LENGTHS)))[0], store)


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(open_folder(f"file://{folder}", prefix=""), JOB)


RIGHT = {"flash-attn": doubles.varlen, "torch": doubles.varlen, "liger-kernel": doubles.cross_entropy}


def test_what_is_right_and_faster_is_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(monkeypatch, RIGHT)
    chosen = selection.made()
    assert (chosen.attention, chosen.loss) == ("flash-attn 2.8.3", "liger-kernel 0.8.5")
    assert chosen.summed is not None
    assert selection.said == []
    line = replace(model(selection.net), kernels=chosen).describe(reasons=True)
    assert "attention flash-attn 2.8.3, loss liger-kernel 0.8.5, documents share rows" in line
    assert "flash" not in attention.named(selection.net)


@pytest.mark.parametrize("kernel", [row[0] for row in WRONG if row[0] is not doubles.ignoring_the_scale])
def test_what_is_wrong_is_dropped_and_the_next_one_tried(
    monkeypatch: pytest.MonkeyPatch, kernel: attention.Kernel
) -> None:
    selection = Selection(monkeypatch, {**RIGHT, "flash-attn": kernel})
    assert selection.made().attention == "torch 2.13.0"
    (line,) = selection.said
    assert line.startswith("attention is not computed by flash-attn 2.8.3: it")


def test_where_none_is_right_the_reference_goes_on_and_the_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(monkeypatch, dict.fromkeys(RIGHT, doubles.raising))
    chosen = selection.made()
    assert (chosen.attention, chosen.loss, chosen.summed) == ("", "", None)
    assert attention.named(selection.net) == "sdpa"
    assert len(selection.said) == 3
    line = replace(model(selection.net), kernels=chosen).describe(reasons=True)
    assert "attention sdpa (torch 2.13.0: it failed: RuntimeError" in line
    assert "loss fused (liger-kernel 0.8.5: it failed" in line
    assert "(" not in replace(model(selection.net), kernels=chosen).describe()


def test_what_gains_nothing_here_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(monkeypatch, RIGHT, ratio=1.2)
    assert selection.made() == Kernels(
        reasons=(
            "torch 2.13.0: it takes 1.20 of the reference's time here",
            "liger-kernel 0.8.5: it takes 1.20 of the reference's time here",
        )
    )
    assert attention.named(selection.net) == "sdpa"


def test_a_kernel_that_works_alone_and_not_in_the_network_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout in attention, which would be left out; found by a pass in training mode."""
    net = network(attention_dropout=0.1).to(torch.bfloat16)
    selection = Selection(monkeypatch, RIGHT, net=net)
    assert "the model's attention has dropout" in selection.made().reasons[0]
    assert attention.named(net) == "sdpa"
    assert not net.training


def test_a_network_whose_attention_cannot_be_exchanged_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().to(torch.bfloat16)
    monkeypatch.setattr(net, "set_attn_implementation", lambda _: None)
    assert "cannot be exchanged" in Selection(monkeypatch, RIGHT, net=net).made().reasons[0]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: network("Mistral", sliding_window=5), ""),
        (lambda: network("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1), ""),
        (
            lambda: _untold(network("Qwen2", use_sliding_window=True, sliding_window=4096, max_window_layers=1)),
            "does not pass it its windows",
        ),
        (lambda: _untold(network(), attention_chunk_size=8192), "the model has layers with chunked attention"),
        (
            lambda: _untold(network(), layer_types=["full_attention", "linear_attention"]),
            "layers with linear_attention",
        ),
    ],
    ids=["all layers", "some layers", "a window in masks alone", "chunks", "other layers"],
)
def test_what_a_layer_sees_must_reach_the_kernel(
    monkeypatch: pytest.MonkeyPatch, net: Callable[[], nn.Module], words: str
) -> None:
    """Windows are longer than what is tried in the network, so it is asked whether kernels are told of them."""
    chosen = Selection(monkeypatch, RIGHT, net=net().to(torch.bfloat16)).made()
    assert words in chosen.reasons[0]
    assert bool(chosen.attention) != bool(words)


def _untold(net: nn.Module, **changes: Any) -> nn.Module:
    for layer in net.model.layers:
        layer.self_attn.sliding_window = None
    for name, value in changes.items():
        setattr(net.config, name, value)
    return net


class Two(Single):
    """Beside a rank that refuses everything."""

    def sum_counters(self, counters: Any) -> list[float]:
        return [counter + 1 for counter in counters]


def test_what_one_rank_refuses_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Selection(monkeypatch, RIGHT, strategy=Two()).made()
    assert (chosen.attention, chosen.loss) == ("", "")
    assert "refused on another rank" in chosen.reasons[0]


def test_switched_off_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert Selection(monkeypatch, dict.fromkeys(RIGHT, doubles.raising)).made(store, wish="reference") == Kernels()
    assert store.noted("kernels") is None


def test_a_later_attempt_takes_the_kernels_of_the_first_or_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = _store(tmp_path)
    first = Selection(monkeypatch, {**RIGHT, "flash-attn": doubles.leaky}).made(store)
    assert first.attention == "torch 2.13.0"
    assert store.noted("kernels") == {"attention": "torch 2.13.0", "loss": "liger-kernel 0.8.5"}
    # flash-attn has been mended, and nothing is raced again.
    again = Selection(monkeypatch, RIGHT, ratio=9.0).made(store)
    assert (again.attention, again.loss) == (first.attention, first.loss)
    newer = Selection(monkeypatch, RIGHT, installed={**INSTALLED, "torch": "2.13.1", "liger-kernel": "0.9.0"}).made(
        store
    )
    assert (newer.attention, newer.loss) == ("", "")
    assert newer.reasons == ("this run began with torch 2.13.0", "this run began with liger-kernel 0.8.5")


def test_a_run_that_began_with_the_reference_stays_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = _store(tmp_path)
    Selection(monkeypatch, dict.fromkeys(RIGHT, doubles.raising)).made(store)
    again = Selection(monkeypatch, RIGHT).made(store)
    assert again == Kernels(reasons=("this run began with the reference",) * 2)


def test_what_was_not_there_at_first_is_not_taken_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, bare = _store(tmp_path), {"torch": "2.13.0"}
    first = Selection(monkeypatch, RIGHT, installed=bare).made(store, packing=False)
    assert first == Kernels(reasons=("one document per row", "liger-kernel is not installed"))
    assert Selection(monkeypatch, RIGHT).made(store) == Kernels(reasons=("this run began with the reference",) * 2)
