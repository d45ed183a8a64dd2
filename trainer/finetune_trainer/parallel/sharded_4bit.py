"""Weights in 4 bits that ranks share: each keeps some rows of a matrix, packed as bitsandbytes packs the whole one.

A block of 64 weights shares a scale and lies within a row, so rows that are packed apart are those of a matrix packed
at once. Scales are packed again (double quantisation), less their mean and in blocks that cross rows: for that every
rank sees all of a matrix's for a moment, 4 bytes for 64 weights, one matrix after another.

Bytes are to FSDP what weights are: kept in rows, gathered for a layer's forward and again for its backward.
"""

from __future__ import annotations

from typing import Any, cast

import bitsandbytes as bnb
import bitsandbytes.functional as packing
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from finetune_api.failures import FinetuneError, Reason

_BLOCK = 64
"""Weights that share a scale."""


class SharedLinear4bit(bnb.nn.Linear4bit):  # type: ignore[misc]  # bitsandbytes ships no types
    """weight: (out, in / 2) uint8, two weights a byte; scales: (out, in / 64) uint8."""

    def __init__(self, linear: nn.Linear) -> None:
        """For `linear` on the meta device, which has sizes and dtypes. ModelUnsupported where blocks cross rows."""
        if linear.in_features % _BLOCK:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"rows of {linear.in_features} weights are not a multiple of {_BLOCK}, so 4-bit shards cannot be made",
                "Set strategy.type: ddp, or use method.type: lora.",
            )
        dtype = linear.weight.dtype
        super().__init__(linear.in_features, linear.out_features, bias=False, compute_dtype=dtype, device="meta")
        self.weight = _bytes(linear.out_features, linear.in_features // 2)
        self.scales = _bytes(linear.out_features, linear.in_features // _BLOCK)
        self.bias = linear.bias
        self._code: Tensor | None = None
        self._offset: Tensor | None = None
        self._scales_of_scales: Any = None

    @torch.no_grad()
    def fill(self, rows: Tensor, *, start: int) -> None:
        """Collective. `rows`: this rank's, as the model's files have them, from row `start` of the matrix on."""
        held, scales = _local(self.weight), _local(self.scales)
        largest = torch.empty(scales.shape, dtype=torch.float32, device=held.device)
        if len(rows):
            packed, state = packing.quantize_4bit(rows.to(held.device, self.compute_dtype), quant_type="nf4")
            held.copy_(packed.view_as(held))
            largest = state.absmax.view(scales.shape)
        self._code = packing.get_4bit_type("nf4", device=held.device)
        every = _gathered(largest, like=self.scales).flatten()
        self._offset = every.mean()
        codes, self._scales_of_scales = packing.quantize_blockwise(every - self._offset, blocksize=256)
        scales.copy_(codes.view(self.scales.shape)[start : start + len(scales)])
        # What PEFT asks the weights of a layer in 4 bits for, and how many they are.
        told = {"quant_type": "nf4", "compress_statistics": True, "unpacked_numel": 2 * self.weight.numel()}
        self.weight.__dict__.update(told)
        self.scales.__dict__.update(unpacked_numel=0)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        state = self._state(self.scales)
        out = bnb.matmul_4bit(x.to(self.compute_dtype), self.weight, bias=bias, quant_state=state)
        return cast(Tensor, out.to(x.dtype))

    @torch.no_grad()
    def unpacked(self) -> Tensor:
        """Collective: the matrix that its ranks compute with."""
        weight, scales = (cast(DTensor, part).full_tensor() for part in (self.weight, self.scales))
        return cast(Tensor, packing.dequantize_4bit(weight.view(-1, 1), self._state(scales)))

    @torch.no_grad()
    def packed_and_back(self, whole: Tensor) -> Tensor:
        """The same by one rank alone, of `whole` as the model's files have it."""
        whole = whole.to(_local(self.weight).device, self.compute_dtype)
        return cast(
            Tensor,
            packing.dequantize_4bit(*packing.quantize_4bit(whole, quant_type="nf4", compress_statistics=True)),
        )

    def _state(self, scales: Tensor) -> Any:
        """`scales`: whole."""
        return packing.QuantState(
            absmax=scales.view(-1),
            shape=torch.Size((self.out_features, self.in_features)),
            code=self._code,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=self.compute_dtype,
            offset=self._offset,
            state2=self._scales_of_scales,
        )


def _bytes(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.uint8, device="meta"), requires_grad=False)


def _local(parameter: Tensor) -> Tensor:
    return cast(DTensor, parameter).to_local()


def _gathered(part: Tensor, *, like: Tensor) -> Tensor:
    """Collective: the whole of which each rank has the rows that it has of `like`."""
    spread = cast(DTensor, like)
    made = DTensor.from_local(
        part, spread.device_mesh, spread.placements, run_check=False, shape=spread.shape, stride=spread.stride()
    )
    return made.full_tensor()
