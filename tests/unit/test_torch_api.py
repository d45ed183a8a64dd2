"""Which torch the trainer runs on, and what it says on another one."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen

from finetune_api.failures import FailureClass, FinetuneError, Reason
from finetune_trainer.kernels import attention
from finetune_trainer.parallel.fsdp import gathered_dtype
from finetune_trainer.torch_api import SUPPORTED, has, need

ROOT = Path(__file__).parents[2]


def test_what_this_torch_lacks_is_told_by_name() -> None:
    need("torch.distributed.fsdp:FSDPModule.reshard", what_for="strategy fsdp")
    with pytest.raises(FinetuneError) as error:
        need("torch.distributed.fsdp:FSDPModule.no_such_thing", what_for="strategy fsdp")
    assert error.value.reason is Reason.InvalidSpec
    assert error.value.failure_class is FailureClass.Config
    lacks = "lacks torch.distributed.fsdp.FSDPModule.no_such_thing, which strategy fsdp needs"
    assert error.value.message == f"torch {torch.__version__} {lacks}"
    assert SUPPORTED in error.value.hint


@pytest.mark.parametrize("name", ["torch.no_such_module:x", "torch:no_such_function", "torch.nn:Linear.no.such"])
def test_modules_and_attributes_may_be_missing(name: str) -> None:
    assert not has(name)


def test_the_range_is_that_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = [line for line in extras["trainer"] if line.startswith("torch>")]
    first, last = SUPPORTED.split(" to ")
    major, minor = last.split(".")
    assert asked == f"torch>={first},<{major}.{int(minor) + 1}"


@pytest.mark.parametrize("announced", [True, False])
def test_grouped_heads_are_announced_where_torch_wants_it(monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    """torch 2.11 knows no `enable_gqa`, and its kernel takes fewer keys than queries all the same."""
    given: dict[str, Any] = {}

    def of_2_11(  # the signature of torch 2.11
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        return_aux: Any = None, scale: float | None = None, window_size: tuple[int, int] = (-1, -1),
    ) -> Any:  # fmt: skip
        given.update(window_size=window_size)
        return query

    def of_2_13(*parts: Any, enable_gqa: bool = False, **rest: Any) -> Any:
        given.update(enable_gqa=enable_gqa)
        return of_2_11(*parts, **rest)

    monkeypatch.setattr(varlen, "varlen_attn", of_2_13 if announced else of_2_11)
    query, key = torch.zeros(10, 4, 16), torch.zeros(10, 2, 16)

    seen = attention.by_torch(query, key, key, torch.zeros(3), longest=6, scale=0.25, window=3)

    assert seen.shape == query.shape
    assert given == {"window_size": (2, 0)} | ({"enable_gqa": True} if announced else {})
    assert ("enable_gqa" in inspect.signature(varlen.varlen_attn).parameters) is announced


@pytest.mark.parametrize(
    ("kept", "products", "device", "gathered"),
    [
        (torch.float32, torch.bfloat16, "cuda", torch.bfloat16),
        (torch.float32, None, "cuda", None),
        (torch.float32, torch.bfloat16, "cpu", None),
        (torch.bfloat16, torch.bfloat16, "cuda", None),
    ],
)
def test_sharded_weights_travel_in_the_dtype_of_products(
    kept: torch.dtype, products: torch.dtype | None, device: str, gathered: torch.dtype | None
) -> None:
    """training.precision: float32 means it, also where a GPU could do less."""
    assert gathered_dtype(kept, products, device=device) is gathered
