"""A model's weights come into the machine's memory while a node's processes still import what will use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import Thread

from finetune_api import uris
from finetune_api.failures import FinetuneError

from .local import open_local

PIECE = 1 << 20
"""Bytes asked for at once: of a larger piece the kernel reads only the beginning ahead."""


def prefetch_weights(uri: str, *, environ: Mapping[str, str] = os.environ) -> Thread | None:
    """Begins to read a model ahead that is on this machine or a claim, and returns the thread that asks.

    None for others: the preflight has just written what it downloaded. The process keeps nothing, and nothing is
    raised: whatever is wrong with the files is said by what needs them.
    """
    parsed = uris.parse(uri)
    if parsed.scheme not in ("file", "pvc") or not hasattr(os, "posix_fadvise"):
        return None
    try:
        folder = open_local(parsed, environ=environ).path
    except FinetuneError:
        return None
    thread = Thread(target=_read_ahead, args=(folder,), name="near", daemon=True)
    thread.start()
    return thread


def _read_ahead(folder: Path) -> None:
    with suppress(OSError):
        for file in sorted(folder.glob("*.safetensors")):
            with file.open("rb") as opened:
                for start in range(0, file.stat().st_size, PIECE):
                    os.posix_fadvise(opened.fileno(), start, PIECE, os.POSIX_FADV_WILLNEED)
