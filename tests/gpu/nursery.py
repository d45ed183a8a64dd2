"""Parts of the rehearsal as forks of one process that has imported torch, transformers and PEFT.

To import them costs as much as most parts compute with tiny sizes. On a card each part is a command of its own, whose
times are taken; in the rehearsal those parts are that need another environment, and the first, so that the command is
rehearsed, too. A fork has run nothing of ours, and imports our modules itself.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from unittest.mock import patch

Begin = Callable[[list[str], dict[str, str], str, str], None]
"""What a fork does: arguments of the command, environment, folder, file for what it prints. Of the module that is run,
since a fork finds no other."""

_IMPORTED = ["torch.distributed.fsdp", "transformers.models.llama.modeling_llama", "peft"]


class Nursery:
    """`environ` is that of all forks: packages read some of it when they are imported."""

    def __init__(self, begin: Begin, environ: Mapping[str, str]) -> None:
        self._begin, self._lock = begin, threading.Lock()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(_IMPORTED)
        with patch.dict(os.environ, environ, clear=True):
            forkserver.ensure_running()

    def start(self, arguments: list[str], *, environ: Mapping[str, str], folder: Path, log: Path) -> Fork:
        given = (arguments, dict(environ), str(folder), str(log))
        process = self._context.Process(target=self._begin, args=given)
        with self._lock:
            process.start()
        return Fork(process, self._lock)


class Fork:
    """With those methods of `subprocess.Popen` that are used. One thread at a time may ask how a fork ended, or start
    the next one."""

    def __init__(self, process: multiprocessing.context.ForkServerProcess, lock: threading.Lock) -> None:
        assert process.pid is not None
        self.pid, self._process, self._lock = process.pid, process, lock

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._lock:
            return self._process.exitcode

    def wait(self, timeout: float) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("a part", timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
