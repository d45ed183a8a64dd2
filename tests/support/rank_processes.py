"""Gangs of real processes on loopback, for the tests of what ranks do together.

They are forked from a process that has imported what they need: importing costs more than anything that they compute.
It has run nothing, so what a fork may not inherit (threads, autograd's engine) is not there.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

from tests.support.pause_at_step import HOOK

_IMPORTED = [
    "transformers.models.llama.modeling_llama", "torch.distributed.fsdp", "peft", "tests.support.training",
    "finetune_trainer.train.run",
]  # fmt: skip


def start(rank: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """`rank(number, world_size, port, *arguments)` in each process, until all have ended. Raises what one raised."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    mp.start_processes(rank, (world_size, port, *arguments), nprocs=world_size, start_method="forkserver")


class TrainMain:
    """`python -m finetune_trainer.train.main ARGUMENTS` in an environment, without the seconds of its imports. What it
    prints goes to the log. Its methods are those of `subprocess.Popen`."""

    def __init__(self, arguments: list[str], *, environment: Mapping[str, str], log: Path) -> None:
        multiprocessing.set_forkserver_preload(_IMPORTED)
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_train_main, args=(arguments, dict(environment), str(log)))
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if (code := self._process.exitcode) is None:
            raise subprocess.TimeoutExpired("finetune_trainer.train.main", timeout)
        return code

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _train_main(arguments: list[str], environment: dict[str, str], log: str) -> None:
    from finetune_trainer.train.main import main
    from finetune_trainer.train.process_exit import exit_process

    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.clear()
    os.environ.update(environment)
    runpy.run_path(str(HOOK / "sitecustomize.py"))  # a pause, where the environment asks for one
    exit_process(main(arguments))
