"""Ladders: attempts with the pods of another rung, and the events of their decisions.

move       the next attempt has the pods of another rung
give_up    a rung's pods cannot be had: the next attempt publishes the best rung so far

Events report what was decided since the status was last written: each rung once, and why the ladder stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from finetune_api.failures import Reason
from finetune_api.ladder import BASE, LadderStatus, RungStatus
from finetune_api.rung_pods import UnavailableRung, for_rung, same_pods
from finetune_api.status import FineTuneJobStatus, LastFailure, Phase
from finetune_operator.decision import Decision, Event
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, clip, condition

from .results import climbed


def move(seen: Observed, rung: str, event: Event, now: datetime, **changes: object) -> Decision:
    """The micro-batch that an earlier shape had to make smaller says nothing about this one."""
    assert seen.whole is not None
    status = change(
        seen.status,
        phase=Phase.Pending,
        attempt=seen.attempt + 1,
        rung=rung,
        moves=(seen.status.moves or 0) + 1,
        nodes=for_rung(seen.whole, rung).max_nodes,
        micro_batch_tokens=None,
        ladder=climbed(seen),
        **changes,
    )
    stamp = Stamp(seen.job.generation, now)
    status = condition(status, "Running", true=False, reason=event.reason, message=event.message, stamp=stamp)
    leftovers = tuple(child for child in seen.children if not child.deleting)
    return Decision(status=status, delete=leftovers, events=(event,), look_again_in=0.0)


def give_up(seen: Observed, failure: LastFailure, now: datetime) -> Decision | None:
    """None unless a rung is waited for in pods of its own and an earlier one, with other pods, is better than the base
    model. Restarts are counted from zero: those so far were spent on pods that publish nothing."""
    whole, status, ladder = seen.whole, seen.status, climbed(seen)
    if whole is None or ladder is None or seen.rung is None or status.unavailable_rung is not None:
        return None
    left = (each.name for each in ladder.rungs if each.state in ("planned", "running"))
    rung = next((each for each in left if same_pods(whole, seen.rung, each)), None)
    best = ladder.best or BASE
    if rung is None or best == BASE or same_pods(whole, rung, best):
        return None
    message = clip(
        f"The ladder stops before the rung {rung}, whose pods cannot be had: {failure.reason}: {failure.message}. "
        f"Attempt {seen.attempt + 1} publishes the rung {best}"
    )
    unavailable = UnavailableRung(name=rung, reason=failure.reason, message=failure.message[:1024])
    event = Event(Reason.NextRung, message, "Warning")
    return move(seen, best, event, now, unavailable_rung=unavailable, restart_times=(), last_failure=failure)


def told(before: FineTuneJobStatus, after: FineTuneJobStatus) -> tuple[Event, ...]:
    """The status is written before events are sent: an operator that dies between the two reports nothing twice."""
    if after.ladder is None or after.ladder is before.ladder:
        return ()
    return tuple(_news(before.ladder, after.ladder))


def _news(before: LadderStatus | None, after: LadderStatus) -> Iterator[Event]:
    """An attempt has one event of a reason, whose message is replaced, so each has the earlier decisions, too."""
    known = {rung.name for rung in before.rungs if rung.decision} if before else set()
    decided = [rung for rung in after.rungs if rung.decision]
    fresh = [rung for rung in decided if rung.name not in known]
    if fresh:
        costs = f" So far the ladder cost {after.costs()}." if after.spent else ""
        earlier = "".join(f" {_words(rung, reason='')}" for rung in decided if rung.name in known)
        yield Event(Reason.RungDecided, " ".join(_words(rung, rung.reason) for rung in fresh) + costs + earlier)
    if after.stop_reason and not (before and before.stop_reason):
        yield Event(Reason.LadderStopped, after.story or f"The ladder stopped: {after.stop_reason}.")


def _words(rung: RungStatus, reason: str) -> str:
    gain = ""
    if rung.gain is not None and rung.low is not None and rung.high is not None:
        gain = f" (gain {rung.gain:+.3g}, interval {rung.low:+.3g} to {rung.high:+.3g})"
    why = f": {reason.rstrip('.')}" if reason else ""
    return f"Rung {rung.name}: {rung.decision}{gain}{why}."
