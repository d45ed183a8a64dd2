"""A ladder on node 0 of a gang: announces each run before it begins, and hears why other nodes failed.

What node 0 announces is in the store before its master's port opens, so a node that finds the port open knows the run.
An attempt with one node announces nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.plan import Publishes, RunPlan, Trial
from finetune_trainer.agent.follow import WATCH_SECONDS, RunTurn, is_cause, watching
from finetune_trainer.agent.turns import Turn, Turns, plan_of
from finetune_trainer.agent.verdict import say
from finetune_trainer.agent.watch import POLL_SECONDS
from finetune_trainer.rundir import now

CAUSE_SECONDS = 10.0
"""For the node with the cause to report, after this one has lost a peer."""


@dataclass(kw_only=True)
class Leading:
    plan: RunPlan
    run: RunTurn
    stopped: Callable[[], bool]
    turns: Turns | None
    """None: there are no other nodes."""
    number: int | None = None
    """Of the turn that was announced last; None: of this agent, none was."""

    @classmethod
    def of(cls, plan: RunPlan, *, run: RunTurn, stopped: Callable[[], bool], patience: float) -> Leading:
        turns = Turns.of(plan, patience=patience) if plan.nodes > 1 else None
        return cls(plan=plan, run=run, stopped=stopped, turns=turns)

    def run_turn(self, made: FineTuneJob, *, publishes: Publishes | None, trial: Trial | None) -> TerminationMessage:
        """With the cause of a failure, where another node reports it."""
        method = made.spec.method.type
        turn = self._announce(Turn(number=self._next(), method=method, publishes=publishes, trial=trial))
        plan, turns = plan_of(self.plan, made, turn), self.turns
        if turns is None:
            return self.run(plan, lambda: "")
        with watching(lambda: _told(turns.reports(turn.number)), pause=WATCH_SECONDS) as withdrawn:
            words = self.run(plan, withdrawn)
        if words.failure_class is None or is_cause(words):
            return words
        cause = self._cause(turns, turn.number)
        return cause.model_copy(update=_of_run(words)) if cause else words

    def over(self, words: TerminationMessage) -> TerminationMessage:
        """Announces the end; returns the termination message of this node.

        A failure while all are asked to stop is not announced: a queue may let the same attempt go again, whose new
        pods would take that for their own end."""
        failed = words.failure_class is not None and words.reason is not Reason.NoGain
        if not (failed and self.stopped()):
            with suppress(FinetuneError):  # then they wait until their Job ends
                self._announce(Turn(number=self._next(), failed=failed))
        if not words.node:
            return words
        lost = say(Reason.PeerLost, _told([words]), time=now())  # its own pod tells the cause
        return lost.model_copy(update=_of_run(words))

    def _next(self) -> int:
        """Counts on from what this attempt has announced, so that no node takes a new turn for an earlier one."""
        if self.number is None:
            before = self.turns.present() if self.turns else None
            self.number = before.number if before else 0
        return self.number + 1

    def _announce(self, turn: Turn) -> Turn:
        if self.turns is not None:
            self.turns.announce(turn)
        self.number = turn.number
        return turn

    def _cause(self, turns: Turns, number: int) -> TerminationMessage | None:
        end = time.monotonic() + CAUSE_SECONDS
        while True:
            found: list[TerminationMessage] = []
            with suppress(FinetuneError):
                found = [each for each in turns.reports(number) if is_cause(each)]
            if found or self.stopped() or time.monotonic() >= end:
                return min(found, key=lambda each: each.time, default=None)
            time.sleep(POLL_SECONDS)


def _of_run(words: TerminationMessage) -> dict[str, object]:
    """What only node 0 knows of a run, by which the next attempt is planned."""
    return {"plan": words.plan, "step": words.step, "checkpoint_time": words.checkpoint_time}


def _told(reports: list[TerminationMessage]) -> str:
    first = min(reports, key=lambda each: each.time, default=None)
    return f"node {first.node} failed: {first.message}" if first else ""
