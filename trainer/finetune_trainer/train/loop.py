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
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.data.order import Mixture, step_rows, steps_per_epoch
from finetune_trainer.data.pack import idle
from finetune_trainer.methods.base import HasPrompt
from finetune_trainer.parallel.base import Strategy, Weights
from finetune_trainer.random_streams import DROPOUT, NEWEST
from finetune_trainer.regularization.base import Piece, Regularization
from finetune_trainer.regularization.kl_to_base import KlToBase
from finetune_trainer.transfer.evaluate import Layout, Measured, Stopped, evaluate

from .checkpointer import Checkpointer
from .model import LanguageModel
from .optimizer import learning_rate
from .reporter import Reporter
from .state import CURVE_POINTS, State, Step
from .sums import Accumulator, Sums


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
    checkpointer: Checkpointer
    reporter: Reporter
    stop_requested: Callable[[], bool]
    prompt: HasPrompt | None = None
    mixture: Mixture | None = None
    """How often an epoch sees each row of `train`; None: once."""
    varied: Varied | None = None
    regularization: Regularization = field(default_factory=Regularization)
    """What steps have besides the loss of the training rows."""
    pause: int | None = None
    """Stop after this step, as at the end."""
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
            last = self.course.total_steps if self.pause is None else self.pause
            ends = state.step >= last or bool(state.stopped_early)
            if asked.stop:
                self._interrupt(state)
            if asked.save or ends or state.best != best_before:
                self.checkpointer.save(state, self.weights)
            if ends:
                return state
            self.reporter.checkpoint_step = self.checkpointer.saved_step
            state, asked = self._step(state)

    def measure(self, corpus: Corpus) -> Measured:
        """Of the model as it is now. Collective; Stopped when a rank was asked to stop, LossNonFinite."""
        found = self._measure(corpus.after(self.prompt.ids) if self.prompt else corpus)
        if not math.isfinite(found.scores.loss):
            raise FinetuneError(Reason.LossNonFinite, "the tuned model's loss on held-out rows is not finite")
        return found

    def measure_base(self, corpus: Corpus) -> Measured:
        """The same of the untouched model, before step 1: methods that begin as the base model, or without a prompt.
        ModelUnsupported where its loss is not finite: no attempt could change that."""
        with self.prompt.off() if self.prompt else nullcontext():
            found = self._measure(corpus)
        if not math.isfinite(found.scores.loss):
            raise FinetuneError(
                Reason.ModelUnsupported,
                "the untouched model's loss on held-out rows is not finite: weights are damaged, or too large for bf16",
                "Set training.precision: float32, or use other weights.",
            )
        return found

    def _measure(self, corpus: Corpus) -> Measured:
        self.model.network.eval()
        try:
            with torch.no_grad():
                return evaluate(self.model, corpus, layout=self.layout, strategy=self.strategy, going_on=self.going_on)
        finally:
            self.model.network.train()

    def _step(self, state: State) -> tuple[State, Asked]:
        started = time.monotonic()
        course, step = self.course, state.step
        rows = step_rows(self.mixture or len(self.train), batch_size=course.batch_size, seed=course.seed, step=step)
        mine, again = self.regularization.shared(rows, self.train, step, self.strategy.place)
        skipped = step == self.skipped_step
        sums = Sums() if skipped else self._accumulate(mine, again, step)

        stop, due, names = self.stop_requested(), self.checkpointer.due(step + 1), self.regularization.names
        stops, dues, *summed = self.strategy.sum_counters([stop, due, *sums.flat(names)])
        sums, asked = Sums.of(summed, names), Asked(stop=stops > 0, save=dues > 0)
        if skipped:
            self.reporter.say(f"step {step + 1} is left out: its batch was not finite before")
            return state.update(step=step + 1, left_out=state.left_out + 1), asked
        if not math.isfinite(sums.total):
            raise self._non_finite("loss", step, rows)
        rate = learning_rate(
            step,
            peak=course.peak_rate,
            total_steps=course.total_steps,
            warmup_ratio=course.warmup_ratio,
            schedule=course.schedule,
        )
        divisor = max(1.0, sums.divisor)
        self.regularization.pull(divisor)
        norm = self.weights.step(rate, divisor=divisor, max_norm=course.max_grad_norm)
        if not math.isfinite(norm):
            raise self._non_finite("gradient", step, rows)

        done = Step(
            nats=sums.nats,
            tokens=sums.tokens,
            processed=int(self.train.lengths[rows].sum()) + self.regularization.processed(step),
            rate=rate,
            norm=norm,
            seconds=time.monotonic() - started,
            regularization=sums.means(),
        )
        state = self._record(state, done)
        self.reporter.step(state, done)
        return state, asked

    def _accumulate(self, rows: Numbers, again: Numbers, step: int) -> Sums:
        """Of this rank's rows, and of those that it replays; their gradients are added to those in `weights`."""
        found = Accumulator(self.regularization.names, self.model.device)
        pieces = self._pieces(rows, again, step)
        for index, piece in enumerate(pieces):
            kl, weight = self.regularization.divergence(piece), self.regularization.weight(piece)
            base = None if kl is None else self._base_outputs(piece, kl)
            self._seed(step, index)
            if kl is None or base is None:
                nats = self.model.nats(piece.batch)
                loss = nats if weight == 1 else nats * weight
            else:
                nats, divergence = self.model.nats_and_divergence(piece.batch, base, kl).unbind()
                loss = nats * weight + divergence * kl.weight
                found.add("klToBase", divergence, piece.batch.target_count)
            self.weights.backward(loss, last=index == len(pieces) - 1)
            found.add("replay" if piece.replayed else None, nats, piece.batch.target_count)
            found.divide_by(weight * piece.batch.target_count)
            self.reporter.alive()
        for penalty in self.regularization.penalties:
            found.add(penalty.name, penalty.value(), count=self.strategy.place.first)
        return found.sums()

    def _pieces(self, rows: Numbers, again: Numbers, step: int) -> list[Piece]:
        """Micro-batches of this rank's training rows, then of those it replays: where passes are collective all ranks
        have as many of each, since they may need other passes."""
        pieces = [Piece(batch) for batch in self.layout.batches(*self._as_seen(rows, step))]
        pieces = list(self.strategy.in_step(pieces, Piece(idle())))
        if (replay := self.regularization.replay) is not None:
            more = [Piece(batch, replayed=True) for batch in self.layout.batches(replay.corpus, again)]
            pieces += self.strategy.in_step(more, Piece(idle(), replayed=True))
        return pieces

    def _base_outputs(self, piece: Piece, kl: KlToBase) -> Tensor:
        """Of the base model, without dropout."""
        self.model.network.eval()
        try:
            with kl.as_base():
                return self.model.outputs(piece.batch)
        finally:
            self.model.network.train()

    def _as_seen(self, rows: Numbers, step: int) -> tuple[Corpus, Numbers]:
        """The rows with what augmentation makes of them in this epoch."""
        if self.varied is None:
            return self.train, rows
        return self.varied(
            rows, step // steps_per_epoch(self.mixture or len(self.train), batch_size=self.course.batch_size)
        )

    def _seed(self, step: int, index: int) -> None:
        """Dropout of a micro-batch, from where it stands and not from what ran before."""
        rank, generation = self.strategy.place.rank, self.mixture.streams if self.mixture else NEWEST
        torch.manual_seed(DROPOUT.number(self.course.seed, step, rank, index, generation=generation) >> 1)

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
            scores = self.measure(self.validation).scores
        except Stopped:
            return state, True
        state = state.evaluated(scores, patience=self.course.patience, min_delta=self.course.min_delta)
        self.reporter.validated(state)
        self.reporter.phase("training")
        return state, False

    def going_on(self) -> bool:
        """Whether this rank was not asked to stop; asking is a sign of life."""
        self.reporter.alive()
        return not self.stop_requested()

    def _interrupt(self, state: State) -> None:
        self.reporter.phase("saving", f"stopping: saving a checkpoint of step {state.step}")
        self.checkpointer.save(state.ended(f"interrupted after step {state.step}"), self.weights)
        self.checkpointer.wait()
        self.reporter.checkpoint_step = self.checkpointer.saved_step
        self.reporter.phase("saving", f"stopping: saved a checkpoint of step {state.step}")
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
    """What any rank requests after a step, and so what all do."""

    stop: bool = False
    save: bool = False
