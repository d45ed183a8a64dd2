"""Resolves paths in a manifest that is used on this machine; relative paths start at the manifest's folder.

    data/train.jsonl   ./data/   ../models/tiny   ~/models/tiny   /srv/models/tiny   file:data/train.jsonl

become `file:///…`. A model `org/name` is a path if such a folder exists; otherwise it is unchanged and rejected, with
the hub's URI as a suggestion. Clusters receive manifests unchanged, and reject relative paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_api.suggest import is_path

_BELOW = ("model", "output", "data")
_DATA = ("validation", "test", "general")


def resolved(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """Returns the manifest with absolute URIs, even if other parts are not valid."""
    spec = raw.get("spec")
    if not isinstance(spec, dict):
        return raw
    known = {key: spec[key] for key in _BELOW if isinstance(spec.get(key), dict)}
    changed = {key: _with_uri(value, base, must_exist=key == "model") for key, value in known.items()}
    if "data" in changed:
        changed["data"] = _data(changed["data"], base)
    if isinstance(judged := spec.get("evaluation"), dict) and isinstance(judged.get("references"), list):
        absolute = [_with_uri(entry, base) for entry in judged["references"]]
        changed["evaluation"] = {**judged, "references": absolute}
    if isinstance(output := changed.get("output"), dict) and isinstance(output.get("switchTest"), list):
        changed["output"] = {**output, "switchTest": [_text(each, base) for each in output["switchTest"]]}
    if isinstance(kept := spec.get("regularization"), dict) and "replay" in kept:
        changed["regularization"] = {**kept, "replay": _with_uri(kept["replay"], base)}
    if isinstance(earlier := spec.get("continueFrom"), str):
        changed["continueFrom"] = _absolute(earlier, base, must_exist=False)
    return {**raw, "spec": {**spec, **changed}}


def uri_of(text: str) -> str:
    """A plain name of a file is marked as a path, so that it is not taken for a name on the hub."""
    return text if "://" in text or text.startswith((".", "/", "~")) else f"./{text}"


def _data(data: dict[str, Any], base: Path) -> dict[str, Any]:
    one = {key: _with_uri(data[key], base) for key in _DATA if isinstance(data.get(key), dict)}
    several = {
        key: [_with_uri(entry, base) for entry in data[key]]
        for key in ("train", "slices")
        if isinstance(data.get(key), list)
    }
    return {**data, **one, **several}


def _with_uri(value: Any, base: Path, *, must_exist: bool = False) -> Any:
    if not isinstance(value, dict) or not isinstance(value.get("uri"), str):
        return value
    return {**value, "uri": _absolute(value["uri"], base, must_exist=must_exist)}


def _text(value: Any, base: Path) -> Any:
    return _absolute(value, base, must_exist=False) if isinstance(value, str) else value


def _absolute(uri: str, base: Path, *, must_exist: bool) -> str:
    path = uri.removeprefix("file://").removeprefix("file:") if uri.startswith("file:") else uri
    if uri.startswith("file:///") or (path == uri and not is_path(uri)):
        return uri
    where = base.absolute() / Path(path).expanduser()
    named = path.startswith((".", "/", "~")) or path != uri
    if must_exist and not named and not where.exists():
        return uri
    return f"file://{_normal(where)}{'/' if path.endswith('/') else ''}"


def _normal(path: Path) -> str:
    """Removes `.` and `..` lexically, without resolving links."""
    parts: list[str] = []
    for part in path.parts[1:]:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return "/" + "/".join(parts)
