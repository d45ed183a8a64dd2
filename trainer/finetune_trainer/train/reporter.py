"""What a run reports to its agent and its log: heartbeats of every rank, progress and log lines of rank 0."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from finetune_api.measurements import Evaluation
from finetune_api.plan import RunPlan
from finetune_api.status import Artifact, Candidate, Progress, ResolvedPlan
from finetune_trainer.parallel.base import Place
from finetune_trainer.rundir import RunDir, TrainerReport, now
from finetune_trainer.trackers.group import Trackers

from .state import State, Step

_BEAT_SECONDS = 1.0
_LINES = 100
"""About so many lines of steps in a run's log."""


@dataclass
class Reporter:
    run_dir: RunDir
    plan: RunPlan
    place: Place
    resolved: ResolvedPlan = field(default_factory=ResolvedPlan)
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None
    candidate: Candidate | None = None
    steps_per_epoch: int = 1
    checkpoint_step: int | None = None
    trackers: Trackers = field(default_factory=Trackers)
    _report: TrainerReport | None = None
    _phase: str = "loading"
    _step: int = 0
    _beaten: float = 0.0
    _seconds_per_step: float | None = None

    def say(self, text: str) -> None:
        """A line for a person; of rank 0 alone."""
        if self.place.first:
            print(text, flush=True)

    def phase(self, phase: str, message: str = "") -> None:
        self._phase = phase
        self._beat(force=True)
        self._write(message=message, force=True)
        if message:
            self.say(message)

    def alive(self) -> None:
        """A sign of life from inside long work; cheap enough for every micro-batch."""
        self._beat(force=False)

    def resumed(self, state: State) -> None:
        self._step = state.step
        self._progress(state, None)

    def step(self, state: State, step: Step) -> None:
        self._step = state.step
        before = self._seconds_per_step
        self._seconds_per_step = step.seconds if before is None else 0.9 * before + 0.1 * step.seconds
        self._beat(force=True)
        self._progress(state, step)
        self.trackers.progress(state.curve, state.validation)
        total = self.resolved.total_steps or 1
        if state.step % max(1, total // _LINES) == 0 or state.step == total:
            self.say(
                f"step {state.step}/{total} loss {step.loss:.4f} lr {step.rate:.2e} norm {step.norm:.2f} "
                f"{step.tokens_per_second:.0f} tokens/s"
            )

    def validated(self, state: State) -> None:
        self._progress(state, None)
        self.trackers.progress(state.curve, state.validation)
        scores = state.validation[-1].scores
        accuracy = "" if scores.accuracy is None else f" accuracy {scores.accuracy:.3f}"
        best = " (best so far)" if state.best and state.best.step == state.step else ""
        self.say(f"step {state.step} validation loss {scores.loss:.4f}{accuracy}{best}")

    def _progress(self, state: State, step: Step | None) -> None:
        total = self.resolved.total_steps
        last = self._report or TrainerReport(attempt=self.plan.attempt, phase=self._phase)
        left = (total or state.step) - state.step
        progress = Progress(
            step=state.step,
            total_steps=total,
            percent=int(100 * state.step / total) if total else None,
            eta_seconds=round(left * self._seconds_per_step) if self._seconds_per_step is not None else None,
            loss=step.loss if step else last.progress.loss,
            eval_loss=state.validation[-1].scores.loss if state.validation else None,
            tokens_per_second=round(step.tokens_per_second, 1) if step else last.progress.tokens_per_second,
            last_checkpoint_time=last.progress.last_checkpoint_time,
            last_update_time=now(),
        )
        self._report = last.model_copy(
            update={
                "progress": progress,
                "epoch": state.step / self.steps_per_epoch,
                "trained_tokens": state.trained_tokens,
                "learning_rate": step.rate if step else last.learning_rate,
                "gradient_norm": step.norm if step else last.gradient_norm,
                "last_step_time": time.time() if step else last.last_step_time,
            }
        )
        self._write(force=False)

    def _write(self, *, message: str = "", force: bool) -> None:
        if not self.place.first:
            return
        report = self._report or TrainerReport(attempt=self.plan.attempt, phase=self._phase)
        saved = self.checkpoint_step
        update = {
            "phase": self._phase,
            "plan": self.resolved,
            "evaluation": self.evaluation,
            "artifact": self.artifact,
            "candidate": self.candidate,
            "message": message or report.message,
        }
        if saved is not None and saved != report.last_checkpoint_step:
            done = report.progress.model_copy(update={"last_checkpoint_time": now()})
            update |= {"last_checkpoint_step": saved, "last_checkpoint_time": time.time(), "progress": done}
        self._report = report.model_copy(update=update)
        if force or time.monotonic() - self._written >= _BEAT_SECONDS:
            self._written = time.monotonic()
            self.run_dir.write_report(self._report)

    _written: float = 0.0

    def _beat(self, *, force: bool) -> None:
        if force or time.monotonic() - self._beaten >= _BEAT_SECONDS:
            self._beaten = time.monotonic()
            self.run_dir.beat(self.place.rank, self._phase, self._step)
