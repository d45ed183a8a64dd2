"""The gang exists and nothing failed: how far is it?"""

from __future__ import annotations

import math
import zlib
from datetime import datetime, timedelta

from finetune_api.failures import Reason
from finetune_api.plan import ProgressReport
from finetune_api.status import FineTuneJobStatus, Phase, Progress
from finetune_operator.decision import Decision
from finetune_operator.state.observe import Observed
from finetune_operator.state.status import Stamp, change, condition, finite, is_true, rfc3339, sound
from finetune_operator.state.views import parse_time
from finetune_operator.transitions.blocked import wait_for_gang, without_blocker

SETTLED = timedelta(seconds=5)
"""Pods that are scheduled for so long and do not run yet are worth a write: `Starting`."""

MUTE = 300.0
"""Seconds of silence (see agent_contact) that are worth a word."""

_RESULTS = ("plan", "evaluation", "ladder")

PROGRESS_INTERVAL = 15.0
"""Seconds between two writes of a job's progress, at least."""

PROGRESS_WRITES = 40.0
"""Such writes a second of all jobs together: each costs the API server about 4 ms of CPU. With more than 600 running
jobs each is written less often, at moments of its own, so that jobs that began together do not write together;
/metrics has every report."""


def running(seen: Observed, now: datetime) -> Decision | None:
    child = seen.child
    if child is None:
        return None
    up = sum(pod.phase in ("Running", "Succeeded") for pod in seen.gang)
    if seen.status.phase is Phase.Running or up >= child.nodes:
        status = _readable(_running(seen, child.nodes, now), seen, now)
        return _with_progress(status, seen, now)
    return _starting(seen, child.nodes, now)


def _running(seen: Observed, nodes: int, now: datetime) -> FineTuneJobStatus:
    status = change(without_blocker(seen, now), phase=Phase.Running)
    pods = "the pod runs" if nodes == 1 else f"all {nodes} pods run"
    if seen.spec is not None and nodes < seen.spec.max_nodes:
        pods += f" ({seen.spec.max_nodes} are wanted)"
    if seen.silence >= MUTE:
        pods += "; the agent of node 0 does not answer the operator, so its progress is unknown"
    return condition(
        status,
        "Running",
        true=True,
        reason=Reason.GangRunning,
        message=f"Attempt {seen.attempt}: {pods}",
        stamp=Stamp(seen.job.generation, now),
    )


def _readable(status: FineTuneJobStatus, seen: Observed, now: datetime) -> FineTuneJobStatus:
    """Says that node 0 answers with something other than a report, until one was read."""
    stamp = Stamp(seen.job.generation, now)
    if seen.unreadable:
        reason = Reason.ProgressUnreadable
        message = (
            f"Node 0 of attempt {seen.attempt} answers /progress with something other than a progress report: "
            f"{seen.unreadable}. The run continues, and its results are read when it ends"
        )
        return condition(status, "ProgressUnreadable", true=True, reason=reason, message=message, stamp=stamp)
    if seen.report is None or not is_true(status, "ProgressUnreadable"):
        return status
    message = f"Node 0 of attempt {seen.attempt} reports its progress"
    return condition(status, "ProgressUnreadable", true=False, reason=Reason.GangRunning, message=message, stamp=stamp)


def _starting(seen: Observed, nodes: int, now: datetime) -> Decision:
    """Pending → Starting, once all pods have had a node for a moment. A restart keeps its name until it runs."""
    waiting = wait_for_gang(seen, now)
    status = waiting.status
    scheduled = [pod.scheduled for pod in seen.gang if pod.scheduled is not None]
    if status.phase in (Phase.Restarting, Phase.Starting) or len(scheduled) < nodes:
        return waiting
    wait = (max(scheduled) + SETTLED - now).total_seconds()
    if wait > 0:
        return waiting.but(look_again_in=wait)
    return waiting.but(status=change(status, phase=Phase.Starting))


def _with_progress(status: FineTuneJobStatus, seen: Observed, now: datetime) -> Decision:
    """The report, if it has something new and the last write is not too recent."""
    report = seen.report
    if report is None:
        return Decision(status=status)
    learned = any(sound(getattr(report, name)) not in (None, getattr(status, name)) for name in _RESULTS)
    if not learned and not _moved(status, report):
        return Decision(status=status)
    last = parse_time(status.progress.last_update_time) if status.progress else None
    pause = pause_after(last, seen.job.uid, 0 if learned else seen.followed) if last else 0.0
    wait = pause - (now - last).total_seconds() if last else 0.0
    if 0 < wait <= pause:  # more: it was written by a clock that was wrong
        return Decision(status=status, look_again_in=wait)
    status = change(
        status,
        progress=finite(report.progress).model_copy(update={"last_update_time": rfc3339(now)}),
        plan=sound(report.plan) or status.plan,
        evaluation=sound(report.evaluation) or status.evaluation,
        ladder=sound(report.ladder) or status.ladder,
    )
    return Decision(status=status)


def pause_after(last: datetime, uid: str, jobs: int) -> float:
    """Seconds from the last write of this job's progress to the next, with so many running jobs."""
    turn = math.ceil(jobs / PROGRESS_WRITES)
    if turn <= PROGRESS_INTERVAL:
        return PROGRESS_INTERVAL
    own = zlib.crc32(uid.encode()) % turn
    return PROGRESS_INTERVAL + (own - int(last.timestamp() + PROGRESS_INTERVAL)) % turn


def _moved(status: FineTuneJobStatus, report: ProgressReport) -> bool:
    """Rates and estimates move at every look: they are written along with something else, not for themselves."""
    old, new = status.progress or Progress(), finite(report.progress)
    return (old.step, old.total_steps, old.eval_loss) != (new.step, new.total_steps, new.eval_loss)
