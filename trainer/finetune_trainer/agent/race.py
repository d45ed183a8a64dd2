"""The learning rates of a rung, run one leg after the other: see ladder.race.

What a leg has found is a note in the store, next to the checkpoint that it stopped with. A run that was killed reads
the notes again: legs that are noted do not run again, and the one that was interrupted resumes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune_api.failures import FailureClass, FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.plan import JobIdentity, Trial
from finetune_trainer.ladder.derived import of_candidate
from finetune_trainer.ladder.race import MARKS, Leg, next_leg
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder

RunOne = Callable[..., tuple[FineTuneJob, TerminationMessage]]
"""(job, rung=…, publishes=…, trial=…, tick=…): runs it to the end, and returns it with its status."""


@dataclass(frozen=True, kw_only=True)
class Race:
    """Of one rung."""

    job: FineTuneJob
    """Of the rung, at its default rate."""
    factors: Sequence[float]
    examples: int
    """In the prompt of the base model; 0: that is not measured."""
    folder: Folder
    """The rung's output."""
    run_one: RunOne
    say: Callable[[str], None]

    def to_the_end(self, *, rung: str, tick: Callable[[], None]) -> tuple[FineTuneJob, TerminationMessage]:
        """The run that has committed the rung, or the failure that ended the race. LossNonFinite if all diverged."""
        while (leg := next_leg(self.factors, losses := self.losses())) is not None:
            factor = self.factors[leg.candidate]
            candidate = of_candidate(self.job, factor)
            self.say(f"rung {rung}: {factor:g} times the default rate, {self._how_far(leg, losses)}")
            trial = Trial(factor=factor, until=leg.until, few_shot=self.examples)
            ended, words = self.run_one(candidate, rung=rung, trial=trial, tick=tick)
            if words.failure_class is FailureClass.NonFinite:
                self.say(f"rung {rung}: {factor:g} times the default rate diverged")
                self._store(candidate).note(trial.note, {"diverged": True})
            elif words.failure_class is not None or leg.mark is None:
                return ended, words
            elif (leg.candidate, leg.mark) not in self.losses():
                message = f"rung {rung} stopped at {leg.until:.0%} of its steps without noting its loss"
                raise FinetuneError(Reason.UnexpectedError, message)
        rates = ", ".join(f"{factor:g}" for factor in self.factors)
        message = f"rung {rung} diverged at all learning rates ({rates} times the default)"
        raise FinetuneError(Reason.LossNonFinite, message, "Set lower multiples in ladder.learningRates.")

    def losses(self) -> dict[tuple[int, int], float]:
        """What is noted. Without validation rows no loss is known: then all are equal, and the default rate wins."""
        found = {}
        for place, factor in enumerate(self.factors):
            store = self._store(of_candidate(self.job, factor))
            for mark, until in enumerate((*MARKS, None)):
                if (note := store.noted(Trial(until=until).note)) is not None:
                    found[place, mark] = math.inf if note.get("diverged") else float(note.get("loss") or 0.0)
        return found

    def _store(self, candidate: FineTuneJob) -> CheckpointStore:
        return CheckpointStore(self.folder, identity_of(candidate))

    def _how_far(self, leg: Leg, losses: dict[tuple[int, int], float]) -> str:
        so_far = [loss for (place, _), loss in sorted(losses.items()) if place == leg.candidate]
        noted = f", validation loss so far {so_far[-1]:.4g}" if so_far else ""
        return ("to the end" if leg.until is None else f"up to {leg.until:.0%} of the steps") + noted


def identity_of(job: FineTuneJob) -> JobIdentity:
    return JobIdentity(namespace=job.metadata.namespace, name=job.metadata.name, uid=job.metadata.uid)
