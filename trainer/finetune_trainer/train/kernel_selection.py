"""Which kernels a run computes with: decided once, before its first step, and by all ranks together.

    offered     by the table, for this machine and job
    proved      against the reference on this device, then inside the network, on every rank
    raced       against the reference, on the rows of this run; rank 0's time counts

What is left out is logged with its reason. The decision is stored next to the checkpoints: a later attempt uses these
kernels or the reference, never others, and says when it had to compute otherwise than the one before.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.kernels import attention, candidates, correctness, loss, timing
from finetune_trainer.kernels.selected import Kernels
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.transfer.evaluate import Layout

from .capabilities import hidden_states
from .loss import trained_cross_entropy
from .model import LanguageModel, cheap_products

_NOTE = "kernels"
_ROWS = 64
"""Rows of the data set whose first micro-batch the kernels are timed on."""

_ELSEWHERE = "it was refused on another rank"


def chosen(
    spec: FineTuneJobSpec,
    model: LanguageModel,
    layout: Layout,
    train: Corpus,
    *,
    store: CheckpointStore | None,
    say: Callable[[str], None],
) -> Kernels:
    """Collective; `store` is rank 0's. May exchange the network's attention."""
    job = candidates.Job(
        method=spec.method.type,
        dtype="bfloat16" if (model.autocast or model.head.dtype) == torch.bfloat16 else "float32",
        packing=layout.packing,
        compiled=spec.training.compile,
        wish=spec.training.kernels,
        attention=attention.named(model.network),
        fused_head=model.capabilities.fused_head,
        trains_rows=model.rows is not None,
    )
    choice = Choice(
        network=model.network,
        job=job,
        machine=machine(model.device),
        device=model.device,
        autocast=model.autocast,
        strategy=model.strategy,
        say=say,
        seconds=timing.clock(model.device),
    )
    return choice.made(lambda: layout.batches(train, np.arange(min(_ROWS, len(train))))[0], store)


def machine(device: torch.device) -> candidates.Machine:
    installed = {}
    for package in candidates.PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return candidates.Machine(device.type, capability, installed)


@dataclass(frozen=True)
class Choice:
    """What a decision is made from."""

    network: nn.Module
    job: candidates.Job
    machine: candidates.Machine
    device: torch.device
    autocast: torch.dtype | None
    strategy: Strategy
    say: Callable[[str], None]
    seconds: timing.Clock

    def made(self, batch: Callable[[], MicroBatch], store: CheckpointStore | None) -> Kernels:
        """Collective; `store` is rank 0's. `batch`: one of this run's, asked for where something is raced."""
        if self.machine.device != "cuda" or self.job.wish == "reference":
            return Kernels()
        attentions, losses = candidates.attention(self.machine, self.job), candidates.loss(self.machine, self.job)
        noted = self.strategy.broadcast_json(store.noted(_NOTE) if store is not None else None)
        seen, because = self._first(
            "attention", attentions, noted, lambda name: self._attention_fault(name, None if noted else batch())
        )
        summed, why = self._first(
            "loss", losses, noted, lambda name: self._loss_fault(name, None if noted else batch())
        )
        if noted is None and store is not None:
            store.note(_NOTE, {"attention": self._titled(seen), "loss": self._titled(summed)})
        return Kernels(
            attention=self._titled(seen),
            loss=self._titled(summed),
            summed=loss.with_gradients(loss.KERNELS[summed], trained_cross_entropy) if summed else None,
            reasons=(because, why),
        )

    def _titled(self, name: str) -> str:
        return f"{name} {self.machine.installed[name]}" if name else ""

    def _first(
        self, what: str, offer: candidates.Offer, noted: dict[str, str] | None, fault: Callable[[str], str]
    ) -> tuple[str, str]:
        """(the first kernel without a fault or nothing, why there is none)."""
        because = offer.because
        for name in offer.kernels:
            if noted is not None and self._titled(name) != noted[what]:
                because = f"this run began with {noted[what] or 'the reference'}"
                continue
            if not (found := fault(name)):
                return name, ""
            because = f"{self._titled(name)}: {found}"
            self.say(f"{what} is not computed by {because}")
        return "", because

    def _attention_fault(self, name: str, batch: MicroBatch | None) -> str:
        kernel, heads = attention.KERNELS[name], correctness.Heads.of(self.network)
        before = attention.named(self.network)
        fault = self._agreed(correctness.attention_fault(kernel, heads, dtype=self._dtype, device=self.device))
        fault = fault or self._agreed(correctness.guarded(lambda: self._network_fault(name, kernel)))
        if not fault and batch is not None:
            fault = self._slower(
                lambda: timing.attention_ratio(
                    kernel, heads, batch.positions, dtype=self._dtype, device=self.device, seconds=self.seconds
                )
            )
        if fault:
            attention.switch(self.network, before)
        return fault

    def _network_fault(self, name: str, kernel: attention.Kernel) -> str:
        """With the kernel installed, if nothing is raised."""
        hugging = cast(Any, self.network)
        tokens = torch.arange(16, device=self.device).view(2, 8) * 7919 + 13
        tokens %= _shape(hugging.get_input_embeddings().weight)[0]
        positions = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 0, 1, 2, 3, 4]], device=self.device)
        bounds = torch.from_numpy(attention.starts(positions.cpu().numpy())).to(self.device)
        windows: list[int | None] = []

        def told(*given: Tensor, longest: int, scale: float, window: int | None) -> Tensor:
            windows.append(window)
            return kernel(*given, longest=longest, scale=scale, window=window)

        expected = attention.windowed_layers(hugging.config.get_text_config())
        right = self._states(tokens, positions, None)
        attention.install(self.network, name, told)
        got = self._states(tokens, positions, bounds)
        if sum(window is not None for window in windows) != expected:
            return "the model does not pass it its windows"
        attention.install(self.network, name, kernel)
        self._states(tokens, positions, bounds, training=True)  # dropout in attention, which kernels here have not
        off = float((got - right).abs().max() / right.abs().max())
        allowed = _OF_STATES[self._dtype]
        return "" if off <= allowed else f"states of the network are off by {off:.2g}, {allowed:g} is allowed"

    @torch.no_grad()
    def _states(self, tokens: Tensor, positions: Tensor, mask: Tensor | None, *, training: bool = False) -> Tensor:
        was_training = self.network.training
        self.network.train(training)

        def work() -> Tensor:
            with cheap_products(self.device, self.autocast):
                return hidden_states(self.network, tokens, positions, mask)

        try:
            return self.strategy.inside(self.network, work)
        finally:
            self.network.train(was_training)

    def _loss_fault(self, name: str, batch: MicroBatch | None) -> str:
        kernel = loss.KERNELS[name]
        head = cast(Any, self.network).get_output_embeddings().weight
        vocabulary, dim = _shape(head)
        shape = {
            "dim": dim,
            "vocabulary": vocabulary,
            "trains_head": head.requires_grad,
            "dtype": self._dtype,
            "stored": torch.float32 if self.autocast else self._dtype,
            "device": self.device,
        }
        fault = self._agreed(correctness.loss_fault(kernel, **shape))
        if fault or batch is None:
            return fault
        return self._slower(
            lambda: timing.loss_ratio(
                kernel, trained_cross_entropy, tokens=batch.target_count, seconds=self.seconds, **shape
            )
        )

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of products."""
        return cast(torch.dtype, getattr(torch, self.job.dtype))

    def _agreed(self, fault: str) -> str:
        """Collective: what one rank refuses, all do."""
        refused = self.strategy.sum_counters([bool(fault)])[0] > 0
        return fault or (_ELSEWHERE if refused else "")

    def _slower(self, ratio: Callable[[], float]) -> str:
        """Collective. A kernel that fails only at its real size is found out here."""

        def told() -> str:
            measured = ratio()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return "" if measured <= timing.MARGIN else f"it takes {measured:.2f} of the reference's time here"

        return cast(str, self.strategy.broadcast_json(correctness.guarded(told)))


def _shape(weight: Tensor) -> tuple[int, int]:
    """The size of the whole; DeepSpeed leaves nothing of a weight whose shards it keeps."""
    rows, columns = getattr(weight, "ds_shape", weight.shape)
    return int(rows), int(columns)


_OF_STATES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""A fraction of the largest value, after all layers."""
