"""The end: a job that has ended stays ended, and a gang whose pods all succeeded has ended."""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.status import Phase, Progress
from finetune_operator.decision import Decision, Event
from finetune_operator.state.observe import Observed
from finetune_operator.state.pod_reports import below
from finetune_operator.state.status import Stamp, change, condition, finite, rfc3339, settled, sound, terminal
from finetune_operator.transitions.results import all_done, climbed, guarded, measured, output_of, words_of_done


def already(seen: Observed, now: datetime) -> Decision | None:  # noqa: ARG001
    """Terminal states are sticky: nothing is created, whatever happens to the children."""
    return Decision(status=seen.status) if terminal(seen.status) else None


def succeeded(seen: Observed, now: datetime) -> Decision | None:
    """By its Job, or by the trainers of all its pods; also where the cluster has cleaned up since."""
    if not all_done(seen):
        return None
    return _finished(seen, words_of_done(seen) or TerminationMessage(), now)


def _finished(seen: Observed, words: TerminationMessage, now: datetime) -> Decision:
    """Results from node 0's termination message; what it lacks, from its last progress report."""
    status, report = seen.status, seen.report
    told = words.artifact or (report.artifact if report else None)
    artifact = told if below(told, output_of(seen)) else status.artifact
    where = f"the artifact is at {artifact.uri}" if artifact else "node 0 reported no artifact"
    if told is not None and artifact is not told:
        where = f"node 0 reported an artifact outside output.uri, which is ignored: {told.uri}"
    if seen.spec is not None and seen.spec.command is not None:
        where = "its command ended with status 0 in every process"
    message = f"Attempt {seen.attempt} succeeded; {where}"
    status = change(
        status,
        phase=Phase.Succeeded,
        completion_time=rfc3339(now),
        progress=_final(finite(report.progress) if report else status.progress, words),
        plan=sound(words.plan) or (sound(report.plan) if report else None) or status.plan,
        evaluation=measured(seen, words),
        ladder=climbed(seen),
        artifact=artifact,
    )
    stamp = Stamp(seen.job.generation, now)
    status = condition(
        status, "Running", true=False, reason=Reason.Finished, message="All pods have ended", stamp=stamp
    )
    status = guarded(seen, settled(status, stamp), stamp)
    status = condition(status, "Complete", true=True, reason=Reason.Succeeded, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(Reason.Succeeded, message),))


def _final(progress: Progress | None, words: TerminationMessage) -> Progress | None:
    """The last progress, at its end. A run that stopped early did fewer steps, and is done all the same."""
    if progress is None and words.step is None:
        return None
    known = progress or Progress()
    return known.model_copy(update={"step": words.step or known.step, "percent": 100, "eta_seconds": 0})
