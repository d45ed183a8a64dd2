"""The base model as a local folder: downloaded once where it is remote, used in place where it is not, checked always.

The checks read a few kilobytes: is it a causal language model, are all its weights there, whole and in safetensors?
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_api import names, uris
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource

from .fetch import fetch_folder
from .folder import NotFound
from .hub import Hub, explain
from .local import os_errors
from .samples import sampled

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")
"""Weights, configuration and every form of tokenizer; never pickles, never Python."""
_NOT = ("*/*", "consolidated*")
"""Other formats of the same weights: subfolders such as onnx/ and original/, and Mistral's own file."""

_CAUSAL = ("ForCausalLM", "GPT2LMHeadModel")
_INDEX = "model.safetensors.index.json"
_AGAIN = "Download or upload the model again."


@dataclass(frozen=True)
class LocalModel:
    path: Path
    revision: str | None
    """The commit of a hub model; None elsewhere."""
    uri: str

    def digests(self) -> dict[str, str]:
        """By file name, of all that a run reads of it: another one means other content (see samples)."""
        with os_errors("read", self.uri):
            return sampled([file for file in _read_later(self.path) if not file.name.startswith("LICENSE")])


def resolve_model(source: ModelSource, *, cache: Path, environ: Mapping[str, str] = os.environ) -> LocalModel:
    """ModelNotFound, ModelUnsupported, CredentialsMissing, CredentialsRejected, StorageUnavailable."""
    uri = uris.parse(source.uri)
    if uri.scheme == "hf":
        path = _from_hub(f"{uri.authority}/{uri.path}", source, cache=cache, environ=environ)
        revision: str | None = path.name  # the hub's cache names a snapshot by its commit
    else:
        try:
            path = fetch_folder(source.uri, prefix=names.PREFIX_MODEL, cache=cache, patterns=_PATTERNS, environ=environ)
        except NotFound as error:
            raise FinetuneError(Reason.ModelNotFound, error.message) from error
        revision = None
    check_model(path, source.uri)
    return LocalModel(path, revision, source.uri)


def check_model(path: Path, uri: str) -> None:
    """ModelNotFound if the folder holds no model, ModelUnsupported if it is not one that can be tuned,
    CredentialsRejected for files that this user may not read."""
    _check_readable(path, uri)
    config = _json(path / "config.json")
    if config is None:
        raise FinetuneError(Reason.ModelNotFound, f"there is no model in {uri}: it has no readable config.json")
    architectures = [str(name) for name in config.get("architectures") or ()]
    if not any(name.endswith(_CAUSAL) for name in architectures):
        what = f"a {' or '.join(architectures)}" if architectures else "of an unknown architecture"
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} is {what}, not a causal language model",
            "Use a model whose config.json names an architecture that ends in ForCausalLM.",
        )
    if packed := config.get("quantization_config"):
        how = packed.get("quant_method") if isinstance(packed, dict) else None
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} has its weights quantised already ({how or 'in a way that config.json does not name'}), and "
            "gradients and adapters are of whole ones",
            "Use the model that it was made from; method.type: qlora keeps it in 4 bits while it trains.",
        )
    for name in _weights(path, uri):
        _check_weights(path / name, uri)


def _check_readable(path: Path, uri: str) -> None:
    """Each file that will be read later, by other libraries and in every rank."""
    with os_errors("read", uri):
        files = _read_later(path)
    for file in files:
        with os_errors("read", f"{uri.rstrip('/')}/{file.name}"):
            file.open("rb").close()


def _read_later(path: Path) -> list[Path]:
    named = (file for file in path.iterdir() if any(fnmatch(file.name, pattern) for pattern in _PATTERNS))
    return sorted(file for file in named if not file.is_dir())


def _weights(path: Path, uri: str) -> list[str]:
    index = _json(path / _INDEX)
    if index is not None:
        return sorted({str(name) for name in index.get("weight_map", {}).values()})
    if (path / "model.safetensors").exists():
        return ["model.safetensors"]
    raise FinetuneError(
        Reason.ModelUnsupported,
        f"{uri} has no weights in safetensors format",
        "Convert it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors.",
    )


def _check_weights(file: Path, uri: str) -> None:
    """A safetensors file says in its header where its last byte is: 8 bytes of length, the header, then the tensors."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, 100 << 20)))
        ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        raise FinetuneError(
            Reason.ModelUnsupported, f"{uri} lacks {file.name}, which its index names", _AGAIN
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise FinetuneError(Reason.ModelUnsupported, f"{file.name} of {uri} is not safetensors", _AGAIN) from error
    if file.stat().st_size < (whole := 8 + length + max(ends, default=0)):
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{file.name} of {uri} is truncated: {file.stat().st_size} bytes of {whole}",
            _AGAIN,
        )


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _from_hub(repository: str, source: ModelSource, *, cache: Path, environ: Mapping[str, str]) -> Path:
    from huggingface_hub import snapshot_download

    hub = Hub.of(environ, prefix=names.PREFIX_MODEL)
    try:
        path = snapshot_download(
            repository,
            revision=source.revision,
            cache_dir=cache / "hub",
            token=hub.token or False,
            endpoint=hub.endpoint,
            allow_patterns=list(_PATTERNS),
            ignore_patterns=list(_NOT),
        )
    except Exception as error:
        raise explain(
            error, source.uri, source.revision, known=bool(hub.token), section="model", missing=Reason.ModelNotFound
        ) from None
    return Path(path)
