"""Kernels against the reference: right ones pass, wrong ones are found, and packages are called as they expect."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune_trainer.kernels import attention, correctness, loss, timing
from finetune_trainer.train.loss import trained_cross_entropy
from tests.support import kernel_doubles as doubles
from tests.support.kernel_cases import WRONG
from tests.support.training import (
    CPU,
    cross_entropy_of_trained,
)

HEADS = correctness.Heads(4, 2, 16)


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_right_attention_is_proved(dtype: torch.dtype) -> None:
    for heads in (HEADS, correctness.Heads(3, 3, 8)):
        assert correctness.attention_fault(doubles.varlen, heads, dtype=dtype, device=CPU) == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "words"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_attention_is_found_out(kernel: attention.Kernel, words: str, dtype: torch.dtype) -> None:
    fault = correctness.attention_fault(kernel, HEADS, dtype=dtype, device=CPU)
    assert fault.startswith(words.removesuffix("0.01") if dtype is torch.bfloat16 else words)


def _loss_fault(kernel: loss.Loss, dtype: torch.dtype, stored: torch.dtype, *, trains_head: bool = True) -> str:
    return correctness.loss_fault(
        kernel, dim=48, vocabulary=500, trains_head=trains_head, dtype=dtype, stored=stored, device=CPU
    )


PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]


WRONG_LOSSES = [
    (doubles.averaging, "its loss is off by 0.98"),
    (doubles.training_masked, "its gradient of states is not zero where nothing is trained"),
    (doubles.right_by_value_only, "its gradient of states is off by 1"),
    (doubles.freezing_the_head, "its gradient of the head is off by 0.5"),
    (doubles.raising, "it failed: RuntimeError"),
]


@pytest.mark.parametrize(("dtype", "stored"), PRECISIONS, ids=["float32", "bfloat16", "autocast"])
def test_right_losses_are_proved_and_wrong_ones_found_out(dtype: torch.dtype, stored: torch.dtype) -> None:
    for right in (doubles.cross_entropy, cross_entropy_of_trained):
        assert _loss_fault(right, dtype, stored) == ""
        assert _loss_fault(right, dtype, stored, trains_head=False) == ""
    for kernel, words in WRONG_LOSSES:
        assert _loss_fault(kernel, dtype, stored).startswith(words)


def test_torchs_own_kernel_is_called_as_it_wants_to_be() -> None:
    """Its operator is known to fake tensors, forwards and backwards, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, key, value = (torch.randn(10, n, 16, dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2))
        starts = torch.zeros(3, dtype=torch.int32)
        for window in (None, 3):
            seen = attention.by_torch(query, key, value, starts, longest=6, scale=0.25, window=window)
            assert seen.shape == query.shape
            gradients = torch.autograd.grad(seen.sum(), (query, key, value))
            assert [g.shape for g in gradients] == [query.shape, key.shape, value.shape]


def flash_attn_2(  # the arguments of flash-attn 2.8
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Any = None,
) -> Tensor:  # fmt: skip
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert causal
    assert deterministic
    left, right = window_size
    assert right == 0
    return doubles.varlen(
        q, k, v, cu_seqlens_q, longest=max_seqlen_q, scale=softmax_scale or 0.0, window=None if left < 0 else left + 1
    )


def flash_attn_3(  # the arguments of flash-attn 3, which has answered with the normalisers too
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: Any = None, seqused_k: Any = None, softmax_scale: float | None = None, causal: bool = False,
    qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False,
) -> tuple[Tensor, None]:  # fmt: skip
    return (
        flash_attn_2(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=softmax_scale,
            causal=causal, window_size=window_size, deterministic=deterministic,
        ),
        None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("package", "module", "function"),
    [("flash-attn", "flash_attn", flash_attn_2), ("flash-attn-3", "flash_attn_interface", flash_attn_3)],
)
def test_packages_are_called_by_their_own_names(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str, function: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_varlen_func=function))  # type: ignore[arg-type]
    fault = correctness.attention_fault(attention.KERNELS[package], HEADS, dtype=torch.float32, device=CPU)
    assert fault == ""


_PROVE_LIGER = """
import sys, torch
from finetune_trainer.kernels import loss, correctness
shape = dict(dim=48, vocabulary=500, dtype=torch.float32, stored=torch.float32, device=torch.device("cpu"))
for trains_head in (True, False):
    if fault := correctness.loss_fault(loss.by_liger, trains_head=trains_head, **shape):
        sys.exit(fault)
"""


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is optional: pip install -e .[kernels]")
def test_ligers_own_kernel_proves_right() -> None:
    """Its Triton code in Triton's interpreter, which needs no GPU. In float32: the interpreter cuts bfloat16 off where
    GPUs round it, half a percent less in all, and the proof refuses that."""
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROVE_LIGER], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_race_is_run_on_the_rows_of_the_run_forwards_and_backwards() -> None:
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    given = {"dtype": torch.float32, "device": CPU}
    seconds = timing.clock(CPU)
    assert timing.attention_ratio(doubles.varlen, HEADS, positions, seconds=seconds, **given) > 0
    shape = {"tokens": 7, "dim": 8, "vocabulary": 11, "trains_head": True, "stored": torch.float32, **given}
    assert timing.loss_ratio(doubles.cross_entropy, trained_cross_entropy, seconds=seconds, **shape) > 0
