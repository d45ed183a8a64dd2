"""Everything that a pod says, read strictly: its termination message and its answer to /progress. Pure.

What runs in a pod is a user's program, so both are as trustworthy as a form on the internet. What is read here is
bounded in every way (bytes, depth, numbers of things, lengths, ranges), so that whatever follows may use it as it is:

    text       printable, redacted and short; a name with a control character in it is refused
    numbers    finite; integers from 0 to 2^53, and what makes sense for the field
    times      from 2000 to 2100, or none
    reasons    those that an agent can know of. The class is the reason's, whatever the message says
    artifacts  see `below`
    results    unpacked within bounds, then judged like everything else

What breaks a rule is refused as a whole: a pod that is not understood is judged by its exit code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import orjson
from pydantic import ValidationError

from finetune_api.base import ApiModel
from finetune_api.failures import OF_THE_OPERATOR, Reason, TerminationMessage, class_of
from finetune_api.listmaps import duplicates
from finetune_api.plan import ProgressReport
from finetune_api.results import unpacked, unpacked_ladder
from finetune_api.status import Artifact, Candidate, FailureClass
from finetune_api.text import clean, one_line

from .timestamps import parse_time

LIMIT = 64 * 1024
"""Bytes of a report or of a termination message. With 32 slices, 31 earlier tasks and a ladder a report has 40 KiB."""

DEPTH, WIDTH, THINGS = 8, 96, 4096
"""Of nested objects and lists; entries of one; values in all."""

LARGEST = 2**53
"""Integers beyond are not the same in every JSON reader, the API server's among them."""

TEXTS = {"message": 3000, "hint": 600}
"""Characters of the fields that are written for people."""

NAME = 2048
"""Characters of all other strings."""

RANGES: dict[str, int] = {
    "attempt": 1_000_000,
    "percent": 100,
    "exitCode": 255,
    "rank": 2**20,
    "node": 2**20,
    "worldSize": 2**20,
    "etaSeconds": 10 * 365 * 86400,
    "microBatchTokens": 2**31,
    "longestRow": 2**31,
    "trainedLayers": 2**16,
}
"""The most that makes sense."""


class MalformedReport(Exception):
    """Not what an agent says; the message is one short line."""


def termination_message(text: str) -> TerminationMessage | None:
    """None if this is not an agent's termination message: the container died before it could write one."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        told = _object(text.encode("utf-8", "surrogatepass"), TerminationMessage, unpack=True)
        told.update(_class(told.get("class"), told.get("reason")))
        told["time"] = told["time"] if parse_time(_text(told.get("time"))) else ""
        told["checkpointTime"] = told["checkpointTime"] if parse_time(_text(told.get("checkpointTime"))) else ""
        return TerminationMessage.model_validate_json(orjson.dumps(told))
    except (MalformedReport, ValidationError):
        return None


def progress_report(data: bytes, *, attempt: int, uid: str, nonce: str) -> ProgressReport:
    """MalformedReport if this is not a report of that attempt. `nonce`: its plan's; empty if an older operator made
    the plan, whose agents say neither uid nor nonce."""
    try:
        told = _object(data, ProgressReport)
        if not isinstance(told.get("phase"), str) or not re.fullmatch(r"[A-Za-z]{1,32}", told["phase"]):
            raise MalformedReport("phase: not one of an agent's phases")
        if isinstance(told.get("progress"), dict):
            told["progress"].pop("lastUpdateTime", None)  # the operator's to tell
            _times(told["progress"], "lastCheckpointTime")
        report = ProgressReport.model_validate_json(orjson.dumps(told))
    except ValidationError as error:
        raise MalformedReport(first_of(error)) from None
    if report.attempt != attempt:
        raise MalformedReport(f"it is of attempt {report.attempt}, and attempt {attempt} was asked for")
    if (report.uid is not None and report.uid != uid) or (nonce and report.nonce != nonce):
        raise MalformedReport("it comes from another job's agent, or from a trainer image older than the operator")
    return report


def below(artifact: Artifact | Candidate | None, output: str | None) -> bool:
    """It is in the folder that the manifest names, or below it."""
    if artifact is None or output is None or re.search(r"[?#%\\\s]|/\.{1,2}(/|$)", artifact.uri):
        return False
    return f"{artifact.uri.rstrip('/')}/".startswith(f"{output.rstrip('/')}/")


def first_of(error: ValidationError) -> str:
    """What was wrong first, in a short line."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return one_line(f"{'.'.join(map(str, found['loc']))}: {found['msg']}")


