"""Amounts as Kubernetes writes them."""

from __future__ import annotations

from finetune_api.failures import FinetuneError, Reason

_SUFFIXES = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "m": 1e-3}
_BINARY = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60}


def quantity(text: int | str) -> int:
    """In bytes: `64Mi` → 67108864. InvalidSpec for what is none."""
    text = str(text)
    try:
        for suffix, factor in {**_BINARY, **_SUFFIXES}.items():
            if text.endswith(suffix):
                return int(float(text.removesuffix(suffix)) * factor)
        return int(float(text))
    except ValueError:
        raise FinetuneError(Reason.InvalidSpec, f"{text!r} is not an amount of memory", "Write it as 80Gi.") from None
