"""How far the layers of a model see, from its config: sliding windows, local layers, chunks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_WIDTHS = re.compile(r"window|attention_chunk|local_attention")
_COUNTS = re.compile(r"layers|pattern|use_|blocks|kernel")
"""Names that contain "window" and are not a width."""


def narrowest(config: Any) -> int | None:
    """Tokens that the layer with the shortest sight sees, by any of the names that configs have for it; None where all
    layers see everything. What is unclear counts: too small a number costs time, too large a one would be wrong."""
    kinds = getattr(config, "layer_types", None)
    if getattr(config, "use_sliding_window", True) is False or (kinds and set(kinds) == {"full_attention"}):
        return None
    named = config.to_dict().items()
    return min((n for name, value in named if _is_width(name) for n in _numbers(value)), default=None)


def _is_width(name: str) -> bool:
    return bool(_WIDTHS.search(name)) and not _COUNTS.search(name)


def _numbers(value: Any) -> Iterator[int]:
    """The numbers in a width, which may be a list of several."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value
