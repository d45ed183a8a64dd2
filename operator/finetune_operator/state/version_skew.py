"""Versions that differ: a CRD newer than this operator, or a status that a newer operator wrote. Pure.

What the API server accepted and this operator does not understand was made for another version. It is not the user's
mistake, so it fails no job; and it is not ignored, because a run without it would be another run. Such a job is held
(policies.newer_version). What can be read of a status is read, and the rest is kept for the version that wrote it.
"""

from __future__ import annotations

import copy
from typing import Any

import orjson
from pydantic import ValidationError

from finetune_api import manifest, names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus

DECISIVE = ("phase", "attempt", "nodes", "restarts")
"""Parts of a status without which nothing can be decided."""

KEPT_BELOW = ("restarts",)
"""Parts whose unknown fields stay though others change: counters, of which each is by itself."""

TRIES = 8

Json = dict[str, Any]


def read_status(raw: Json) -> tuple[FineTuneJobStatus, str, Json]:
    """The status as far as it can be read; what decisive part cannot be, if one; and all that is left out."""
    if not isinstance(raw, dict):
        raise TypeError(f"status is {type(raw).__name__}, not an object")
    known, strange = copy.deepcopy(raw), ""
    for _ in range(TRIES):
        try:
            status = FineTuneJobStatus.model_validate_json(orjson.dumps(known))
            return status, strange, _beyond(raw, status.to_json())
        except ValidationError as error:
            for detail in sorted(error.errors(include_url=False), key=lambda each: str(each["loc"]), reverse=True):
                if detail["loc"] and detail["loc"][0] in DECISIVE:
                    where = ".".join(map(str, detail["loc"]))
                    strange = strange or f"status.{where}: {orjson.dumps(detail['input'], default=str).decode()[:200]}"
                _without(known, detail["loc"], missing=detail["type"] == "missing")
    return FineTuneJobStatus(), strange or "status", raw


def merged(status: FineTuneJobStatus, before: FineTuneJobStatus, left_out: Json) -> Json:
    """The status to write, with what a newer version wrote: below a part only as long as that part is the same."""
    new, old = status.to_json(), before.to_json()
    for key, value in left_out.items():
        if key not in new:
            if key not in old:
                new[key] = value
        elif isinstance(value, dict) and isinstance(new[key], dict) and (key in KEPT_BELOW or new[key] == old.get(key)):
            new[key] = _filled(new[key], value)
    return new


def not_understood(raw: Json, spec: FineTuneJobSpec | None, *, thoroughly: bool) -> str:
    """What of a spec that the API server took means nothing to this version; empty if all of it does. A rule that the
    API server cannot judge is judged here: a user who breaks it has made a mistake."""
    unknown = list(manifest.unknown_fields(raw))
    if spec is None or thoroughly:
        head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "x"}}
        problems = manifest.validate(head | {"spec": raw})
        if any(problem.message in manifest.JUDGED_BY_US for problem in problems):
            return ""
        unknown = list(problems)
    return "; ".join(map(str, unknown))


def _beyond(raw: Json, known: Json) -> Json:
    """What of `raw` is not in `known`."""
    found: Json = {}
    for key, value in raw.items():
        if key not in known:
            found[key] = value
        elif isinstance(value, dict) and isinstance(known[key], dict) and (below := _beyond(value, known[key])):
            found[key] = below
    return found


def _filled(value: Json, more: Json) -> Json:
    return {key: more[key] for key in more if key not in value} | {
        key: _filled(below, more[key]) if isinstance(below, dict) and isinstance(more.get(key), dict) else below
        for key, below in value.items()
    }


def _without(known: Any, location: tuple[int | str, ...], *, missing: bool) -> None:
    """Takes out what is at the location, or where something is missing whatever lacks it."""
    path = [*location][:-1] if missing else [*location]
    if not path:
        known.clear()
        return
    try:
        for part in path[:-1]:
            known = known[part]
        del known[path[-1]]
    except (KeyError, IndexError, TypeError):
        return  # it went with something above it
