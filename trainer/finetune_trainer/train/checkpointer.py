"""Checkpoints as a gang sees them. Where all ranks have the same weights, rank 0 writes and reads, and broadcasts it.
Where each has its part of them, each writes its part, and reads it again.

Reading is collective: all ranks agree on what the newest whole checkpoint is, and continue from the same bytes.
"""

from __future__ import annotations

import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from finetune_api import durations, names
from finetune_api.plan import RunPlan
from finetune_trainer.parallel.base import Gang, Weights
from finetune_trainer.store.checkpoints import Broken, CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.opening import open_folder

from .checkpoint import CheckpointWriter, Snapshot, load
from .checkpoint_reader import CheckpointReader
from .state import Best, State

_log = logging.getLogger(__name__)
_ASK_SECONDS = 1.0


@dataclass
class Checkpointer:
    strategy: Gang
    store: CheckpointStore
    keep: int
    every_steps: int | None
    every_seconds: float | None
    _writer: CheckpointWriter = field(init=False)
    _in_parts: bool = field(default=False, init=False)
    _last_time: float = field(default_factory=time.monotonic, init=False)
    _last: State | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._writer = CheckpointWriter(self.store, keep=self.keep)

    @classmethod
    def of(cls, plan: RunPlan, gang: Gang, output: Folder) -> Checkpointer:
        every = plan.spec.checkpoint.every
        return cls(
            strategy=gang,
            store=_store_of(plan, output),
            keep=plan.spec.checkpoint.keep,
            every_steps=every if isinstance(every, int) else None,
            every_seconds=None if isinstance(every, int) else durations.seconds(every),
        )

    @property
    def saved_step(self) -> int | None:
        """The newest step that is safe in the store; known on rank 0."""
        return self._writer.saved_step

    @property
    def notes(self) -> CheckpointStore | None:
        """Where rank 0 keeps what a run decides; None elsewhere."""
        return self.store if self.strategy.place.first else None

    def due(self, step: int) -> bool:
        """Whether step `step` should be saved. Time is judged on rank 0 alone, so that ranks cannot disagree."""
        if self.every_steps is not None:
            return step % self.every_steps == 0
        if not self.strategy.place.first or self._writer.busy or self.every_seconds is None:
            return False
        return time.monotonic() - self._last_time >= self.every_seconds

    def save(self, state: State, weights: Weights) -> None:
        """Collective: hand the state to the background writers, once. Raises what went wrong in the save before."""
        self._last_time = time.monotonic()
        if self._last == state:
            return
        self._last = state
        tensors = weights.tensors()
        self._in_parts = weights.parts > 1
        self._settle()  # nobody stores anything while rank 0 prunes after the save before
        save = self._told(secrets.token_hex(8)) if self._in_parts else ""
        part = self.strategy.place.rank
        if part < weights.parts:
            snapshot = Snapshot(tensors, state.to_json(), part, weights.parts)
            best = state.best.step if state.best else None
            self._writer.submit(state.step, snapshot, best_step=best, save=save)

    def wait(self) -> None:
        """Collective: until what was handed over is safe, and no other save is near. Raises what went wrong."""
        self._settle()
        self._writer.free()

    def resume(self, weights: Weights) -> State:
        """Collective: the newest whole checkpoint into `weights`, or a fresh state where there is none."""
        saved = self._newest(weights)
        found = self._told(dict(saved.state) if saved else None)
        state = State() if found is None else State.model_validate(found, strict=False)
        weights.restore(saved, steps=state.step - state.left_out)
        if found is None:
            return state
        self._last = state
        _log.info("continuing after step %d", state.step)
        return state

    def restore_best(self, state: State, weights: Weights) -> State:
        """Collective: the weights of the best validation, if they are not the present ones. Where their checkpoint is
        damaged, those of the next best, and the state says so. Broken where none are whole."""
        if state.best is None or state.best.step == state.step:
            return state
        self.wait()
        if not (lost := self._weights_of(state.best.step, weights)):
            return state
        there = {*self._told(self.store.steps() if self.strategy.place.first else None), state.step}
        for point in sorted(state.validation, key=lambda point: point.scores.loss):
            if point.step == state.best.step or point.step not in there:
                continue
            if point.step == state.step or not self._weights_of(point.step, weights):
                best = Best(step=point.step, loss=point.scores.loss)
                return state.update(best=best, passed_over=_lost(state.best, lost, best))
        raise Broken(lost)

    def clear(self) -> None:
        """Removes all checkpoints; called on rank 0, once the artifact is committed."""
        self._writer.wait()
        self.store.clear()

    def _settle(self) -> None:
        """Collective: until no save is under way. Raises what went wrong in it."""
        if not self._in_parts:
            self._writer.wait()
            return
        # Ranks that wait for each other's parts keep asking, so that the end of one is noticed.
        while self.strategy.sum_counters([not self._writer.done(within=_ASK_SECONDS)])[0]:
            pass

    def _weights_of(self, step: int, weights: Weights) -> str:
        """Collective: the weights of a checkpoint, or why they cannot be had."""
        saved: Snapshot | CheckpointReader | None = None
        fault = ""
        try:
            if weights.parts > 1:
                saved = self._whole(step)
            elif self.strategy.place.first:
                saved = load(self.store, self.store.get(step))
        except Broken as error:
            fault = error.message
        told: str = self._told(fault)
        if not told:
            weights.restore_weights(saved)
        return told

    def _newest(self, weights: Weights) -> Snapshot | CheckpointReader | None:
        """Collective: what each rank reads of the newest checkpoint that is whole."""
        first = self.strategy.place.first
        if weights.parts == 1:
            checkpoint = self.store.latest() if first else None
            return load(self.store, checkpoint) if checkpoint else None
        for step in reversed(self._told(self.store.steps() if first else None)):
            try:
                return self._whole(step)
            except Broken as error:
                self.store.pass_over(step, error.message)
        return None

    def _whole(self, step: int) -> CheckpointReader:
        """Collective: every rank reads its share of the bytes. Broken on all of them if it is on one."""
        place, fault = self.strategy.place, None
        try:
            checkpoint = self.store.get(step)
            self.store.check(checkpoint, slice(place.rank, None, place.world_size))
        except Broken as error:
            fault = error
        if self.strategy.sum_counters([fault is not None])[0]:
            raise fault or Broken("another rank has found a fault")
        return CheckpointReader(self.store, checkpoint)

    def _told(self, value: Any) -> Any:
        """Collective: rank 0's."""
        return self.strategy.broadcast_json(value)


def _lost(first: Best, why: str, best: Best) -> str:
    return (
        f"the best weights, of step {first.step} (validation loss {first.loss:.4f}), are lost: {why}; "
        f"the artifact has those of step {best.step} ({best.loss:.4f})"
    )


def _store_of(plan: RunPlan, output: Folder) -> CheckpointStore:
    """This run's own, or that of the rung that it publishes."""
    if plan.publishes is None:
        return CheckpointStore(output, plan.job)
    folder = open_folder(plan.publishes.uri, prefix=names.PREFIX_OUTPUT)
    return CheckpointStore(folder, plan.job.model_copy(update={"uid": plan.publishes.uid}))
