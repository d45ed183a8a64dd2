"""Training, the whole of it.

A step takes the rows that its number names, shares them out over the ranks, and computes them in as many micro-batches
as memory asks for. What is accumulated and summed over ranks are gradients of *sums* of nats; the division by the
number of trained tokens of the whole step comes last. So neither the size of a micro-batch nor the number of ranks
changes the result. The numbers that ranks must agree on (losses, token counts, who was asked to stop, whether a
checkpoint is due) ride on one small all-reduce a step.

A run is resumable to the bit: what it needs is `State` and the tensors of `Weights`. Rows and random numbers are
functions of the seed and the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.status import Scores
from finetune_trainer.data.corpus import Corpus, Numbers, Tokens
from finetune_trainer.data.order import Mixture, share, step_rows, steps_per_epoch
from finetune_trainer.data.pack import idle
from finetune_trainer.parallel.base import Strategy, Weights
from finetune_trainer.transfer.evaluate import Layout, Stopped, evaluate

from .keeper import Keeper
from .model import LanguageModel
from .optimizer import learning_rate
from .reporter import Reporter
from .state import CURVE_POINTS, State, Step


@dataclass(frozen=True)
class Course:
    """The constants of a run: from the manifest, with the defaults worked out."""

    total_steps: int
    batch_size: int
    seed: int
    peak_rate: float
    warmup_ratio: float
    schedule: Literal["cosine", "linear", "constant"]
    max_grad_norm: float
    evaluate_every: int
    patience: int | None
    """Evaluations without improvement before training stops; None: never."""
    min_delta: float


class Prompt(Protocol):
    """A learned input: tokens that belong in front of every row, or a prefix that has none."""

    @property
    def ids(self) -> Tokens: ...

    def off(self) -> AbstractContextManager[None]:
        """Inside, the network is the base model."""


Varied = Callable[[Numbers, int], tuple[Corpus, Numbers]]
"""(rows of `train`, epoch) to a corpus of their variants, and where they are in it."""


@dataclass(frozen=True)
class Trainer:
    """Everything that stays the same from step to step."""

    course: Course
    model: LanguageModel
    weights: Weights
    train: Corpus
    """With the prompt in front of its rows, where there is one; every other corpus comes without."""
    validation: Corpus | None
    layout: Layout
    strategy: Strategy
    keeper: Keeper
    reporter: Reporter
    stop_requested: Callable[[], bool]
    prompt: Prompt | None = None
    mixture: Mixture | None = None
    """How often an epoch sees each row of `train`; None: once."""
    varied: Varied | None = None
    skipped_step: int | None = None
    """The step, counted from 0, that learns nothing: an attempt before found its batch not finite."""

    def run(self, state: State) -> State:
        """From `state` to the last step, or to the step at which validation has stopped improving.

        Collective. Interrupted once a checkpoint is safe, if any rank was asked to stop; LossNonFinite names the step.
        """
        self.model.network.train()
        asked = Asked()
        while True:
            best_before = state.best
            if self._validation_due(state) and not asked.stop:
                state, stopped = self._validate(state)
                asked = Asked(stop=stopped, save=asked.save)
            ends = state.step >= self.course.total_steps or bool(state.stopped_early)
            if asked.stop:
                self._interrupt(state)
            if asked.save or ends or state.best != best_before:
                self.keeper.save(state, self.weights)
            if ends:
                return state
            self.reporter.checkpoint_step = self.keeper.saved_step
            state, asked = self._step(state)

    def measure(self, corpus: Corpus) -> Scores:
        """Of the model as it is now. Collective; Stopped when a rank was asked to stop, LossNonFinite."""
        scores = self._measure(corpus.after(self.prompt.ids) if self.prompt else corpus)
        if not math.isfinite(scores.loss):
            raise FinetuneError(Reason.LossNonFinite, "the tuned model's loss on held-out rows is not finite")
        return scores

    def measure_base(self, corpus: Corpus) -> Scores:
        """The same of the untouched model, before step 1: methods that begin as the base model, or without a prompt.
        ModelUnsupported where its loss is not finite: no attempt could change that."""
        with self.prompt.off() if self.prompt else nullcontext():
            scores = self._measure(corpus)
        if not math.isfinite(scores.loss):
            raise FinetuneError(
                Reason.ModelUnsupported,
                "the untouched model's loss on held-out rows is not finite: weights are damaged, or too large for bf16",
                "Set training.precision: float32, or use other weights.",
            )
        return scores

    def _measure(self, corpus: Corpus) -> Scores:
        self.model.network.eval()
        try:
            with torch.no_grad():
                return evaluate(self.model, corpus, layout=self.layout, strategy=self.strategy, going_on=self._going_on)
        finally:
            self.model.network.train()

    def _step(self, state: State) -> tuple[State, Asked]:
        started = time.monotonic()
        course, step = self.course, state.step
        rows = step_rows(self.mixture or len(self.train), batch_size=course.batch_size, seed=course.seed, step=step)
        place = self.strategy.place
        mine = share(rows, self.train.lengths[rows], rank=place.rank, world_size=place.world_size)
        skipped = step == self.skipped_step
        nats, tokens = (0.0, 0) if skipped else self._accumulate(mine, step)

        stop, due = self.stop_requested(), self.keeper.due(step + 1)
        summed = self.strategy.sum_counters([nats, tokens, stop, due])
        nats, tokens, asked = summed[0], int(summed[1]), Asked(stop=summed[2] > 0, save=summed[3] > 0)
        if skipped:
            self.reporter.say(f"step {step + 1} is left out: its batch was not finite before")
            return state.update(step=step + 1, left_out=state.left_out + 1), asked
        if not math.isfinite(nats):
            raise self._non_finite("loss", step, rows)
        rate = learning_rate(
            step,
            peak=course.peak_rate,
            total_steps=course.total_steps,
            warmup_ratio=course.warmup_ratio,
            schedule=course.schedule,
        )
        norm = self.weights.step(rate, divisor=max(1, tokens), max_norm=course.max_grad_norm)
        if not math.isfinite(norm):
            raise self._non_finite("gradient", step, rows)

        done = Step(
            nats=nats,
            tokens=tokens,
            processed=int(self.train.lengths[rows].sum()),
            rate=rate,
            norm=norm,
            seconds=time.monotonic() - started,
        )
        state = self._record(state, done)
        self.reporter.step(state, done)
        return state, asked

    def _accumulate(self, rows: Numbers, step: int) -> tuple[float, int]:
        """(nats, trained tokens) of this rank's rows; their gradients are added to those in `weights`."""
        total = torch.zeros((), dtype=torch.float64, device=self.model.device)
        tokens = 0
        batches = self.strategy.in_step(self.layout.batches(*self._as_seen(rows, step)), idle())
        for index, batch in enumerate(batches):
            self._seed(step, index)
            nats = self.model.nats(batch)
            self.weights.backward(nats, last=index == len(batches) - 1)
            total += nats.detach()
            tokens += batch.target_count
            self.reporter.alive()
        return float(total), tokens

    def _as_seen(self, rows: Numbers, step: int) -> tuple[Corpus, Numbers]:
        """The rows with what augmentation makes of them in this epoch."""
        if self.varied is None:
            return self.train, rows
        return self.varied(
            rows, step // steps_per_epoch(self.mixture or len(self.train), batch_size=self.course.batch_size)
        )

    def _seed(self, step: int, index: int) -> None:
        """Dropout of a micro-batch, from where it stands and not from what ran before."""
        place = [self.course.seed, step, self.strategy.place.rank, index]
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))

    def _record(self, state: State, done: Step) -> State:
        step = state.step + 1
        logged = step % max(1, self.course.total_steps // CURVE_POINTS) == 0
        return state.update(
            step=step,
            trained_tokens=state.trained_tokens + done.tokens,
            train_seconds=state.train_seconds + done.seconds,
            curve=(*state.curve, done.point(step)) if logged else state.curve,
        )

    def _validation_due(self, state: State) -> bool:
        """Also after a resume: a run that was stopped at such a step has yet to measure it."""
        at_a_mark = state.step % self.course.evaluate_every == 0 or state.step == self.course.total_steps
        measured = bool(state.validation) and state.validation[-1].step == state.step
        return self.validation is not None and state.step > 0 and at_a_mark and not measured

    def _validate(self, state: State) -> tuple[State, bool]:
        """(the state with a validation more, whether a rank was asked to stop instead)."""
        assert self.validation is not None
        self.reporter.phase("evaluating")
        try:
            scores = self.measure(self.validation)
        except Stopped:
            return state, True
        state = state.evaluated(scores, patience=self.course.patience, min_delta=self.course.min_delta)
        self.reporter.validated(state)
        self.reporter.phase("training")
        return state, False

    def _going_on(self) -> bool:
        self.reporter.alive()
        return not self.stop_requested()

    def _interrupt(self, state: State) -> None:
        self.reporter.phase("saving", f"stopping: saving a checkpoint of step {state.step}")
        self.keeper.save(state.ended(f"interrupted after step {state.step}"), self.weights)
        self.keeper.wait()
        # None must end before all have saved: torchrun ends a node's processes with the first of them.
        self.strategy.barrier()
        raise FinetuneError(
            Reason.Interrupted, f"stopped on request after step {state.step} of {self.course.total_steps}"
        )

    def _non_finite(self, what: str, step: int, rows: Numbers) -> FinetuneError:
        shown = ", ".join(str(row) for row in sorted(rows.tolist())[:16]) + (", …" if len(rows) > 16 else "")
        return FinetuneError(
            Reason.LossNonFinite, f"the {what} of step {step + 1} is not finite; its training rows: {shown}"
        )


@dataclass(frozen=True)
class Asked:
    """What some rank wants after a step, and so what all do."""

    stop: bool = False
    save: bool = False
