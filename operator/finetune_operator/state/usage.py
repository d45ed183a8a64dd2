"""GPU hours of a job, and which of them were wasted. Pure.

A pod holds its GPUs from the time at which it was bound to a node until its container ended. Usage is the sum of what
lies between the last count and now; the status says up to when it is counted (`usage.lastUpdateTime`). So no time is
counted twice, whichever replica counts, and an operator that was away counts later what it has missed. Only what is
about to be written anyway is counted: usage causes no write of its own.

    wasted   from the binding of the first pod until all pods of the gang run, a pull of images included
             after a failure: what followed the last complete checkpoint of the attempt, up to the end of its pods.
             Without a known checkpoint: all of the attempt
             capacity checks, and pods of an attempt that is over
    not      pods of a suspended or preempted job: they write a checkpoint
             an attempt that a guard ended: its candidate is complete

What is not counted: pods that end after the last write of a job (up to their grace period), and pods that were bound
and disappeared while no operator was watching.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureClass, FineTuneJobStatus, Phase, Usage

from .observe import Observed
from .prices import devices_of
from .status import change, find, rfc3339
from .timestamps import parse_time
from .views import Pod

HOUR = 3600
EVER = datetime.min.replace(tzinfo=UTC)
RELEASED = (Phase.Suspended, Phase.Queued)
"""Pods that are there in these phases were asked to end, and save their work."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """Pods that are alike, and a time in which they are counted."""

    since: datetime
    until: datetime

    def seconds(self, pods: Iterable[Pod]) -> int:
        """In which the pods held their devices, summed."""
        return sum(map(self._held, pods))

    def _held(self, pod: Pod) -> int:
        begin = pod.scheduled or (pod.created if pod.node else None)
        if begin is None:
            return 0
        end = min(_end(pod, begin) or self.until, self.until)
        return max(0, int((end - max(begin, self.since)).total_seconds()))


def metered(seen: Observed, status: FineTuneJobStatus, now: datetime) -> FineTuneJobStatus:
    """The status with usage up to now, if it differs from the present one anyway."""
    spec = seen.spec
    if spec is None or status is seen.status or status.to_json() == seen.status.to_json():
        return status
    devices = devices_of(spec)
    before = seen.status.usage or Usage()
    until = now.replace(microsecond=0)
    since = parse_time(before.last_update_time) or EVER
    span = Span(since=since, until=until)
    held = span.seconds(_pods(seen))
    if not devices or until <= since or (seen.status.usage is None and not held):
        return status
    gpus = sum(devices.values())
    total = _seconds(before.gpu_hours) + held * gpus
    wasted = _seconds(before.wasted_gpu_hours) + _wasted(seen, status, span) * gpus
    usage = Usage(
        gpu_hours=round(total / HOUR, 4),
        wasted_gpu_hours=round(min(wasted, total) / HOUR, 4),
        last_update_time=rfc3339(until),
    )
    return change(status, usage=usage.model_copy(update=_money(seen, spec, before, held, devices)))


def _money(
    seen: Observed, spec: FineTuneJobSpec, before: Usage, held: int, devices: dict[str, int]
) -> dict[str, object]:
    """At the present price. A sum in another currency is kept as it is."""
    prices = seen.defaults.prices
    price = prices.per_hour(devices, spec.pod.node_selector)
    if price is None or before.currency not in (None, prices.currency):
        return {"money": before.money, "currency": before.currency}
    return {"money": round((before.money or 0.0) + price * held / HOUR, 6), "currency": prices.currency}


def _wasted(seen: Observed, status: FineTuneJobStatus, span: Span) -> int:
    """Seconds that its pods held devices for nothing: in the span, and before it if an attempt has just failed."""
    if seen.status.phase in RELEASED:
        return 0
    gang = {pod.uid for pod in (*seen.gang, *seen.gone)}
    own = [pod for pod in _pods(seen) if pod.uid in gang]
    others = [pod for pod in _pods(seen) if pod.uid not in gang]
    up = _complete(seen, status, span.until)
    waiting = Span(since=span.since, until=min(up, span.until)).seconds(own)
    lost = 0
    if _failed(seen, status):
        lost = Span(since=max(up, _saved(seen) or up), until=span.until).seconds(own)
    return span.seconds(others) + waiting + lost


def _complete(seen: Observed, status: FineTuneJobStatus, now: datetime) -> datetime:
    """Since when all pods of the attempt run. Where that was not seen, and they are over: since all had a node."""
    if seen.status.phase is Phase.Running:
        runs = find(seen.status, "Running")
        return (parse_time(runs.last_transition_time) if runs else None) or EVER
    pods = {pod.uid: pod for pod in (*seen.gone, *seen.gang)}.values()
    bound = [pod.scheduled for pod in pods if pod.scheduled is not None]
    succeeded = (
        status.phase is Phase.Succeeded or status.rung != seen.status.rung or any(_saved_by(pod) for pod in pods)
    )
    if succeeded and seen.status.nodes and len(bound) >= seen.status.nodes:
        return max(bound)
    return now


def _failed(seen: Observed, status: FineTuneJobStatus) -> bool:
    """This status gives up an attempt that ran, because of a failure."""
    failure = status.last_failure
    if failure is None or failure == seen.status.last_failure or failure.failure_class is FailureClass.Guard:
        return False
    return status.phase in (Phase.Restarting, Phase.Failed)


def _saved(seen: Observed) -> datetime | None:
    """When the last checkpoint was complete, as far as node 0 has said."""
    told = [_saved_by(pod) for pod in (*seen.gang, *seen.gone)]
    for progress in (seen.report.progress if seen.report else None, seen.status.progress):
        told.append(parse_time(progress.last_checkpoint_time) if progress else None)
    return max((at for at in told if at is not None), default=None)


def _saved_by(pod: Pod) -> datetime | None:
    words = pod.ended.words if pod.ended else None
    return parse_time(words.checkpoint_time) if words else None


def _pods(seen: Observed) -> Iterator[Pod]:
    """All that may hold devices, each once."""
    yield from {pod.uid: pod for pod in (*seen.ended_pods, *seen.pods, *seen.probe_pods)}.values()


def _end(pod: Pod, begin: datetime) -> datetime | None:
    """When its container ended. A pod that is over and does not say when was evicted then, or it never ran."""
    if pod.ended is not None and pod.ended.at is not None:
        return pod.ended.at
    return (pod.disrupted or begin) if pod.over else None


def _seconds(hours: float) -> int:
    """Hours in a status have four digits, which is less than half a second: the count is exact."""
    return round(hours * HOUR)
