"""A ladder on the nodes other than 0: they run what node 0 decides, and decide nothing.

A node waits for the next turn, runs it, and waits again. A turn is withdrawn when node 0 has announced another: what
still runs of it here is ended. If the run fails here by a cause of this node, the node reports it and waits a little,
since the ladder may continue all the same: a learning rate that diverges is out of its race, and a rung that does not
fit into memory ends the ladder, but not the job. `next_step` is the decision.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from finetune_api.classes import Echo
from finetune_api.failures import CLASSES, FailureClass, FinetuneError, Reason, TerminationMessage
from finetune_api.manifest import ManifestError
from finetune_api.plan import RunPlan
from finetune_trainer.agent.rungs import lacks_memory
from finetune_trainer.agent.turns import Turn, Turns, job_of, plan_of, run_of
from finetune_trainer.agent.verdict import say
from finetune_trainer.rundir import now

Withdrawn = Callable[[], str]
"""Why the run under way is to end now; empty while it may continue."""

RunTurn = Callable[[RunPlan, Withdrawn], TerminationMessage]

LIMIT_SECONDS = 30 * 60.0
"""For the next turn: node 0 may have to download the model first."""

AFTER_FAILURE_SECONDS = 60.0
"""For node 0 to continue after a failure that may not end the ladder."""

WATCH_SECONDS = 5.0
"""Between two looks into the store while ranks run."""

WAIT_SECONDS = 0.5
"""Between two looks while nothing runs."""

READS_PER_SECOND = 100
"""Of all nodes together, at most, while nothing runs."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A turn that this node has done its part of."""

    turn: Turn
    words: TerminationMessage

    @property
    def published(self) -> bool:
        return self.turn.publishes is not None and self.words.failure_class is None


@dataclass(frozen=True)
class End:
    words: TerminationMessage


def next_step(last: Ended | None, present: Turn | None, *, waited: float) -> Turn | End | None:
    """Runs a turn, ends with a termination message, or waits on (None). present: what node 0 has decided last, in this
    attempt. waited: seconds since the last turn ended here."""
    own = last.words if last else TerminationMessage()
    if present is not None and (last is None or present.number > last.turn.number):
        if present.method is not None:
            return present
        return End(own if present.failed else TerminationMessage(time=now()))
    if last is not None and last.published:
        return End(own)
    if own.failure_class is not None and waited > (AFTER_FAILURE_SECONDS if may_continue(own) else 0):
        return End(own)
    if waited > LIMIT_SECONDS:
        message = f"node 0 decided nothing within {LIMIT_SECONDS / 60:.0f} minutes"
        return End(say(Reason.PeerLost, message, time=now()))
    return None


def may_continue(words: TerminationMessage) -> bool:
    """Whether node 0 may continue the ladder after such a failure of this node."""
    return lacks_memory(words) or words.failure_class is FailureClass.NonFinite or not is_cause(words)


def is_cause(words: TerminationMessage) -> bool:
    return words.failure_class is not None and CLASSES[words.failure_class].echo is Echo.NONE


@dataclass(frozen=True, kw_only=True)
class Following:
    """Of one node."""

    plan: RunPlan
    node: int
    turns: Turns
    run: RunTurn
    tell: Callable[[str], None]
    stopped: Callable[[], TerminationMessage | None]
    """The termination message, once this agent was asked to stop."""

    def to_the_end(self) -> TerminationMessage:
        """The termination message of this node."""
        try:
            words = self._follow()
        except FinetuneError as error:
            words = say(error.reason, error.message, hint=error.hint, time=now())
        return words.model_copy(update={"node": self.node})

    def _follow(self) -> TerminationMessage:
        last: Ended | None = None
        while True:
            step = self._decided(last)
            if isinstance(step, End):
                return step.words
            last = Ended(turn=step, words=self._do(step))

    def _decided(self, last: Ended | None) -> Turn | End:
        began, pause = time.monotonic(), max(WAIT_SECONDS, self.plan.nodes / READS_PER_SECOND)
        while True:
            if (words := self.stopped()) is not None:
                return End(last.words if last and (last.published or last.words.failure_class) else words)
            step = next_step(last, present(self.turns), waited=time.monotonic() - began)
            if step is not None:
                return step
            time.sleep(pause)

    def _do(self, turn: Turn) -> TerminationMessage:
        self.tell(f"turn {turn.number} of the ladder: {'publishing ' if turn.publishes else ''}{turn.method}")
        try:
            made = run_of(job_of(self.plan), turn)
        except ManifestError as error:
            return say(Reason.InvalidSpec, "; ".join(map(str, error.problems)), time=now())
        pause = max(WATCH_SECONDS, self.plan.nodes / (READS_PER_SECOND / 5))
        with watching(lambda: self._superseded(turn), pause=pause) as withdrawn:
            words = self.run(plan_of(self.plan, made, turn), withdrawn)
        if is_cause(words) and self.stopped() is None:
            with suppress(FinetuneError):
                self.turns.report(turn.number, words.model_copy(update={"node": self.node}))
        return words

    def _superseded(self, turn: Turn) -> str:
        found = self.turns.present()
        return "node 0 has announced another run" if found is not None and found.number > turn.number else ""


def present(turns: Turns) -> Turn | None:
    """None as well while the store is unavailable: node 0 has the same trouble, and ends the attempt if it lasts."""
    try:
        return turns.present()
    except FinetuneError as error:
        if error.reason is Reason.StorageUnavailable:
            return None
        raise


@contextmanager
def watching(look: Callable[[], str], *, pause: float) -> Iterator[Withdrawn]:
    """Calls `look` in a thread, every `pause` seconds, until it answers with a reason; yields what returns that."""
    over, found = threading.Event(), list[str]()

    def loop() -> None:
        while not found and not over.wait(pause):
            with suppress(FinetuneError, OSError):
                found.extend(each for each in (look(),) if each)

    thread = threading.Thread(target=loop, name="turns", daemon=True)
    thread.start()
    try:
        yield lambda: found[0] if found else ""
    finally:
        over.set()
        thread.join()
