"""What a run measured and what its guards made of it, in the status of a job that succeeded or was held back.

GuardsPassed   True       every guard that the manifest has is passed
               False      one is violated
               Unknown    none is violated, and one has too few rows to decide, or no result: a trainer
               image that is older than the operator knows no guards
"""

from __future__ import annotations

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.ladder import LadderStatus
from finetune_api.measurements import Evaluation, GuardResult
from finetune_api.plan import ProgressReport
from finetune_api.results import packed, packed_ladder
from finetune_api.status import Candidate, FineTuneJobStatus
from finetune_operator.state.observe import Observed
from finetune_operator.state.pod_reports import below
from finetune_operator.state.status import Stamp, change, condition, sound


def all_done(seen: Observed) -> bool:
    """By the attempt's Job, or by the trainers of all its pods; also where the cluster has cleaned up since."""
    child = seen.child or seen.ended_job
    done = {pod.index for pod in (*seen.gang, *seen.gone) if pod.done}
    nodes = child.nodes if child else seen.status.nodes
    return bool((child and child.complete) or (nodes and len(done) >= nodes))


def words_of_done(seen: Observed) -> TerminationMessage | None:
    """The termination message of node 0, if its trainer succeeded."""
    pods = (*seen.gang, *seen.gone)
    return next((pod.ended.words for pod in pods if pod.index == 0 and pod.done and pod.ended), None)


def measured(seen: Observed, words: TerminationMessage | None) -> Evaluation | None:
    """From a termination message, the last report and the status: the one that has measured most, and of two that have
    as much the first. With other guards than the termination message it is of an earlier run (guards.maxAttempts)."""
    report = seen.report
    last = sound(words.evaluation) if words else None
    told = (last, sound(report.evaluation) if report else None, seen.status.evaluation)
    given = [each for each in told if each is not None and (last is None or _same_guards(each, last))]
    return max(given, key=lambda each: sum(data.tuned is not None for data in each.data), default=None)


def _same_guards(one: Evaluation, last: Evaluation) -> bool:
    """A termination message may have them with fewer digits."""
    return not last.guards or packed(Evaluation(guards=one.guards)) == packed(Evaluation(guards=last.guards))


def climbed(seen: Observed) -> LadderStatus | None:
    """The ladder as its pod last reported it. A termination message may have it without its sentences and with fewer
    digits; an earlier report of the same ladder has them."""
    words, report = _first_words(seen), seen.report
    last = sound(words.ladder) if words else None
    whole = (sound(report.ladder) if report else None, seen.status.ladder)
    same = (each for each in whole if each is not None and (last is None or _brief(each) == _brief(last)))
    return next(same, last)


def _brief(ladder: LadderStatus) -> str:
    return packed_ladder(ladder.short())


def guarded(seen: Observed, status: FineTuneJobStatus, stamp: Stamp) -> FineTuneJobStatus:
    """With the condition GuardsPassed, where guards are written or were judged."""
    known = status.evaluation or Evaluation()
    guards = (*known.guards, *_unreported(seen, known))
    if not guards:
        return status
    status = change(status, evaluation=known.model_copy(update={"guards": guards}))
    verdicts = {each.verdict for each in guards}
    if "violated" in verdicts:
        return _set(status, False, Reason.GuardViolated, stamp)
    if "inconclusive" in verdicts:
        return _set(status, None, Reason.GuardInconclusive, stamp)
    return _set(status, True, Reason.GuardsPassed, stamp)


def held_back(seen: Observed, status: FineTuneJobStatus, stamp: Stamp) -> FineTuneJobStatus:
    """Of a job that a guard ended: what it measured, and where its candidate is."""
    words = _first_words(seen)
    candidate = _candidate(words) or _candidate(seen.report)
    ours = candidate if below(candidate, output_of(seen)) else None
    status = change(status, evaluation=measured(seen, words), candidate=ours or status.candidate)
    return guarded(seen, status, stamp)


def _first_words(seen: Observed) -> TerminationMessage | None:
    """Of node 0."""
    pods = (*seen.gang, *seen.gone)
    return next((pod.ended.words for pod in pods if pod.ended and pod.ended.words and pod.index == 0), None)


def output_of(seen: Observed) -> str | None:
    """The folder that the manifest names."""
    output = seen.job.raw_spec.get("output")
    return output.get("uri") if isinstance(output, dict) else None


def _unreported(seen: Observed, known: Evaluation) -> tuple[GuardResult, ...]:
    """The guards of the manifest of which the run has reported no result."""
    written = seen.spec.guards.bounds if seen.spec is not None else {}
    reported = {each.name for each in known.guards}
    return tuple(
        GuardResult(name=name, bound=bound, verdict="inconclusive")
        for name, bound in written.items()
        if name not in reported
    )


def _candidate(told: TerminationMessage | ProgressReport | None) -> Candidate | None:
    return told.candidate if told else None


def _set(status: FineTuneJobStatus, true: bool | None, reason: Reason, stamp: Stamp) -> FineTuneJobStatus:
    guards = status.evaluation.guards if status.evaluation else ()
    wanted = {Reason.GuardViolated: "violated", Reason.GuardInconclusive: "inconclusive"}.get(reason, "passed")
    message = "; ".join(each.told() for each in guards if each.verdict == wanted)
    return condition(status, "GuardsPassed", true=true, reason=reason, message=message, stamp=stamp)
