"""Whose Job, and whose pod: by the owner references that the API server and the garbage collector go by. Pure.

Labels are for finding; every user may change them. So the controlling owner decides, by kind, name and uid, and a label
counts only where there is no controller: for the Job of a FineTuneJob that lost its owner reference. A pod without a
controller is not part of a gang. One that the Job controller once made may still train, and is waited for; a copy for
debugging belongs to none. Nor does it belong to a gang when it has all the labels, so that the Job controller adopts
it: without an index that counts for nothing there, and is deleted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune_api import names

Meta = dict[str, Any]

MOST = 10**6
"""Attempts and indices beyond are not the operator's."""


class Kin(NamedTuple):
    """Of a Job: the FineTuneJob that it was made for. Of a pod: that of its Job, by its Job's name."""

    job: str
    """Name of the FineTuneJob; empty: none."""
    job_uid: str
    """Of a pod: by its label, which may be missing."""
    attempt: int
    controller: str = ""
    """Of a pod: uid of its Job; empty: none."""
    stray: bool = False
    """Of a pod: the Job controller did not make it, and does not count it."""


def of_child(meta: Meta) -> Kin:
    labels, controller = meta.get("labels", {}), _controller(meta)
    if controller.get("kind") == names.KIND:
        job, uid = controller.get("name", ""), controller.get("uid", "")
    elif controller:
        return Kin("", "", 0)  # somebody else made it
    else:
        job, uid = labels.get(names.LABEL_JOB, ""), labels.get(names.LABEL_UID, "")
    head, attempt = _split(meta["name"])
    if not labels.get(names.LABEL_PROBE) and head == job:
        return Kin(job, uid, attempt)
    return Kin(job, "", number(labels.get(names.LABEL_ATTEMPT)))


def of_pod(meta: Meta) -> Kin:
    labels, controller = meta.get("labels", {}), _controller(meta)
    job, uid = labels.get(names.LABEL_JOB, ""), labels.get(names.LABEL_UID, "")
    attempt = number(labels.get(names.LABEL_ATTEMPT))
    if labels.get(names.LABEL_PROBE):
        return Kin(job, uid, attempt, controller.get("uid", ""))
    copied = "generateName" not in meta
    if controller.get("kind") != "Job":
        return Kin(job, uid, attempt, stray=copied)
    head, of_name = _split(controller.get("name", ""))
    adopted = copied and names.LABEL_COMPLETION_INDEX not in meta.get("annotations", {})
    return Kin(head or job, uid, of_name, controller.get("uid", ""), stray=adopted)


def index(meta: Meta, spec: dict[str, Any]) -> int:
    """Of a pod in its gang. The Job controller writes it into the host name, which cannot be changed any more."""
    _, by_host = _split(spec.get("hostname", ""), missing=-1)
    return by_host if by_host >= 0 else number(meta.get("labels", {}).get(names.LABEL_COMPLETION_INDEX))


def number(text: str | None) -> int:
    return min(int(text), MOST) if text and text.isascii() and text.isdigit() and len(text) < 64 else 0


def _controller(meta: Meta) -> dict[str, Any]:
    return next((owner for owner in meta.get("ownerReferences", ()) if owner.get("controller")), {})


def _split(name: str, missing: int = 0) -> tuple[str, int]:
    """`cardiology-2` → cardiology, 2."""
    head, dash, tail = name.rpartition("-")
    return (head, number(tail)) if dash and tail.isascii() and tail.isdigit() else (name, missing)
