"""Suggestions for unknown fields and URIs: names used by other tools, URIs without a scheme."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from . import uris

_ELSEWHERE = {
    "r": "rank", "lorar": "rank", "lorarank": "rank", "loraalpha": "alpha", "loradropout": "dropout",
    "targetmodules": "targets", "loratargetmodules": "targets", "userslora": "rsLora", "lr": "learningRate",
    "numtrainepochs": "epochs", "numepochs": "epochs", "nepochs": "epochs", "trainbatchsize": "batchSize",
    "perdevicetrainbatchsize": "batchSize", "globalbatchsize": "batchSize", "maxseqlength": "sequenceLength",
    "maxseqlen": "sequenceLength", "maxlength": "sequenceLength", "seqlen": "sequenceLength",
    "cutofflen": "sequenceLength",
    "modelnameorpath": "uri", "name": "uri", "path": "uri", "url": "uri", "datasetname": "uri", "outputdir": "uri",
    "lrschedulertype": "schedule", "lrscheduler": "schedule", "optim": "optimizer",
    "numnodes": "nodes", "nnodes": "nodes", "nprocpernode": "processesPerNode", "samplepacking": "packing",
    "evalsteps": "evaluateEvery",
    "gradientcheckpointing": "activationCheckpointing", "savetotallimit": "keep", "savesteps": "every",
}  # fmt: skip
"""Field names of PEFT, transformers, torchrun and other trainers, in lower case and without punctuation."""

_SHORTEST = re.compile(r"^(s3|gs|az)://(?P<bucket>[^/]*)")
_PAIR = re.compile(r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
_HUB_PAGE = re.compile(r"^https?://(www\.)?(huggingface\.co|hf\.co)/(?P<path>datasets/[^/]+/[^/]+|[^/]+/[^/]+)")
_SCHEME = re.compile(r"^[a-z][a-z0-9+]*:")

URIS = (uris.MODEL, uris.DATA, uris.OUTPUT)


def field(key: str, fields: Collection[str]) -> str:
    """Returns the most similar field that exists; empty if there is none."""
    plain = {_plain(name): name for name in fields}
    other = _ELSEWHERE.get(_plain(key), "")
    near = difflib.get_close_matches(key, fields, n=1)
    return plain.get(_plain(key)) or (other if other in fields else "") or (near[0] if near else "")


def uri(given: object, pattern: str) -> str:
    """Returns a suggestion for an unsupported URI, to be appended to the error message; empty if there is none."""
    if not isinstance(given, str) or pattern not in URIS:
        return ""
    kind = "datasets/" if pattern == uris.DATA else ""
    if page := _HUB_PAGE.match(given):
        return _meant(f"hf://{page['path']}", pattern)
    if given.startswith("/"):
        return _meant(f"file://{given}", pattern)
    if bucket := _SHORTEST.match(given):
        name = bucket["bucket"]
        return f"; bucket {name!r} has fewer than 3 characters" if len(name) < 3 else ""
    if given.startswith("file:") or (is_path(given) and not (pattern == uris.MODEL and _PAIR.match(given))):
        hub = f", or hf://{kind}{given} on the hub" if kind and _PAIR.match(given) else ""
        return (
            "; this is a relative path, which only local commands resolve (from the manifest's folder); "
            f"pods need a URI that they can reach{hub}"
        )
    return _meant(f"hf://{kind}{given}", pattern) if _PAIR.match(given) else ""


def is_path(text: str) -> bool:
    """Whether the text is a path rather than a URI."""
    return bool(text) and not _SCHEME.match(text) and not re.search(r"\s", text)


def _meant(text: str, pattern: str) -> str:
    return f"; did you mean {text}?" if re.match(pattern, text) else ""


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
