"""Which third-party kernels could be used, by device, packages and job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_trainer.kernels import candidates
from tests.support.kernel_cases import A100, H100, INSTALLED, PACKED

BARE = replace(H100, installed={"torch": "2.13.0"})


ATTENTION = [
    ("Hopper, all installed", H100, PACKED, ("flash-attn-3", "flash-attn", "torch"), ""),
    ("Ampere", A100, PACKED, ("flash-attn", "torch"), ""),
    ("Blackwell", replace(H100, capability=(12, 0)), PACKED, ("flash-attn", "torch"), ""),
    ("nothing but torch", BARE, PACKED, ("torch",), ""),
    ("an old package", replace(A100, installed={**INSTALLED, "flash-attn": "2.3.6"}), PACKED, ("torch",), ""),
    ("an old GPU", replace(H100, capability=(7, 5)), PACKED, (), "older than compute capability 8.0"),
    ("a CPU", candidates.Machine("cpu", (0, 0), INSTALLED), PACKED, (), ""),
    ("switched off", H100, replace(PACKED, wish="reference"), (), ""),
    ("float32", H100, replace(PACKED, dtype="float32"), (), "knows no float32"),
    ("rows apart", H100, replace(PACKED, packing=False), (), "one document per row"),
    ("compiled", H100, replace(PACKED, compiled=True), (), "blocks are compiled"),
    ("prefix", H100, replace(PACKED, method="prefix"), (), "masks of its own"),
    ("probe", H100, replace(PACKED, method="probe"), (), "makes no steps"),
    ("capped scores", H100, replace(PACKED, attention="eager"), (), "the model needs eager"),
]


LOSS = [
    ("installed", H100, PACKED, ("liger-kernel",), ""),
    ("an older GPU", replace(H100, capability=(7, 5)), PACKED, ("liger-kernel",), ""),
    ("missing", BARE, PACKED, (), "liger-kernel is not installed"),
    ("old", replace(H100, installed={"liger-kernel": "0.5.10"}), PACKED, (), "0.5.10 is older than 0.8"),
    ("capped logits", H100, replace(PACKED, fused_head=False), (), "more than one matrix"),
    ("new tokens", H100, replace(PACKED, trains_rows=True), (), "rows of the head train"),
    ("probe", H100, replace(PACKED, method="probe"), (), "makes no steps"),
    ("switched off", H100, replace(PACKED, wish="reference"), (), ""),
    ("a CPU", candidates.Machine("cpu", (0, 0), INSTALLED), PACKED, (), ""),
]


@pytest.mark.parametrize(
    ("machine", "job", "kernels", "because"), [row[1:] for row in ATTENTION], ids=[row[0] for row in ATTENTION]
)
def test_what_attention_is_offered(
    machine: candidates.Machine, job: candidates.Job, kernels: tuple[str, ...], because: str
) -> None:
    offer = candidates.attention(machine, job)
    assert offer.kernels == kernels
    assert because in offer.because
    assert bool(offer.because) == bool(because)


@pytest.mark.parametrize(
    ("machine", "job", "kernels", "because"), [row[1:] for row in LOSS], ids=[row[0] for row in LOSS]
)
def test_what_loss_is_offered(
    machine: candidates.Machine, job: candidates.Job, kernels: tuple[str, ...], because: str
) -> None:
    offer = candidates.loss(machine, job)
    assert offer.kernels == kernels
    assert because in offer.because
    assert bool(offer.because) == bool(because)
