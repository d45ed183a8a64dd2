"""PEFT without bitsandbytes. It imports that wherever it is installed, and with it a compiler: a second of CPU, and a
message about a package that was not requested. A run in 4 bits has imported it before, and then nothing is hidden."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

_HIDDEN = "bitsandbytes"


@contextmanager
def lean_peft() -> Iterator[None]:
    """Inside, PEFT may be imported and put into a network."""
    if _HIDDEN in sys.modules:
        yield
        return
    sys.modules[_HIDDEN] = cast(Any, None)
    _forget()
    try:
        yield
    finally:
        del sys.modules[_HIDDEN]
        _forget()


def _forget() -> None:
    """What PEFT remembers of having looked."""
    if (known := sys.modules.get("peft.import_utils")) is not None:
        for name in ("is_bnb_available", "is_bnb_4bit_available"):
            cast(Any, known).__dict__[name].cache_clear()
