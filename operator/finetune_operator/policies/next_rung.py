"""A ladder whose next rung needs other pods (ladder.overrides): the next attempt has them.

The pods decide, and end with the name of the rung in the termination message of node 0. The next attempt is not a
restart: it counts against nothing and waits for nothing. What it continues with is in the store, so an attempt too many
costs a start of its pods, and no rung runs twice.
"""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.rung_pods import describe_pods, for_rung, same_pods
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.decision import Decision, Event
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import failure_of
from finetune_operator.transitions.ladder import move
from finetune_operator.transitions.restart import restart_or_end
from finetune_operator.transitions.results import all_done, words_of_done

MOVES = 32
"""Changes of pods in a job. Each rung and the publishing run need one, and a manifest may be changed on the way. Beyond
that they count as failures, since nothing else bounds what a pod asks for."""


def reached(seen: Observed, now: datetime) -> Decision | None:
    """All pods of the attempt have succeeded, and the ladder is not over."""
    spec, whole = seen.spec, seen.whole
    if spec is None or whole is None or not whole.ladder.overrides or not all_done(seen):
        return None
    words = words_of_done(seen)
    if words is None:
        return _unheard(seen, spec, now)
    if words.next_rung is None:
        return None
    if same_pods(whole, seen.rung, words.next_rung):
        message = f"attempt {seen.attempt} asks for pods of the rung {words.next_rung}, which it had"
        failure = failure_of(Reason.UnexpectedError, message, attempt=seen.attempt, at=now)
        return restart_or_end(seen, spec, failure, now)
    if (seen.status.moves or 0) >= MOVES:
        message = f"attempt {seen.attempt} asks for pods of the rung {words.next_rung} after {MOVES} changes of pods"
        failure = failure_of(Reason.UnexpectedError, message, attempt=seen.attempt, at=now)
        return restart_or_end(seen, spec, failure, now)
    message = (
        f"Attempt {seen.attempt} ended, because the ladder continues with the rung {words.next_rung} in other pods: "
        f"attempt {seen.attempt + 1} has {describe_pods(for_rung(whole, words.next_rung))}"
    )
    return move(seen, words.next_rung, Event(Reason.NextRung, message), now)


def _unheard(seen: Observed, spec: FineTuneJobSpec, now: datetime) -> Decision | None:
    """No pod is left to say whether the ladder is over. If it is, the next attempt finds the artifact."""
    if seen.report is not None and seen.report.artifact is not None:
        return None
    message = f"attempt {seen.attempt} succeeded, and no pod is left to report whether its ladder is over"
    failure = failure_of(Reason.Interrupted, message, attempt=seen.attempt, at=now)
    return restart_or_end(seen, spec, failure, now)
