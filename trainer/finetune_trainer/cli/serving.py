"""`finetune serve-manifest ARTIFACT --for vllm|kserve|dynamo`: what a server reads to serve an artifact, with the base
model's revision pinned and the adapter's rank bound. What the server cannot load is refused."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.compare import uri_of
from finetune_trainer.cli.jobs import Where
from finetune_trainer.methods.servable import Verdict, judge
from finetune_trainer.report.record import read_record
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.headers import read_header
from finetune_trainer.store.manifest import MERGED, Manifest
from finetune_trainer.store.opening import open_folder
from finetune_trainer.switching.artifacts import RANKS

COPIES = "/models"
"""Folder of the server into which is copied what it cannot fetch itself."""
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What is served: an adapter on its base, or a whole model (`rank` None)."""

    name: str
    uri: str
    base: str
    """URI of the base model."""
    revision: str | None
    """Commit of a base model on the hub."""
    rank: int | None
    stops: tuple[int, ...]
    """Tokens at which generation stops, where the base model's configuration does not say so."""

    @property
    def rank_bound(self) -> int:
        """The smallest bound that vLLM takes and the adapter fits in."""
        return next(bound for bound in RANKS if bound >= (self.rank or 1))


Printed = tuple[list[str], dict[str, Any]]
"""Comments, and the document."""


def serve_manifest(target: str, where: Where, *, server: str, whole: bool) -> int:
    """Prints the document. `whole`: the merged model rather than the adapter."""
    uri = uri_of(target, where).rstrip("/")
    comments, document = SERVERS[server](served(open_folder(uri, prefix=names.PREFIX_OUTPUT), uri, whole=whole))
    print("".join(f"# {line}\n" for line in comments) + yaml.safe_dump(document, sort_keys=False, width=120), end="")
    return ExitCode.OK


def served(folder: Folder, uri: str, *, whole: bool) -> Served:
    """Reads what the artifact is. ModelUnsupported, with the reasons, if no server loads it."""
    manifest, record = read_manifest(folder), read_record(folder)
    adapter = ADAPTER[0] in manifest.files
    has_merged = f"{MERGED}/config.json" in manifest.files
    if whole and adapter and not has_merged:
        hint = "Set output.merged: true and train again, or leave out --merged."
        raise FinetuneError(Reason.ModelUnsupported, f"{uri} has no merged model", hint)
    below = f"{MERGED}/" if whole and adapter else ""
    verdict = _judged(folder, manifest, below, kind=record.provenance.model_class)
    if verdict.servable == "hf-only":
        hint = (
            "Its merged model may be served: add --merged."
            if has_merged and not below
            else "Load it as its model card shows, or train with output.merged: true if the method can be merged."
        )
        raise FinetuneError(Reason.ModelUnsupported, f"no server loads {uri}: {'; '.join(verdict.reasons)}", hint)
    base = record.base_of(uri)
    return Served(
        name=record.job.name, uri=f"{uri}/{below}".rstrip("/"), base=base.uri,
        revision=base.revision, rank=_rank(folder) if adapter and not below else None,
        stops=record.eos_token_ids,
    )  # fmt: skip


def _rank(folder: Folder) -> int:
    return int(json.loads(folder.read(ADAPTER[0]))["r"])


def _judged(folder: Folder, manifest: Manifest, below: str, *, kind: str) -> Verdict:
    """The verdict of `methods.servable` on the artifact's files, of whose weights only headers are read."""
    present = [name.removeprefix(below) for name in manifest.files if name.startswith(below)]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            for name in present:
                if "/" not in name:
                    (Path(temporary) / name).write_bytes(_judged_by(folder, below, name))
            return judge(Path(temporary), kind=kind, beside=present)
    except (OSError, ValueError, KeyError) as error:
        message = f"the files of {folder.uri} cannot be read: {error}"
        raise FinetuneError(Reason.DataUnreadable, message, f"See `finetune verify {folder.uri}`.") from error


def _judged_by(folder: Folder, below: str, name: str) -> bytes:
    """As much of a file as the verdict depends on; of most only the name counts."""
    if name in (ADAPTER[0], "config.json"):
        return folder.read(below + name)
    return _head(folder, below + name) if name == ADAPTER[1] else b""


def _head(folder: Folder, path: str) -> bytes:
    """A safetensors file up to its first weight."""
    entry = folder.stat(path)
    if entry is None:
        raise FinetuneError(Reason.DataNotFound, f"{folder.uri}/{path} is missing", "See `finetune verify`.")
    parts: list[bytes] = []

    def read(start: int, stop: int) -> bytes:
        parts.append(folder.read_range(entry, start, stop))
        return parts[-1]

    read_header(read, size=entry.size, file=path)
    return b"".join(parts)


