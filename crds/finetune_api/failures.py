"""Failures: the classes, reasons, hints and exit codes that status, log and terminal share.

Every failure has a class (whether it is retried), a reason (what alerts match on) and a hint (how to fix it). The names
are in `reasons`, their properties in `classes`; both can be imported from here.
"""

from __future__ import annotations

from pydantic import Field

from .base import ApiModel
from .classes import (
    CLASSES,
    HELD,
    NODE_NOT_TO_BLAME,
    OF_THE_COMMAND,
    OF_THE_OPERATOR,
    WAITED_FOR,
    class_of,
    default_reason,
    exit_code_of,
    hint_of,
)
from .ladder import LadderStatus
from .measurements import Evaluation
from .names import TERMINATION_LIMIT
from .reasons import ExitCode, FailureClass, Reason
from .results import packed, packed_ladder, unpacked, unpacked_ladder
from .rung_pods import RungName
from .status import Artifact, Candidate, ResolvedPlan

__all__ = [
    "CLASSES",
    "HELD",
    "NODE_NOT_TO_BLAME",
    "OF_THE_COMMAND",
    "OF_THE_OPERATOR",
    "WAITED_FOR",
    "ExitCode",
    "FailureClass",
    "FinetuneError",
    "Reason",
    "TerminationMessage",
    "class_of",
    "default_reason",
    "exit_code_of",
    "hint_of",
]  # fmt: skip


class FinetuneError(Exception):
    """A failure with a readable message (what failed, and where) and a hint (how to fix it)."""

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint or hint_of(reason)

    @property
    def failure_class(self) -> FailureClass:
        return class_of(self.reason)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.reason)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message} ({self.hint})"


class TerminationMessage(ApiModel):
    """The termination message of an agent: cause of failure, and results. At most 4096 bytes of JSON."""

    failure_class: FailureClass | None = Field(None, alias="class")
    reason: Reason | None = None
    message: str = ""
    hint: str = ""
    exit_code: int = 0
    rank: int | None = None
    """Global rank of the process that failed first, if a process is the cause."""
    node: int = 0
    """Node rank of the agent that wrote the message."""
    time: str = ""
    """RFC 3339, UTC: when the failure occurred. Used to find the first failure."""
    step: int | None = None
    checkpoint_time: str = ""
    """RFC 3339: when the attempt's last checkpoint was complete, as far as this agent knows."""
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    results: str | None = None
    """The evaluation where it does not fit as it is; see results."""
    artifact: Artifact | None = None
    candidate: Candidate | None = None
    ladder: LadderStatus | None = None
    packed_ladder: str | None = None
    """The ladder where it does not fit as it is."""
    next_rung: RungName | None = None
    """Of a ladder that needs other pods to continue: for this rung."""

    def encode(self) -> str:
        """Returns JSON that fits into a termination message: packs the evaluation, drops the plan (the last progress
        report has it), shortens texts and the ladder and packs it, then drops as many data sets as it must, the last
        ones first, then the ladder. The guards stay longest."""
        words = self
        for shorter in _SHORTER:
            words = shorter(words)
            text = words.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
            if len(text.encode()) <= TERMINATION_LIMIT:
                return text
        raise AssertionError("a message of a thousand characters fits")

    def whole(self) -> TerminationMessage:
        """With evaluation and ladder unpacked. ValueError if they are not what they should be."""
        update: dict[str, object] = {"results": None, "packed_ladder": None}
        if self.results is not None:
            update["evaluation"] = unpacked(self.results)
        if self.packed_ladder is not None:
            update["ladder"] = unpacked_ladder(self.packed_ladder)
        return self.model_copy(update=update)


def _as_is(words: TerminationMessage) -> TerminationMessage:
    return words


def _packed(words: TerminationMessage) -> TerminationMessage:
    if words.evaluation is None:
        return words
    return words.model_copy(update={"evaluation": None, "results": packed(words.evaluation)})


def _without_plan(words: TerminationMessage) -> TerminationMessage:
    return words.model_copy(update={"plan": None})


def _with_short_text(words: TerminationMessage) -> TerminationMessage:
    message = words.message if len(words.message) <= 600 else f"{words.message[:300]} … {words.message[-290:]}"
    return words.model_copy(update={"message": message.encode("ascii", "replace").decode(), "hint": words.hint[:200]})


def _with_short_ladder(words: TerminationMessage) -> TerminationMessage:
    return words if words.ladder is None else words.model_copy(update={"ladder": words.ladder.short()})


def _with_packed_ladder(words: TerminationMessage) -> TerminationMessage:
    if words.ladder is None:
        return words
    return words.model_copy(update={"ladder": None, "packed_ladder": packed_ladder(words.ladder)})


def _without_ladder(words: TerminationMessage) -> TerminationMessage:
    return words.model_copy(update={"packed_ladder": None})


def _with_fewer_results(words: TerminationMessage) -> TerminationMessage:
    """As many data sets as fit, each with its negative transfer, and how many do not: those that are judged first
    stay. Unchanged if everything else is too long without any."""
    if words.results is None:
        return words
    found = unpacked(words.results)
    bare = words.model_copy(update={"results": None})
    left = TERMINATION_LIMIT - len(bare.model_dump_json(by_alias=True, exclude_none=True).encode()) - 16
    for count in range(len(found.data) - 1, -1, -1):
        fewer = packed(_of_the_first(found, count))
        if len(fewer) <= left:
            return words.model_copy(update={"results": fewer})
    return words


def _of_the_first(found: Evaluation, count: int) -> Evaluation:
    data = found.data[:count]
    slices = {each.name for each in data if each.kind == "slice"}
    flags = tuple(each for each in found.negative_transfer if each.slice in slices)
    return found.model_copy(
        update={"data": data, "negative_transfer": flags, "omitted": len(found.data) - count + (found.omitted or 0)}
    )


def _with_guards_alone(words: TerminationMessage) -> TerminationMessage:
    if words.results is None:
        return words
    found = unpacked(words.results)
    guards = Evaluation(guards=found.guards, remedies=found.remedies, omitted=len(found.data) + (found.omitted or 0))
    return words.model_copy(update={"results": packed(guards)})


def _without_remedies(words: TerminationMessage) -> TerminationMessage:
    if words.results is None:
        return words
    found = unpacked(words.results)
    return words.model_copy(update={"results": packed(found.model_copy(update={"remedies": ()}))})


_SHORTER = (
    _as_is, _packed, _without_plan, _with_short_ladder, _with_short_text, _with_packed_ladder, _with_fewer_results,
    _without_ladder, _with_fewer_results, _with_guards_alone,
    _without_remedies,
)  # fmt: skip
