"""`method.type: auto`: runs the rungs of the ladder one after the other, and publishes the best. `finetune run` and the
agent of a pod do it alike: see cli.run and climb.

    <output>/.finetune/<uid>/rungs/ladder.json    what each rung has cost so far, in GPU hours and money
    <output>/.finetune/<uid>/rungs/<method>/      the artifact of a rung, with its records and its checkpoints
    <output>/.finetune/<uid>/rungs/<method>/folds/<count>/<index>/     of cross-fitting: those of each fold

Decisions are functions of the records in the store. A run that was killed reads them again, continues the rung that was
interrupted from its checkpoint, and adds to the cost that was noted; no rung that is committed runs twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason, TerminationMessage, class_of, hint_of
from finetune_api.job import FineTuneJob
from finetune_api.ladder import LadderStatus, Price, unpriced
from finetune_api.methods import TRAITS
from finetune_api.plan import Publishes, Trial
from finetune_api.rung_pods import UnavailableRung
from finetune_api.status import FailureClass, FineTuneJobStatus, Phase
from finetune_trainer.agent.folds import CrossFitting
from finetune_trainer.agent.race import Race, RunOne, identity_of
from finetune_trainer.ladder import evidence, story
from finetune_trainer.ladder.climb import Climb, Done, Step
from finetune_trainer.ladder.climb import Run as RunRung
from finetune_trainer.ladder.derived import factor_of, folder_uri, of_best, of_rung, rung_uid, rung_uri
from finetune_trainer.ladder.evidence import Committed, FewShot, Finding
from finetune_trainer.ladder.ledger import Ledger
from finetune_trainer.ladder.rungs import BASE, Rung
from finetune_trainer.planning.forecast import Forecast
from finetune_trainer.rundir import now
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder, NotFound
from finetune_trainer.store.opening import open_folder

COSTS = "ladder.json"
NOTED_SECONDS = 10.0
"""How often the cost of a running rung is noted: as much may be forgotten when this program is killed."""

_MEMORY = (FailureClass.OutOfMemory,)
_MEMORY_REASONS = (Reason.InsufficientMemory, Reason.OutOfMemory)


@dataclass(kw_only=True)
class Costs:
    """What rungs have cost so far, and which of them ran out of memory; kept in the store."""

    folder: Folder
    price: Price | None = None
    """The present one."""
    hours: dict[str, float] = field(default_factory=dict)
    """GPU hours, by method."""
    money: dict[str, float] = field(default_factory=dict)
    """By method, each hour at the price that it had; empty without a price."""
    too_large: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Folder, price: Price | None = None) -> Costs:
        """Hours whose cost was not noted in the currency of the price have the present price."""
        try:
            told = json.loads(folder.read(COSTS))
        except NotFound:
            return cls(folder=folder, price=price)
        hours, money = dict(told["hours"]), {}
        if price is not None:
            noted = told.get("money", {}) if told.get("currency") == price.currency else {}
            money = {method: noted.get(method, spent * price.per_hour) for method, spent in hours.items()}
        return cls(folder=folder, price=price, hours=hours, money=money, too_large=list(told["tooLarge"]))

    def write(self) -> None:
        content: dict[str, Any] = {"hours": self.hours, "tooLarge": self.too_large}
        if self.price is not None:
            content |= {"money": self.money, "currency": self.price.currency}
        self.folder.put(COSTS, json.dumps(content, sort_keys=True).encode())

    @contextmanager
    def noting(self, method: str, *, processes: int) -> Iterator[Callable[[], None]]:
        """Adds the time spent inside to the cost of the rung; yields what has to be called now and then."""
        before, paid, began = self.hours.get(method, 0.0), self.money.get(method, 0.0), time.monotonic()
        noted = began

        def note() -> None:
            nonlocal noted
            noted = time.monotonic()
            spent = (noted - began) * processes / 3600
            self.hours[method] = before + spent
            if self.price is not None:
                self.money[method] = paid + spent * self.price.per_hour
            self.write()

        def tick() -> None:
            if time.monotonic() - noted >= NOTED_SECONDS:
                note()

        try:
            yield tick
        finally:
            note()


@dataclass(kw_only=True)
class LadderRun:
    """All rungs of one job, and the run that publishes the best of them."""

    job: FineTuneJob
    foresee: Callable[[], Forecast]
    run_one: RunOne
    say: Callable[[str], None]
    save: Callable[[FineTuneJob], None]
    """Called with the job whenever its status.ladder has changed."""
    final: Callable[[TerminationMessage], bool] = lambda _: True
    """Whether nothing else can be done about a run that ran out of memory."""
    price: Price | None = None
    """Of an hour of one process, where it is known."""
    patience: float = 0.0
    """Seconds to wait for a store that is unavailable."""
    elsewhere: Callable[[str], bool] = lambda _: False
    """Whether a rung needs other pods than these."""
    unavailable: UnavailableRung | None = None
    """A rung whose pods could not be had."""
    processes: int | None = None
    """Of the pods that run the rungs. Default: as many as a rung's manifest asks for."""
    known: dict[str, Committed] = field(default_factory=dict)
    findings: dict[str, Finding] = field(default_factory=dict)
    folds: int = 0
    """Of cross-fitting; see `rules.folds_of`."""

    def to_the_end(self) -> tuple[FineTuneJob, TerminationMessage]:
        """The job with its final status, and the termination message of the run that ended it."""
        ladder = self.job.spec.ladder
        if refused := unpriced(ladder.budget, self.price):
            raise FinetuneError(Reason.InvalidSpec, refused)
        foreseen = self.foresee()
        for rung in foreseen.choice.rungs:
            of_rung(self.job, rung.method)  # before anything is paid
        budget = Ledger.of(ladder.budget, self.price)
        climb = Climb.of(foreseen.choice, foreseen.estimates, min_gain=ladder.min_gain, ledger=budget)
        if self.unavailable is not None and self._decidable(self.unavailable.name) is None:
            why = f"{self.unavailable.reason}: {self.unavailable.message}"
            climb = replace(climb, unavailable={self.unavailable.name: why})
        costs = Costs.read(self._open(folder_uri(self.job.spec.output.uri, self.job.metadata.uid)), self.price)
        self.folds = foreseen.folds
        by = f"; decisions are cross-fitted in {self.folds} folds" if self.folds else ""
        self.say(f"ladder: {foreseen.choice.reason}; rungs: {', '.join(r.method for r in climb.rungs)}{by}")
        while isinstance(step := climb.next(), RunRung):
            climb = climb.started(step.rung)
            self._tell(foreseen, climb, step)
            if self._moves(step.rung.method, costs):
                return self.job, _moving(step.rung.method)
            done, words = self._rung(climb, step.rung, costs)
            if done is None:
                return self.job, words
            climb = climb.ended(done)
            if (finding := self.findings.get(step.rung.method)) is not None:
                climb = self._of_base(climb, finding)
                self.say(story.sentence(step.rung.method, finding))
        told = self._tell(foreseen, climb, step)
        self.say(f"ladder: {told.story}")
        return self._publish(climb, told)

    def _of_base(self, climb: Climb, finding: Finding) -> Climb:
        """With what the first rung that ran shows of the base model, also with examples in its prompt."""
        if len(self.findings) > 1:
            return climb
        if (shown := self._few_shot(climb)) is not None:
            self.say(story.prompting(shown))
        prompt = shown is not None and shown.found.reaches_target
        return replace(climb, base_reaches_target=finding.best_reaches_target, prompt_reaches_target=prompt)

    def _few_shot(self, climb: Climb) -> FewShot | None:
        ladder, first = self.job.spec.ladder, next(iter(self.known.values()), None)
        if first is None:
            return None
        return evidence.few_shot(
            first,
            self.known.get(climb.best),
            examples=ladder.few_shot,
            rungs=climb.comparisons,
            min_gain=ladder.min_gain,
            target=ladder.target,
        )

    @property
    def _examples(self) -> int:
        """For the prompt of the base model, in the runs of the first rung."""
        return 0 if self.known else self.job.spec.ladder.few_shot

    def _moves(self, method: str, costs: Costs) -> bool:
        """The rung has to run, and not here."""
        return self.elsewhere(method) and method not in costs.too_large and self._decidable(method) is None

    def _rung(self, climb: Climb, rung: Rung, costs: Costs) -> tuple[Done | None, TerminationMessage]:
        """Runs it unless it is committed; None with the failure if it ended otherwise than by running out of memory."""
        method, words = rung.method, TerminationMessage()
        committed = self._decidable(method)
        if committed is None and method not in costs.too_large:
            job = of_rung(self.job, method)
            self.say(f"rung {method}: {rung.why}")
            with costs.noting(method, processes=self.processes or job.spec.world_size) as tick:
                ended, words = self._run(job, tick)
            if lacks_memory(words) and self.final(words):
                costs.too_large.append(method)
                costs.write()
            elif words.failure_class is not None:
                self._fail(ended.status)
                return None, words
            committed = self._decidable(method)
        cost, money = costs.hours.get(method, 0.0), costs.money.get(method)
        if committed is None:
            return Done(rung=rung, cost=cost, money=money, decision=None), words
        self.known[method] = committed
        finding = self._find(climb, committed)
        self.findings[method] = finding
        done = Done(
            rung=rung, cost=cost, money=money, decision=finding.decision, reaches_target=finding.reaches_target
        )  # fmt: skip
        return done, words

    def _run(self, rung: FineTuneJob, tick: Callable[[], None]) -> tuple[FineTuneJob, TerminationMessage]:
        """The rung, and then its folds unless it is blocked anyway."""
        method, ended, words = rung.spec.method.type, rung, TerminationMessage()
        if (committed := self._committed(method)) is None:
            ended, words = self._raced(rung, tick)
            committed = self._committed(method)
        if words.failure_class is None and committed is not None and self._cross_fitted(committed):
            words = self._folds_of(rung, committed).to_the_end(rung=method, tick=tick)
        return ended, words

    def _cross_fitted(self, committed: Committed) -> bool:
        return bool(self.folds) and not evidence.blocked_by(committed, strict=self._strict)

    def _folds_of(self, rung: FineTuneJob, committed: Committed) -> CrossFitting:
        factor = factor_of(committed.record.job.uid, of=rung.metadata.uid) or 1.0
        return CrossFitting(
            job=rung, count=self.folds, factor=factor, examples=self._examples, open=self._open,
            run_one=self.run_one, say=self.say,
        )  # fmt: skip

    def _decidable(self, method: str) -> Committed | None:
        """The rung with the rows that decide about it, if all runs that it takes are committed."""
        committed = self._committed(method)
        if committed is None or not self._cross_fitted(committed):
            return committed
        rows = self._folds_of(of_rung(self.job, method), committed).rows()
        if rows is None or not rows.models:  # not all are done, or no fold has rows
            return None if rows is None else committed
        return replace(committed, crossed=rows, folds=self.folds)

    @property
    def _strict(self) -> bool:
        return self.job.spec.guards.on_inconclusive == "fail"

    def _raced(self, rung: FineTuneJob, tick: Callable[[], None]) -> tuple[FineTuneJob, TerminationMessage]:
        """At the rate that wins, if there are several."""
        method, factors = rung.spec.method, self._factors(rung.spec.method.type)
        examples = 0 if self.folds else self._examples  # its folds measure
        if len(factors) == 1 and factors[0] == 1:
            trial = {"trial": Trial(few_shot=examples)} if examples else {}
            return self.run_one(rung, rung=method.type, tick=tick, **trial)
        folder = self._open(rung.spec.output.uri)
        race = Race(
            job=rung, factors=factors, examples=examples, folder=folder, run_one=self.run_one, say=self.say
        )  # fmt: skip
        return race.to_the_end(rung=method.type, tick=tick)

    def _factors(self, method: str) -> tuple[float, ...]:
        return self.job.spec.ladder.factors if TRAITS[method].steps else (1.0,)

    def _find(self, climb: Climb, committed: Committed) -> Finding:
        ladder = self.job.spec.ladder
        return evidence.find(
            committed,
            self.known.get(climb.best),
            rungs=climb.comparisons,
            min_gain=ladder.min_gain,
            target=ladder.target,
            strict=self._strict,
        )

    def _publish(self, climb: Climb, told: LadderStatus) -> tuple[FineTuneJob, TerminationMessage]:
        uid, output = self.job.metadata.uid, self.job.spec.output.uri
        if climb.best == BASE:
            words = _no_gain(told)
            return self.job, words
        if self.elsewhere(climb.best):
            return self.job, _moving(climb.best)
        self.say(f"measuring all held-out rows with the rung {climb.best}, and publishing it")
        winner = self.known[climb.best].record.job.uid
        source = Publishes(uri=rung_uri(output, uid, climb.best), uid=winner, ladder=told)
        best = of_best(self.job, climb.best).model_copy(update={"status": self.job.status})
        factor = factor_of(winner, of=rung_uid(uid, climb.best)) or 1.0
        ended, words = self.run_one(best, publishes=source, **({} if factor == 1 else {"trial": Trial(factor=factor)}))
        self.job = self.job.model_copy(update={"status": ended.status})
        if words.failure_class is None:
            for method in self.known:
                self._clear(self._open(rung_uri(output, uid, method)))
        return self.job, words

    def _clear(self, rung: Folder) -> None:
        """Checkpoints and notes of all its candidates, those of earlier ladder.learningRates too."""
        for uid in {entry.path.split("/")[1] for entry in rung.list(".finetune")}:
            CheckpointStore(rung, identity_of(self.job).model_copy(update={"uid": uid})).clear()

    def _committed(self, method: str) -> Committed | None:
        uid = self.job.metadata.uid
        folder = self._open(rung_uri(self.job.spec.output.uri, uid, method))
        return evidence.read(folder, uid=rung_uid(uid, method))

    def _open(self, uri: str) -> Folder:
        return open_folder(uri, prefix=names.PREFIX_OUTPUT, patience=self.patience)

    def _tell(self, foreseen: Forecast, climb: Climb, step: Step) -> LadderStatus:
        rates = {method: each.record.plan.learning_rate for method, each in self.known.items()}
        told = story.status(foreseen.choice, climb, step, self.findings, rates, self._few_shot(climb))
        status = self.job.status.model_copy(update={"ladder": told, "phase": Phase.Running})
        self.job = self.job.model_copy(update={"status": status})
        self.save(self.job)
        return told

    def _fail(self, status: FineTuneJobStatus) -> None:
        known = {"attempt": status.attempt, "restarts": status.restarts, "last_failure": status.last_failure}
        self.job = self.job.model_copy(update={"status": self.job.status.model_copy(update=known)})


def lacks_memory(words: TerminationMessage) -> bool:
    """Whether a run failed because it does not fit into memory."""
    return words.reason in _MEMORY_REASONS or words.failure_class in _MEMORY


def _moving(method: str) -> TerminationMessage:
    return TerminationMessage(
        reason=Reason.Succeeded,
        message=f"the ladder continues in pods for the rung {method}",
        next_rung=method,
        time=now(),
    )


def _no_gain(told: LadderStatus) -> TerminationMessage:
    why = "no training is needed" if told.stop_reason == "targetMet" else "no rung is better than the base model"
    return TerminationMessage(
        failure_class=class_of(Reason.NoGain),
        reason=Reason.NoGain,
        message=f"{why}, so nothing was published. {told.story}",
        hint=hint_of(Reason.NoGain),
        exit_code=ExitCode.GUARD,
        time=now(),
    )
