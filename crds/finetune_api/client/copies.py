"""Manifests of jobs that are created again, or cloned. Pure: nothing is asked of a cluster."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_api import manifest
from finetune_api.failures import FinetuneError, Reason
from finetune_api.job import FineTuneJob

Source = Path | str | Mapping[str, Any] | FineTuneJob
"""A manifest: a path, YAML text (with more than one line), an object, or a typed job."""

OF_KUBECTL = "kubectl.kubernetes.io/last-applied-configuration"


def read(source: Source) -> dict[str, Any]:
    """The manifest as it was written. ManifestError, with every problem, if the API server would refuse it."""
    if isinstance(source, FineTuneJob):
        written = source.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
        raw = {"apiVersion": source.api_version, "kind": source.kind, "spec": written["spec"]}
        raw["metadata"] = {key: value for key, value in written["metadata"].items() if key in _KEPT}
    elif isinstance(source, Mapping):
        raw = copy.deepcopy(dict(source))
    else:
        raw = manifest.parse(source if isinstance(source, str) and "\n" in source else _text(Path(source)))
    if problems := manifest.validate(raw):
        raise manifest.ManifestError(problems)
    return raw


_KEPT = ("name", "namespace", "labels", "annotations")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise manifest.ManifestError((manifest.Problem("", f"cannot read {path}: {why}"),)) from error


def again(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest from which the same job can be created after it was deleted."""
    metadata = raw["metadata"]
    kept = {key: copy.deepcopy(metadata[key]) for key in _KEPT if metadata.get(key)}
    kept.get("annotations", {}).pop(OF_KUBECTL, None)
    kept = {key: value for key, value in kept.items() if value}
    spec = copy.deepcopy(dict(raw["spec"]))
    spec.pop("suspend", None)
    return {"apiVersion": raw["apiVersion"], "kind": raw["kind"], "metadata": kept, "spec": spec}


def clone(raw: Mapping[str, Any], new_name: str, *, output: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The job under another name, with its own output folder and changed settings: `{"training.epochs": 5}`."""
    made = again(raw)
    old_name, spec = made["metadata"]["name"], made["spec"]
    made["metadata"]["name"] = new_name
    for path, value in settings.items():
        _set(spec, path.removeprefix("spec."), value)
    if output is not None:
        _set(spec, "output.uri", output)
    elif "output" in spec and "output.uri" not in settings:
        spec["output"]["uri"] = _renamed(spec["output"]["uri"], old_name, new_name)
    if problems := manifest.validate(made):
        raise manifest.ManifestError(problems)
    return made


def value_of(text: str) -> Any:
    """A YAML value, read as in a manifest: `1e-4` is a number, `[a, b]` a list."""
    document = manifest.parse(f"spec:\n  value: {text}")
    return document["spec"]["value"]


def _renamed(uri: str, old: str, new: str) -> str:
    """s3://corp/models/tickets → s3://corp/models/tickets-2."""
    renamed = re.sub(rf"(?<=/){re.escape(old)}(/?)$", rf"{new}\1", uri)
    if renamed == uri:
        message = f"{uri} is the output of {old}: the new job needs a folder of its own"
        raise FinetuneError(Reason.OutputExists, message, f"Name it: finetune clone {old} {new} --to URI.")
    return renamed


def _set(spec: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node = spec
    for number, key in enumerate(parents):
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            where = ".".join(["spec", *parents[: number + 1]])
            message = f"{where} is not an object, so {path} cannot be set"
            hint = "Set the whole field, or edit the manifest: finetune clone NAME NEW_NAME --print > job.yaml."
            raise FinetuneError(Reason.InvalidSpec, message, hint)
    node[last] = value
