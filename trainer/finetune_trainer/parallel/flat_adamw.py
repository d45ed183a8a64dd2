"""AdamW over flat buffers, for weights that every rank holds.

All trainable weights of one kind (decayed or not) lie one after another in one tensor, and so do their gradients and
moments. So there is one kernel for the update, one for the norm, and nothing to copy for an all-reduce; a checkpoint
sees each weight by name, as a view. With 8-bit moments a kind is also one length of blocks (`adamw_8bit`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune_api.spec import Optimizer

from .adamw_8bit import Codecs, Moments, block_of
from .base import Gang, Saved


@dataclass(frozen=True)
class _Group:
    """Weights that share a flat tensor; `places` says where each of them is."""

    flat: nn.Parameter
    gradient: Tensor
    places: Mapping[str, tuple[int, torch.Size]]
    decay: float
    packed: Moments | None
    """In 8 bits; None: torch's AdamW has them."""

    def views(self, buffer: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, (start, shape) in self.places.items():
            yield name, buffer[start : start + shape.numel()].view(shape)

    def moments(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Views by the name of the weight and what follows it: `….first`, `….second`, `….first.scales`."""
        for kind, moment in state.items():
            each = self.flat.numel() // len(moment)  # elements for each that is kept of them
            for name, (start, shape) in self.places.items():
                part = moment[start // each : (start + shape.numel()) // each]
                yield f"{name}.{kind}", part.view(shape if each == 1 else (shape[0], -1))


class FlatAdamW:
    """Owns the memory of the trainable weights: after construction they are views of its buffers, gradients too."""

    parts = 1

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        *,
        weight_decay: float,
        gang: Gang | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        """Every rank of `gang` holds all of `weights`; None: one process alone."""
        self.steps = 0
        self._gang = gang
        kinds: dict[tuple[bool, int], dict[str, nn.Parameter]] = {}
        for name, parameter in weights.items():
            block = block_of(parameter) if optimizer == "adamw8bit" else 0
            kinds.setdefault((parameter.ndim <= 1, block), {})[name] = parameter  # norms and biases are vectors
        codecs = Codecs()
        self._groups = [
            _flatten(members, decay=0.0 if vectors else weight_decay, block=block, codecs=codecs)
            for (vectors, block), members in sorted(kinds.items(), key=lambda kind: kind[0])
        ]
        whole = [group for group in self._groups if group.packed is None]
        settings = [{"params": [group.flat], "weight_decay": group.decay} for group in whole]
        self._adamw = torch.optim.AdamW(settings or [{"params": []}], lr=0.0, fused=True)
        for group in whole:
            group.flat.grad = group.gradient
            self._adamw.state[group.flat] = _fresh_state(group.flat)

    @property
    def gradients(self) -> list[Tensor]:
        return [group.gradient for group in self._groups]

    @property
    def _flat(self) -> list[Tensor]:
        """Flat, without gradients: assigning into them changes the model."""
        return [group.flat.data for group in self._groups]

    def backward(self, nats: Tensor, *, last: bool) -> None:  # noqa: ARG002
        nats.backward()  # type: ignore[no-untyped-call]

    def step(self, rate: float, *, divisor: float, max_norm: float) -> float:
        if self._gang is not None:
            self._gang.sum_gradients(self.gradients)
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in self.gradients])
        norm = float(torch.linalg.vector_norm(norms)) / divisor
        if not math.isfinite(norm):
            return norm
        clipped = min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
        for gradient in self.gradients:
            gradient.mul_(clipped / divisor)
        for settings in self._adamw.param_groups:
            settings["lr"] = rate
        self._adamw.step()
        self.steps += 1
        for group in self._groups:
            if group.packed is not None:
                group.packed.update(group.flat.data, group.gradient, rate=rate, decay=group.decay, step=self.steps)
            group.gradient.zero_()
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Views by name: `weights/…`, and once steps were made `moments/….first` and `moments/….second`, in 8 bits
        with `….scales` of each."""
        named = {f"weights/{name}": view for group in self._groups for name, view in group.views(group.flat.data)}
        for group in self._groups if self.steps else ():
            named |= {f"moments/{name}": view for name, view in group.moments(self._state(group))}
        return named

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        self.steps = steps
        if saved is not None:
            for name, view in self.tensors().items():
                view.copy_(saved.read(name, slice(None)))
        for state in self._adamw.state.values():
            state["step"].fill_(float(steps))
        if self._gang is not None:
            self._gang.broadcast([*self._flat, *self._moments] if steps else self._flat)

    def restore_weights(self, saved: Saved | None) -> None:
        if saved is not None:
            for group in self._groups:
                for name, view in group.views(group.flat.data):
                    view.copy_(saved.read(f"weights/{name}", slice(None)))
        if self._gang is not None:
            self._gang.broadcast(self._flat)

    def editable(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @property
    def _moments(self) -> list[Tensor]:
        return [moment for group in self._groups for moment in self._state(group).values()]

    def _state(self, group: _Group) -> Mapping[str, Tensor]:
        if group.packed is not None:
            return group.packed.tensors
        state = self._adamw.state[group.flat]
        return {"first": state["exp_avg"], "second": state["exp_avg_sq"]}


def _flatten(members: Mapping[str, nn.Parameter], *, decay: float, block: int, codecs: Codecs) -> _Group:
    first = next(iter(members.values()))
    size = sum(parameter.numel() for parameter in members.values())
    flat = torch.empty(size, dtype=first.dtype, device=first.device)
    places, start = {}, 0
    for name, parameter in members.items():
        places[name] = (start, parameter.shape)
        start += parameter.numel()
    packed = Moments(codecs.on(flat.device), size=size, block=block) if block else None
    group = _Group(nn.Parameter(flat), torch.zeros_like(flat), places, decay, packed)
    gradients = dict(group.views(group.gradient))
    for name, view in group.views(flat):
        view.copy_(members[name].data)
        members[name].data = view
        members[name].grad = gradients[name]
    return group


def _fresh_state(flat: Tensor) -> dict[str, Tensor]:
    # Made here and not at the first step, so that a resumed run writes into the same memory. The fused kernel wants the
    # step count beside the weights, in fp32.
    return {
        "step": torch.zeros((), dtype=torch.float32, device=flat.device),
        "exp_avg": torch.zeros_like(flat),
        "exp_avg_sq": torch.zeros_like(flat),
    }