def vllm(given: Served) -> Printed:
    """The configuration file of `vllm serve --config FILE`."""
    comments = ["vllm serve --config FILE"]
    folder = _local(given.uri, given.name, comments)
    if given.rank is None:
        return comments, {"model": folder, "served-model-name": given.name}
    document: dict[str, Any] = {"model": given.base.removeprefix("hf://"), "revision": given.revision}
    if not given.base.startswith("hf://"):
        document = {"model": _local(given.base, "base", comments)}
    document |= {"enable-lora": True, "max-lora-rank": given.rank_bound, "lora-modules": f"{given.name}={folder}"}
    if given.stops:
        document["generation-config"] = folder
    return comments, {key: value for key, value in document.items() if value is not None}


def _local(uri: str, name: str, comments: list[str]) -> str:
    """The folder that the server reads."""
    if uri.startswith("file://"):
        return uri.removeprefix("file://")
    comments.append(f"Copy {uri} to {COPIES}/{name} first: vLLM reads it from a folder.")
    return f"{COPIES}/{name}"


KSERVE_READS = ("hf://", "s3://", "pvc://")
"""What the storage initializer of an LLMInferenceService fetches."""


def kserve(given: Served) -> Printed:
    """An LLMInferenceService of KServe, whose fields are those of its v1alpha1 types; no KServe was run."""
    comments = ["Not tested on a cluster. Add GPUs in spec.template, and spec.router to expose it."]
    if given.rank is None:
        model: dict[str, Any] = {"uri": _fetched(given.uri), "name": given.name}
    else:
        revision = f":{given.revision}" if given.base.startswith("hf://") and given.revision else ""
        model = {
            "uri": _fetched(given.base) + revision,
            "name": given.base.rstrip("/").removeprefix("hf://").rpartition("://")[2],
            "lora": {
                "adapters": [{"name": given.name, "uri": _fetched(given.uri)}],
                "maxRank": given.rank_bound,
            },
        }
        if given.stops:
            comments.append(
                f"Requests must set stop_token_ids: {list(given.stops)}: the base model does not stop there."
            )
    return comments, {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "LLMInferenceService",
        "metadata": {"name": given.name},
        "spec": {"model": model, "replicas": 1},
    }


def _fetched(uri: str) -> str:
    if not uri.startswith(KSERVE_READS):
        message = f"KServe's storage initializer does not fetch {uri}"
        hint = f"Copy it to {', '.join(KSERVE_READS[1:-1])} or {KSERVE_READS[-1]}, and use that URI."
        raise FinetuneError(Reason.ModelUnsupported, message, hint)
    return uri


DYNAMO_READS = ("hf://", "s3://")
"""What a DynamoModel fetches."""


def dynamo(given: Served) -> Printed:
    """A DynamoModel of NVIDIA Dynamo, which loads an adapter into a deployment of its base model. Its keys are those of
    the v1alpha1 types; no Dynamo was run."""
    if given.rank is None:
        message = f"{given.uri} is a whole model, and a DynamoModel loads LoRA adapters"
        raise FinetuneError(Reason.ModelUnsupported, message, "Use it as --model of a worker, or serve the adapter.")
    if not given.uri.startswith(DYNAMO_READS):
        hint = f"Copy it to {' or '.join(DYNAMO_READS)}, and use that URI."
        raise FinetuneError(Reason.ModelUnsupported, f"Dynamo does not fetch {given.uri}", hint)
    base = given.base.rstrip("/").rpartition("://")[2]
    worker = f"--model {base} --enable-lora --max-lora-rank {given.rank_bound}"
    if given.base.startswith("hf://") and given.revision:
        worker += f" --revision {given.revision}"
    comments = [
        "Not tested with Dynamo. It needs a DynamoGraphDeployment whose worker has",
        f"  modelRef: {{name: {base}}}, DYN_LORA_ENABLED=true, and the arguments {worker}",
    ]
    if given.stops:
        comments.append(f"Requests must set stop_token_ids: {list(given.stops)}: the base model does not stop there.")
    return comments, {
        "apiVersion": "nvidia.com/v1alpha1",
        "kind": "DynamoModel",
        "metadata": {"name": given.name},
        "spec": {
            "modelName": given.name,
            "baseModelName": base,
            "modelType": "lora",
            "source": {"uri": given.uri},
        },
    }


SERVERS: Mapping[str, Callable[[Served], Printed]] = {"vllm": vllm, "kserve": kserve, "dynamo": dynamo}
