"""What a ladder decided since the status was last written, as events: each rung once, and why the ladder stopped."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.failures import Reason
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.status import FineTuneJobStatus
from finetune_operator.decision import Event


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
