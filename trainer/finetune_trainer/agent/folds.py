"""Cross-fitting of a rung: it trains again without each part of the training rows, and is measured on that part.

Each run is committed in a folder of its own below the rung's, with the records of its part. A run that was killed reads
them again: what is committed does not run again, and the one that was interrupted resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.failures import TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.plan import Fold, Trial
from finetune_trainer.agent.race import RunOne
from finetune_trainer.ladder.derived import of_fold
from finetune_trainer.ladder.evidence import read_fold
from finetune_trainer.store.folder import Folder
from finetune_trainer.transfer.records import DataSet, pooled


@dataclass(frozen=True, kw_only=True)
class CrossFitting:
    """Of one rung."""

    job: FineTuneJob
    """Of the rung."""
    count: int
    """Folds."""
    factor: float
    """Multiple of the default learning rate that the rung has."""
    examples: int
    """In the prompt of the base model; 0: that is not measured."""
    open: Callable[[str], Folder]
    run_one: RunOne
    say: Callable[[str], None]

    def to_the_end(self, *, rung: str, tick: Callable[[], None]) -> TerminationMessage:
        """Of the run that failed, or of the last one."""
        words = TerminationMessage()
        for index in range(self.count):
            if self._measured(index) is not None:
                continue
            self.say(f"rung {rung}: fold {index + 1} of {self.count}, trained without its rows and measured on them")
            trial = Trial(
                factor=self.factor, fold=Fold(index=index, of=self.count), few_shot=self.examples
            )  # fmt: skip
            _, words = self.run_one(self._run(index), rung=rung, trial=trial, tick=tick)
            if words.failure_class is not None:
                return words
        return words

    def rows(self) -> DataSet | None:
        """Of all folds; None unless all are committed."""
        found = [self._measured(index) for index in range(self.count)]
        return None if None in found else pooled([each for each in found if each is not None])

    def _measured(self, index: int) -> DataSet | None:
        run = self._run(index)
        return read_fold(self.open(run.spec.output.uri), uid=run.metadata.uid)

    def _run(self, index: int) -> FineTuneJob:
        return of_fold(self.job, index, self.count)
