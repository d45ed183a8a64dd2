"""The end: a job that has ended stays ended, and a gang whose pods all succeeded has ended."""

from __future__ import annotations

from datetime import datetime

from finetune_api.failures import LastWords, Reason
from finetune_api.status import Evaluation, Phase, Progress
from finetune_operator.decision import Decision, Event
from finetune_operator.observe import Observed
from finetune_operator.status import Stamp, change, condition, finite, rfc3339, settled, sound, terminal

NEWS_SECONDS = 2.0
"""How long the Job's end waits for the pod's, when the two watches are not at one point."""


def already(seen: Observed, now: datetime) -> Decision | None:  # noqa: ARG001
    """Terminal states are sticky: nothing is created, whatever happens to the children."""
    return Decision(status=seen.status) if terminal(seen.status) else None


def succeeded(seen: Observed, now: datetime) -> Decision | None:
    child = seen.child
    if child is None:
        return None
    done = {pod.index for pod in seen.gang if pod.phase == "Succeeded"}
    if not child.complete and len(done) < child.nodes:
        return None
    first = next((pod for pod in seen.gang if pod.index == 0), None)
    if first is not None and first.unfinished and not first.deleting:
        return Decision(status=seen.status, look_again_in=NEWS_SECONDS)
    words = first.ended.words if first and first.ended else None
    return _finished(seen, words or LastWords(), now)


def _finished(seen: Observed, words: LastWords, now: datetime) -> Decision:
    """Results from node 0's last words; what these lack, from its last progress report."""
    status, report = seen.status, seen.report
    artifact = words.artifact or (report.artifact if report else None) or status.artifact
    where = f"the artifact is at {artifact.uri}" if artifact else "node 0 left no word about the artifact"
    if seen.spec is not None and seen.spec.command is not None:
        where = "its command ended with status 0 in every process"
    message = f"Attempt {seen.attempt} succeeded; {where}"
    status = change(
        status,
        phase=Phase.Succeeded,
        completion_time=rfc3339(now),
        progress=_final(finite(report.progress) if report else status.progress, words),
        plan=sound(words.plan) or (sound(report.plan) if report else None) or status.plan,
        evaluation=_fuller(sound(words.evaluation), sound(report.evaluation) if report else None, status.evaluation),
        artifact=artifact,
    )
    stamp = Stamp(seen.job.generation, now)
    status = condition(
        status, "Running", true=False, reason=Reason.Finished, message="All pods have ended", stamp=stamp
    )
    status = settled(status, stamp)
    status = condition(status, "Complete", true=True, reason=Reason.Succeeded, message=message, stamp=stamp)
    return Decision(status=status, events=(Event(Reason.Succeeded, message),))


def _final(progress: Progress | None, words: LastWords) -> Progress | None:
    """The last progress, at its end. A run that stopped early did fewer steps, and is done all the same."""
    if progress is None and words.step is None:
        return None
    known = progress or Progress()
    return known.model_copy(update={"step": words.step or known.step, "percent": 100, "eta_seconds": 0})


def _fuller(*told: Evaluation | None) -> Evaluation | None:
    """The first that there is, with the slices of the first that has some: a long message is cut there."""
    given = [evaluation for evaluation in told if evaluation is not None]
    if not given:
        return None
    slices = next((evaluation.slices for evaluation in given if evaluation.slices), ())
    return given[0].model_copy(update={"slices": slices})
