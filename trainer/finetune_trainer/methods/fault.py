"""A network's own exceptions as failures of the model: no attempt could change them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from finetune_api.failures import FinetuneError, Reason

_CODE = (TypeError, AttributeError, ValueError, KeyError, IndexError, NotImplementedError)
"""What code raises that meets something it was not made for: the same at every attempt. RuntimeError is left out: it is
how torch reports memory and of lost peers."""


@contextmanager
def of_model(network: nn.Module, what: str, *, hint: str) -> Iterator[None]:
    """ModelUnsupported for what the code of `network`, or of a library that is given it, cannot do."""
    try:
        yield
    except FinetuneError:
        raise
    except _CODE as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise FinetuneError(Reason.ModelUnsupported, f"{type(network).__name__} {what}: {text[:400]}", hint) from error
