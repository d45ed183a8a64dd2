"""Checkpoints as a gang sees them: rank 0 reads and writes, the others are told.

Reading is collective: one rank decides what the newest whole checkpoint is, and all continue from the same bytes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from finetune_trainer.parallel.base import Gang, Weights
from finetune_trainer.store.checkpoints import CheckpointStore

from .checkpoint import CheckpointWriter, Snapshot, load
from .state import State

_log = logging.getLogger(__name__)


@dataclass
class Keeper:
    strategy: Gang
    store: CheckpointStore | None
    """Of rank 0; None elsewhere."""
    keep: int
    every_steps: int | None
    every_seconds: float | None
    _writer: CheckpointWriter | None = field(default=None, init=False)
    _last_time: float = field(default_factory=time.monotonic, init=False)
    _last: State | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.store is not None:
            self._writer = CheckpointWriter(self.store, keep=self.keep)

    @property
    def saved_step(self) -> int | None:
        """The newest step that is safe in the store; known on rank 0."""
        return self._writer.saved_step if self._writer else None

    def due(self, step: int) -> bool:
        """Whether step `step` should be saved. Time is judged on rank 0 alone, so that ranks cannot disagree."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if self._writer is None or self._writer.busy or self.every_seconds is None:
            return False
        return time.monotonic() - self._last_time >= self.every_seconds

    def save(self, state: State, weights: Weights) -> None:
        """Collective: hand the state to the background writer, once. Raises what went wrong in the save before."""
        self._last_time = time.monotonic()
        if self._last == state:
            return
        self._last = state
        tensors = weights.tensors()
        if self._writer is not None:
            snapshot = Snapshot(tensors, state.to_json())
            self._writer.submit(state.step, snapshot, best_step=state.best.step if state.best else None)

    def wait(self) -> None:
        """Until what was handed over is safe."""
        if self._writer is not None:
            self._writer.wait()

    def resume(self, weights: Weights) -> State:
        """Collective: the newest whole checkpoint into `weights`, or a fresh state where there is none."""
        snapshot = None
        if self.store is not None and (checkpoint := self.store.latest()):
            snapshot = load(self.store, checkpoint)
        found = self.strategy.broadcast_json(dict(snapshot.state) if snapshot else None)
        state = State() if found is None else State.model_validate(found, strict=False)
        weights.restore(snapshot.tensors if snapshot else None, steps=state.step - state.left_out)
        if found is None:
            return state
        self._last = state
        _log.info("continuing after step %d", state.step)
        return state

    def restore_best(self, state: State, weights: Weights) -> None:
        """Collective: the weights of the best validation, if they are not the present ones."""
        if state.best is None or state.best.step == state.step:
            return
        self.wait()
        best = load(self.store, self.store.get(state.best.step)).tensors if self.store is not None else None
        weights.restore_weights(best)

    def clear(self) -> None:
        """Nothing is needed any more: the artifact is committed."""
        self.wait()
        if self.store is not None:
            self.store.clear()
