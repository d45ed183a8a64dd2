"""A job whose guard is violated trains again, as guards.maxAttempts allows, in the pod that it has.

    <output>/.finetune/<uid>/candidate/                              the first run's artifact, which a guard kept back
    <output>/.finetune/<uid>/remedies/<settings>/                    of each run after it: checkpoints, and the artifact
    <output>/.finetune/<uid>/remedies/<settings>/.finetune/…/        or the candidate, if a guard kept it back, too

The store remembers everything. The next attempt after an interruption begins with the first run again: a run that has
ended says so without training, and the one that was interrupted resumes from its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.measurements import Evaluation, RemedyRun
from finetune_api.plan import Remedy, RunPlan, Trial
from finetune_trainer.agent.climb import PATIENCE_SECONDS, gives_up
from finetune_trainer.agent.turns import job_of
from finetune_trainer.agent.verdict import say
from finetune_trainer.ladder.remedies import Step, of_step, walk
from finetune_trainer.rundir import now
from finetune_trainer.store import candidate
from finetune_trainer.store.opening import open_folder

_KEPT_BACK = (Reason.GuardViolated, Reason.GuardInconclusive)


def remedied(
    plan: RunPlan,
    words: TerminationMessage,
    *,
    run: Callable[[RunPlan], TerminationMessage],
    tell: Callable[[str], None],
) -> TerminationMessage:
    """`words`: of the first run. Returns those of the run that is published, of the last one that a guard kept back, or
    of a failure after which the job is tried again. `run` runs a plan to its end."""
    return _Walking(plan=plan, run=run, tell=tell).on_from(words)


@dataclass(frozen=True, kw_only=True)
class _Walking:
    plan: RunPlan
    run: Callable[[RunPlan], TerminationMessage]
    tell: Callable[[str], None]

    def on_from(self, last: TerminationMessage) -> TerminationMessage:
        for step in self._steps(last):
            if last.reason is not Reason.GuardViolated:
                break
            self.tell(f"{last.message}; training again with {step.settings}")
            made = of_step(job_of(self.plan), step)  # valid: the walk has tried
            words = self.run(self._plan_of(made, step, _runs(last)))
            if words.failure_class is None:
                return self._published(made, words)
            if words.reason in _KEPT_BACK:
                last = words
            elif gives_up(self.plan, words):
                self.tell(f"the run with {step.settings} failed: {words.reason}: {words.message}")
                last = _with_failed(last, step, words)
            else:
                return words
        return last

    def _steps(self, first: TerminationMessage) -> tuple[Step, ...]:
        """None where the job has other nodes, which would not know of them."""
        if first.reason is not Reason.GuardViolated or self.plan.nodes > 1:
            return ()
        found = walk(self.plan.spec)
        for each in found.skipped:
            self.tell(f"no run with {each.name}: {each.reason}")
        return found.steps

    def _plan_of(self, made: FineTuneJob, step: Step, before: tuple[RemedyRun, ...]) -> RunPlan:
        changes = {
            "job": self.plan.job.model_copy(update={"uid": made.metadata.uid}),
            "spec": made.spec,
            "trial": None if step.factor == 1 else Trial(factor=step.factor),
            "remedy": Remedy(name=step.name, settings=step.settings, before=before),
        }
        return self.plan.model_copy(update=changes)

    def _published(self, made: FineTuneJob, words: TerminationMessage) -> TerminationMessage:
        """The artifact of a step becomes that of the job. If that fails, no other step follows."""
        overwrite = self.plan.spec.output.overwrite
        try:
            step, output = (
                open_folder(spec.output.uri, prefix=names.PREFIX_OUTPUT, patience=PATIENCE_SECONDS)
                for spec in (made.spec, self.plan.spec)
            )
            artifact = candidate.publish(step, output, overwrite=overwrite, run=self.plan.job)
        except FinetuneError as error:
            return say(error.reason, error.message, hint=error.hint, time=now())
        message = f"artifact committed to {artifact.uri}"
        return words.model_copy(update={"artifact": artifact, "message": message})


def _runs(words: TerminationMessage) -> tuple[RemedyRun, ...]:
    return words.evaluation.remedies if words.evaluation is not None else ()


def _with_failed(last: TerminationMessage, step: Step, words: TerminationMessage) -> TerminationMessage:
    failed = RemedyRun(
        name=step.name, settings=step.settings, outcome="failed", reason=f"{words.reason}: {words.message}"[:256]
    )
    found = last.evaluation or Evaluation()
    evaluation = found.model_copy(update={"remedies": (*found.remedies, failed)})
    return last.model_copy(update={"evaluation": evaluation})
