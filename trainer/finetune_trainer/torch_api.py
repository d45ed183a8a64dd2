"""What the trainer uses of torch below its documented surface, by name.

A module asks for what it needs when it is imported, or before its first use of what is slow to import. So on a torch
outside of `SUPPORTED` a run ends before its first step, and its message names what is missing.
"""

from __future__ import annotations

import importlib

import torch

from finetune_api.failures import FinetuneError, Reason

SUPPORTED = "2.11 to 2.13"


def need(*names: str, what_for: str) -> None:
    """InvalidSpec for the first of `names` (`module:attribute.of.it`) that this torch lacks."""
    for name in names:
        if not has(name):
            raise FinetuneError(
                Reason.InvalidSpec,
                f"torch {torch.__version__} lacks {name.replace(':', '.')}, which {what_for} needs",
                f"Use the project's trainer image, or install torch {SUPPORTED}.",
            )


def has(name: str) -> bool:
    module, _, attributes = name.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            return False
        found = getattr(found, attribute)
    return True
