"""The manifests that follow from one with `method.type: auto`: of a rung, and of the run that publishes the best."""

from __future__ import annotations

import json
import re
from typing import Any

from finetune_api import manifest
from finetune_api.diagnostics import without_diagnostics
from finetune_api.generation import GENERATION_GUARDS
from finetune_api.job import FineTuneJob
from finetune_api.manifest import ManifestError
from finetune_api.methods import TRAITS
from finetune_api.names import API_VERSION, KIND
from finetune_api.rules import STEPPED
from finetune_api.rung_pods import for_rung

_GATES = ("forgetting", "slices", "calibration")
"""Guards that a rung has to keep; minGain is for the published run, on the test rows."""


def rung_uid(uid: str, method: str) -> str:
    return f"{uid}-{method}"


def of_candidate(rung: FineTuneJob, factor: float) -> FineTuneJob:
    """A rung at a multiple of its default learning rate: a run of its own, in the same folder."""
    if factor == 1:
        return rung
    uid = f"{rung.metadata.uid}-x{factor:g}".replace(".", "-")
    return rung.model_copy(update={"metadata": rung.metadata.model_copy(update={"uid": uid})})


def factor_of(uid: str, *, of: str) -> float | None:
    """The factor of a candidate by its UID, where `of` is that of the rung; None for another run's."""
    if uid == of:
        return 1.0
    found = re.fullmatch(re.escape(of) + r"-x([\d-]+)(e-\d+)?", uid)
    return float(found[1].replace("-", ".") + (found[2] or "")) if found else None


def rung_uri(output: str, uid: str, method: str) -> str:
    """The output folder of a rung."""
    return f"{folder_uri(output, uid)}/{method}"


def folder_uri(output: str, uid: str) -> str:
    """The folder of all rungs."""
    return f"{output.rstrip('/')}/.finetune/{uid}/rungs"


def of_rung(job: FineTuneJob, method: str) -> FineTuneJob:
    """A rung writes an artifact into a folder of its own, with its records. ManifestError where it would not be valid,
    such as a probe for rows without labels."""
    spec = without_diagnostics(_of_method(job, method), method, published=False)
    silent = not TRAITS[method].generates  # stays invalid where text is to be generated
    if "evaluation" in spec and not silent:
        spec["evaluation"].pop("generate", None)
    kept = (*_GATES, *GENERATION_GUARDS) if silent else _GATES
    guards = {name: settings for name, settings in spec.pop("guards", {}).items() if name in kept}
    if guards:
        spec["guards"] = {**guards, "onViolation": "warn", "onInconclusive": "pass"}
    uri = rung_uri(job.spec.output.uri, job.metadata.uid, method)
    spec["output"] = {**spec["output"], "uri": uri, "overwrite": False}
    return job_with(job, spec, uid=rung_uid(job.metadata.uid, method))


def of_fold(rung: FineTuneJob, index: int, count: int) -> FineTuneJob:
    """The run of a rung that does not train on one of so many parts of the training rows. It decides nothing else."""
    spec = rung.spec.model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude_defaults=True, exclude_none=True
    )
    spec.pop("guards", None)
    spec["output"] = {**spec["output"], "uri": f"{rung.spec.output.uri}/folds/{count}/{index}"}
    return job_with(rung, spec, uid=f"{rung.metadata.uid}-fold{index}of{count}")


def of_best(job: FineTuneJob, method: str) -> FineTuneJob:
    """The run that measures all held-out rows with the best rung's weights, and publishes them."""
    spec = without_diagnostics(_of_method(job, method), method, published=True)
    return job_with(job, spec, uid=job.metadata.uid)


def _of_method(job: FineTuneJob, method: str) -> dict[str, Any]:
    # Without defaults, which a plan spells out: the rules would take them for what the manifest asks for.
    spec = for_rung(job.spec, method).model_dump(
        mode="json", by_alias=True, exclude_unset=True, exclude_defaults=True, exclude_none=True
    )  # fmt: skip
    spec.pop("ladder", None)
    spec["method"] = {"type": method}
    if not TRAITS[method].steps:  # each row once and unchanged
        spec.pop("checkpoint", None)
        spec.pop("regularization", None)
        training = {name: value for name, value in spec.pop("training", {}).items() if name not in STEPPED}
        training.pop("skipBadBatch", None)
        spec |= {"training": training} if training else {}
        spec["data"] = {name: value for name, value in spec["data"].items() if name not in ("augmentation", "mixing")}
        train = [{k: v for k, v in source.items() if k != "weight"} for source in spec["data"]["train"]]
        spec["data"]["train"] = train
    return spec


def job_with(job: FineTuneJob, spec: dict[str, Any], *, uid: str) -> FineTuneJob:
    """The job with another spec and UID. ManifestError where the spec is not valid."""
    raw = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": job.metadata.name}, "spec": spec}
    if problems := manifest.validate(raw):
        raise ManifestError(problems)
    made = FineTuneJob.model_validate_json(json.dumps(raw))
    return made.model_copy(update={"metadata": job.metadata.model_copy(update={"uid": uid})})
