"""Gangs of real processes on loopback, for the tests of what ranks do together.

They are forked from a process that has imported what they need: importing costs more than anything that they compute.
It has run nothing, so what a fork may not inherit (threads, autograd's engine) is not there.
"""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

_IMPORTED = ["transformers.models.llama.modeling_llama", "torch.distributed.fsdp", "peft", "tests.support.training"]


def start(rank: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """`rank(number, world_size, port, *arguments)` in each process, until all have ended. Raises what one raised."""
    multiprocessing.set_forkserver_preload(_IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    mp.start_processes(rank, (world_size, port, *arguments), nprocs=world_size, start_method="forkserver")
