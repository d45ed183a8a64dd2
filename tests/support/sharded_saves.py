"""Ranks as threads that save and resume checkpoints in parts, on folders in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from finetune_trainer.parallel.base import Place, Saved, rows_of
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.train.checkpointer import Checkpointer
from finetune_trainer.train.state import Best, State
from tests.support.faulty_stores import RUN

T = TypeVar("T")


def tensors(step: int = 1) -> dict[str, Tensor]:
    """Of seven rows, of fewer than there are ranks, of bytes with their scales, of 16 bits."""
    made = torch.Generator().manual_seed(step)
    return {
        "weights/a": torch.randn(7, 3, generator=made),
        "weights/b": torch.randn(2, generator=made),
        "weights/c": torch.randn(6, 2, 2, generator=made).bfloat16(),
        "moments/a.first": torch.randint(0, 256, (7, 3), generator=made).to(torch.uint8),
        "moments/a.first.scales": torch.randn(7, 1, generator=made),
    }


def part_of(whole: dict[str, Tensor], part: int, count: int) -> dict[str, Tensor]:
    return {name: tensor[rows_of(part, count, len(tensor))] for name, tensor in whole.items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


class Gang:
    """The part of parallel.base.Gang that checkpoints need, between threads of this process."""

    def __init__(self, place: Place, shared: dict[int, Any], barrier: Barrier) -> None:
        self.place, self._shared, self._barrier = place, shared, barrier

    def broadcast_json(self, value: Any) -> Any:
        return self._gathered(value)[0]

    def sum_counters(self, counters: Sequence[float]) -> list[float]:
        return [float(sum(column)) for column in zip(*self._gathered(list(counters)), strict=True)]

    def barrier(self) -> None:
        self._barrier.wait(60)

    def leave(self) -> None:
        """As the end of a process is noticed by the others: whoever waits for it fails."""
        self._barrier.abort()

    def _gathered(self, value: Any) -> list[Any]:
        self._shared[self.place.rank] = value
        self.barrier()
        all_values = [self._shared[rank] for rank in range(self.place.world_size)]
        self.barrier()
        return all_values


@dataclass
class Rows:
    """parallel.base.Weights, as far as checkpoints see them: one rank's rows of `tensors`."""

    parts: int
    part: int
    mine: dict[str, Tensor]
    steps: int = 0

    @classmethod
    def of(cls, step: int, place: Place, parts: int) -> Rows:
        return cls(parts, place.rank % parts, part_of(tensors(step), place.rank % parts, parts))

    def tensors(self) -> dict[str, Tensor]:
        return self.mine

    def restore(self, saved: Saved | None, *, steps: int) -> None:
        self.steps = steps
        self._read(saved, list(self.mine))

    def restore_weights(self, saved: Saved | None) -> None:
        self._read(saved, [name for name in self.mine if name.startswith("weights/")])

    def _read(self, saved: Saved | None, names: list[str]) -> None:
        for name in names if saved is not None else ():
            rows = rows_of(self.part, self.parts, len(tensors()[name]))
            self.mine[name] = saved.read(name, rows)


def on(
    world: int, folders: Folder | Sequence[Folder], act: Callable[[Checkpointer, Place], T], *, keep: int = 2
) -> list[T]:
    """What each of `world` ranks answers, which act at once."""
    shared: dict[int, Any] = {}
    barrier = Barrier(world)

    def rank(number: int) -> T:
        place = Place(number, number, world, world)
        folder = folders[number] if isinstance(folders, Sequence) else folders
        store = CheckpointStore(folder, RUN)
        checkpointer = Checkpointer(Gang(place, shared, barrier), store, keep, every_steps=1, every_seconds=None)  # type: ignore[arg-type]
        return act(checkpointer, place)

    def ended(number: int) -> T:
        try:
            return rank(number)
        except BaseException:
            barrier.abort()  # as a lost connection is noticed
            raise

    with ThreadPoolExecutor(world) as pool:
        return [future.result() for future in [pool.submit(ended, number) for number in range(world)]]


def saving(step: int, *, parts: int | None = None, best: int | None = None) -> Callable[[Checkpointer, Place], Rows]:
    def act(checkpointer: Checkpointer, place: Place) -> Rows:
        weights = Rows.of(step, place, parts or place.world_size)
        state = State(step=step, best=Best(step=best, loss=1.0) if best else None)
        checkpointer.save(state, weights)  # type: ignore[arg-type]
        checkpointer.wait()
        return weights

    return act


def resuming(checkpointer: Checkpointer, place: Place) -> tuple[int, Rows]:
    """(step, weights) of a new process, whose own were others."""
    weights = Rows.of(99, place, place.world_size)
    return checkpointer.resume(weights).step, weights  # type: ignore[arg-type]


def resumed(folder: Folder, world: int) -> tuple[int, dict[str, Tensor]] | None:
    """(step, whole tensors) as so many ranks read them; None where there is no checkpoint."""
    found = on(world, folder, resuming)
    assert len({step for step, _ in found}) == 1
    if not found[0][0]:
        return None
    names = found[0][1].mine
    return found[0][0], {name: torch.cat([rows.mine[name] for _, rows in found]) for name in names}
