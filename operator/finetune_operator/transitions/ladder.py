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
    known = {rung.name for rung in before.rungs if rung.decision} if before else set()
    fresh = [rung for rung in after.rungs if rung.decision and rung.name not in known]
    if fresh:
        costs = f" So far the ladder cost {after.costs()}." if after.spent else ""
        yield Event(Reason.RungDecided, " ".join(_words(rung) for rung in fresh) + costs)
    if after.stop_reason and not (before and before.stop_reason):
        yield Event(Reason.LadderStopped, after.story or f"The ladder stopped: {after.stop_reason}.")


def _words(rung: RungStatus) -> str:
    gain = ""
    if rung.gain is not None and rung.low is not None and rung.high is not None:
        gain = f" (gain {rung.gain:+.3g}, interval {rung.low:+.3g} to {rung.high:+.3g})"
    why = f": {rung.reason.rstrip('.')}" if rung.reason else ""
    return f"Rung {rung.name}: {rung.decision}{gain}{why}."
