"""What a run computes with, once that is decided."""

from __future__ import annotations

from dataclasses import dataclass

from .loss import Loss


@dataclass(frozen=True)
class Kernels:
    """An empty name is the reference: the attention that the network was loaded with, and our own fused loss."""

    attention: str = ""
    """With its version."""
    loss: str = ""
    summed: Loss | None = None
    """How `loss` is called."""
    reasons: tuple[str, str] = ("", "")
    """Why attention and loss are the reference, in a few words; empty where no faster ones would be expected."""
