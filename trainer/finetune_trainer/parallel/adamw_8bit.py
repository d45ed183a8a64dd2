"""8-bit AdamW: training.optimizer adamw8bit. After Dettmers et al. 2022 (arXiv:2110.02861).

    value     one byte names one of 256 numbers of a *dynamic tree*: seven decades up to 1, of which the upper ones are
              divided more finely; signed for the first moment, unsigned and twice as fine for the second
    block     up to 256 values share the largest magnitude among them, in fp32
    32 bits   stay for vectors (norms, biases), for weights of fewer than 4096 elements, and where blocks would be tiny

Blocks are a function of a weight's shape alone: each lies inside of one row, as long as divides it (576 → 192, 2048 →
256, rows of a LoRA matrix of rank 16 → 16). Ranks split weights by rows, so no block is cut, and any number of
ranks computes the same. Two departures from the paper's code: that rule, and that a second moment in a block that has
seen gradients is never rounded to zero, where a first moment next to it would make a huge step.

Everything is done by torch, alike on every device. bitsandbytes has kernels for it, of which that for CPUs (0.50.2)
makes 2e-5 of the block's largest value out of each zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256
SMALLEST_BLOCK = 8
SMALLEST_WEIGHT = 4096

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
"""Those of torch.optim.AdamW."""

_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Elements: what is unpacked at once takes about 24 bytes each."""

_BITS = 12
"""A float32 less these is looked up: sign, exponent and 11 bits of the fraction, a table of 2^20 bytes."""


def block_of(weight: Tensor) -> int:
    """Elements that share a scale: the largest divisor of a row's length up to 256. 0: moments stay in 32 bits."""
    if weight.ndim < 2 or weight.numel() < SMALLEST_WEIGHT or weight.dtype is not torch.float32:
        return 0
    row = math.prod(weight.shape[1:])
    block = next(divisor for divisor in range(min(BLOCK, row), 0, -1) if row % divisor == 0)
    return block if block >= SMALLEST_BLOCK else 0


def tree(*, signed: bool) -> Tensor:
    """(256,) fp32, ascending: the means of equal parts of [0.1, 1] times 10^-6 … 1, and 0 and 1."""
    values = [torch.tensor([0.0, 1.0], dtype=torch.float64)]
    for exponent in range(7):
        parts = 2**exponent if signed else 2 ** (exponent + 1)
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float64)
        means = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values.float()


@dataclass(frozen=True)
class Codec:
    """From fp32 to bytes and back. What is looked up is nearest to 2^-12 of a value."""

    values: Tensor
    """(256,) fp32."""
    nearest: Tensor
    """(2^20,) uint8: by the upper bits of a float32."""

    @classmethod
    def of(cls, *, signed: bool, device: torch.device) -> Codec:
        values = tree(signed=signed)
        middles = (torch.arange(1 << (32 - _BITS), dtype=torch.int64) << _BITS) + (1 << (_BITS - 1))
        numbers = middles.to(torch.int32).view(torch.float32).nan_to_num(0.0)
        nearest = torch.bucketize(numbers, (values[1:] + values[:-1]) / 2)
        if not signed:
            nearest.clamp_(min=1)
        return cls(values.to(device), nearest.to(torch.uint8).to(device))

    def pack(self, blocks: Tensor, codes: Tensor, scales: Tensor) -> None:
        """(blocks, elements) fp32, which are spoilt, into codes of the same shape and (blocks,) scales."""
        torch.amax(blocks.abs(), dim=1, out=scales)
        blocks.div_(scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None])
        upper = blocks.view(torch.int32).bitwise_right_shift_(_BITS).bitwise_and_((1 << (32 - _BITS)) - 1)
        codes.view(-1).copy_(self.nearest.index_select(0, upper.view(-1)))

    def unpack(self, codes: Tensor, scales: Tensor) -> Tensor:
        """(blocks, elements) fp32."""
        return self.values.index_select(0, codes.view(-1).int()).view(codes.shape).mul_(scales[:, None])


@dataclass(frozen=True)
class Pair:
    """One for the first moment and one for the second."""

    first: Codec
    second: Codec


class Codecs:
    """Made once for each device, where they are asked for."""

    def __init__(self) -> None:
        self._made: dict[torch.device, Pair] = {}

    def on(self, device: torch.device) -> Pair:
        if device not in self._made:
            self._made[device] = Pair(Codec.of(signed=True, device=device), Codec.of(signed=False, device=device))
        return self._made[device]


class Moments:
    """The moments of weights that follow one another, in whole blocks of one length."""

    def __init__(self, codecs: Pair, *, size: int, block: int) -> None:
        self._codecs = codecs
        self.block = block
        device = codecs.first.values.device
        self._codes = tuple(torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
        self._scales = tuple(torch.zeros(size // block, device=device) for _ in range(2))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All that there is of them, flat: bytes, and a scale for each block."""
        (first, second), (of_first, of_second) = self._codes, self._scales
        return {"first": first, "second": second, "first.scales": of_first, "second.scales": of_second}

    @torch.no_grad()
    def update(self, weights: Tensor, gradient: Tensor, *, rate: float, decay: float, step: int) -> None:
        """Step number `step`, from 1, of flat fp32 weights in place, a bounded part at once."""
        beta1, beta2 = _BETAS
        size = -rate / (1 - beta1**step)
        root = math.sqrt(1 - beta2**step)
        for w, g, *codes_and_scales in self._parts(weights, gradient):
            codes, scales = codes_and_scales[:2], codes_and_scales[2:]
            first = self._codecs.first.unpack(codes[0], scales[0]).lerp_(g, 1 - beta1)
            second = self._codecs.second.unpack(codes[1], scales[1]).mul_(beta2).addcmul_(g, g, value=1 - beta2)
            if decay:
                w.mul_(1 - rate * decay)
            w.addcdiv_(first, second.sqrt().div_(root).add_(_EPSILON), value=size)
            self._codecs.first.pack(first, codes[0], scales[0])
            self._codecs.second.pack(second, codes[1], scales[1])

    def _parts(self, weights: Tensor, gradient: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """(blocks, elements) of weights, gradient and bytes, (blocks,) of scales."""
        most, blocks = max(1, _AT_ONCE[weights.device.type] // self.block), len(self._scales[0])
        long = [tensor.view(blocks, self.block) for tensor in (weights, gradient, *self._codes)]
        return zip(*(torch.split(tensor, most) for tensor in (*long, *self._scales)), strict=True)