def _object(data: bytes, model: type[ApiModel], *, unpack: bool = False) -> dict[str, Any]:
    if len(data) > LIMIT:
        raise MalformedReport(f"longer than {LIMIT // 1024} KiB")
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        raise MalformedReport("not valid JSON") from None
    if not isinstance(found, dict):
        raise MalformedReport("not a JSON object")
    if unpack and (results := found.pop("results", None)) is not None:
        found["evaluation"] = _unpacked(results)
    if unpack and (ladder := found.pop("packedLadder", None)) is not None:
        found["ladder"] = _unpacked(ladder, unpacked_ladder)
    left = [THINGS]
    checked: dict[str, Any] = _checked("", found, 0, left)
    if twice := next(duplicates(checked, model, ""), None):  # the API server would refuse a status with it
        raise MalformedReport(f"{twice[0]}: two of one name")
    return checked


def _unpacked(text: object, unpack: Callable[[str], ApiModel] = unpacked) -> dict[str, Any]:
    """What is inside; it is then judged as if it had been written out."""
    if not isinstance(text, str):
        raise MalformedReport("packed results: not text")
    try:
        return unpack(text).to_json()
    except ValueError as error:
        raise MalformedReport(one_line(f"packed results: {error}")) from None


def _checked(name: str, value: Any, depth: int, left: list[int]) -> Any:
    """The value as it may be used. MalformedReport at the first thing that may not."""
    left[0] -= 1
    if depth > DEPTH or left[0] < 0:
        raise MalformedReport("too deep, or too much of it")
    if isinstance(value, dict):
        if len(value) > WIDTH:
            raise MalformedReport(f"{one_line(name, 40)}: more than {WIDTH} fields")
        # Models take their fields by Python's names too; agents write only those of JSON.
        return {key: _checked(key, each, depth + 1, left) for key, each in value.items() if "_" not in key}
    if isinstance(value, list):
        if len(value) > WIDTH:
            raise MalformedReport(f"{one_line(name, 40)}: more than {WIDTH} entries")
        return [_checked(name, each, depth + 1, left) for each in value]
    if isinstance(value, str):
        return _string(name, value)
    if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value <= RANGES.get(name, LARGEST):
        raise MalformedReport(f"{one_line(name, 40)}: out of range")
    if isinstance(value, float) and not math.isfinite(value):
        raise MalformedReport(f"{one_line(name, 40)}: not a finite number")
    return value


def _string(name: str, value: str) -> str:
    if name in TEXTS:
        return clean(value, TEXTS[name])
    if len(value) > NAME or not value.isprintable():
        raise MalformedReport(f"{one_line(name, 40)}: too long, or with control characters")
    return value


def _times(told: dict[str, Any], name: str) -> None:
    """Written as the API server takes it, or left out if it is not a time."""
    moment = parse_time(_text(told.pop(name, None)))
    if moment is not None:
        told[name] = moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _class(said: object, reason: object) -> dict[str, str | None]:
    """The class that goes with a reason, whichever was said."""
    try:
        if said is not None:
            FailureClass(_text(said))
        if reason is None or (reason == Reason.Succeeded.value and said is None):  # a run that ended well has no class
            return {"class": None}
        known = Reason(_text(reason))
        failure_class = class_of(known)
    except (ValueError, KeyError):
        raise MalformedReport("class or reason: not a failure's") from None
    if known in OF_THE_OPERATOR:
        raise MalformedReport("reason: not an agent's")
    return {"class": failure_class.value}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
