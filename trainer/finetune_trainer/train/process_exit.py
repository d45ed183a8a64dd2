"""How a rank's process ends, and every other process of this package that has loaded torch or a store: at once, when
what it must save is saved.

An interpreter that shuts down joins threads and destroys libraries in an undefined order. The threads of
torch, gloo and of uploads then abort the process now and then (`terminate called without an active exception`), long
after its work is done, and a run that has committed its artifact would count as failed.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn


class SaveThread(threading.Thread):
    """Saves a checkpoint; the process does not end before it. `work` gets an event that is set once the process
    is about to end: then it no longer waits for others."""

    def __init__(self, work: Callable[[threading.Event], None], *, name: str) -> None:
        self.leaving = threading.Event()
        super().__init__(target=work, args=(self.leaving,), name=name)


def exit_process(code: int) -> NoReturn:
    """Ends the process with this code: saves under way end first, and what was printed is written."""
    for thread in threading.enumerate():
        if isinstance(thread, SaveThread):
            thread.leaving.set()
            thread.join()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
