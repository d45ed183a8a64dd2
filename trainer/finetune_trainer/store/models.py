"""The base model as a local folder: downloaded once where it is remote, used in place where it is not, checked always.

The checks read a few kilobytes: is it a causal language model, are all its weights there, whole and in safetensors?
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from finetune_api import names, uris
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource

from .fetch import fetch_folder
from .fingerprints import fingerprints_of
from .folder import NotFound
from .headers import MalformedHeader, file_header
from .hub import Hub, explain
from .local import os_errors
from .remote_models import bucket_model, hub_model
from .shared_models import Shared, SharedModels
from .tensors import INDEX, ONE_FILE, indexed_files, weight_files

_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*")
"""Weights, configuration and every form of tokenizer; never pickles, never Python."""
_NOT = ("[!a]*/*", "a[!d]*/*", "ad[!d]*/*", "consolidated*")
"""Other formats of the same weights: subfolders such as onnx/ and original/, and Mistral's own file. The patterns leave
additional_chat_templates/ in: what is ignored cannot be allowed again."""

_CAUSAL = ("ForCausalLM", "GPT2LMHeadModel")
_LARGER = "ForConditionalGeneration"
"""Of classes with a language model inside, which config.json then describes in `text_config`."""
_AGAIN = "Download or upload the model again."


@dataclass(frozen=True)
class LocalModel:
    path: Path
    revision: str | None
    """The commit of a hub model; None elsewhere."""
    uri: str

    @property
    def loadable(self) -> str:
        """What users of an adapter give transformers and servers: `org/name` of a hub model, a path, else the URI."""
        uri = uris.parse(self.uri)
        found = {"hf": f"{uri.authority}/{uri.path}", "file": f"/{uri.path.lstrip('/')}"}
        return found.get(uri.scheme, self.uri)

    def digests(self) -> dict[str, str]:
        """By file name, of all that a run reads of it: another one means other content (see fingerprints)."""
        with os_errors("read", self.uri):
            return fingerprints_of([file for file in _read_later(self.path) if not file.name.startswith("LICENSE")])


def resolve_model(
    source: ModelSource,
    *,
    cache: Path,
    environ: Mapping[str, str] = os.environ,
    tell: Callable[[str], None] = lambda _: None,
    prefix: str = names.PREFIX_MODEL,
) -> LocalModel:
    """ModelNotFound, ModelUnsupported, CredentialsMissing, CredentialsRejected, StorageUnavailable. `tell` gets lines
    about the cache that runs share, if the environment names one. `prefix`: of the credentials of a folder."""
    uri = uris.parse(source.uri)
    revision: str | None = None
    try:
        own = prefix != names.PREFIX_MODEL  # an artifact: no other jobs start from it
        if not own and (shared := _from_shared(source, uri, environ=environ, tell=tell)):
            path, revision = shared.path, shared.revision
        elif uri.scheme == "hf":
            path = _from_hub(f"{uri.authority}/{uri.path}", source, cache=cache, environ=environ)
            revision = path.name  # the hub's cache names a snapshot by its commit
        else:
            path = fetch_folder(source.uri, prefix=prefix, cache=cache, patterns=_PATTERNS, environ=environ)
    except NotFound as error:
        raise FinetuneError(Reason.ModelNotFound, error.message) from error
    check_model(path, source.uri)
    return LocalModel(path, revision, source.uri)


def _from_shared(
    source: ModelSource, uri: uris.Uri, *, environ: Mapping[str, str], tell: Callable[[str], None]
) -> Shared | None:
    """None for models that are on this machine or on a claim, without a shared cache, and where it cannot be used."""
    shared = SharedModels.of(environ, tell=tell) if uri.scheme not in ("file", "pvc") else None
    if shared is None:
        return None
    if uri.scheme != "hf":
        return shared.fetch(source.uri, lambda: bucket_model(source.uri, patterns=_PATTERNS, environ=environ))
    return shared.fetch(
        f"{source.uri}@{source.revision or ''}",
        lambda: hub_model(
            f"{uri.authority}/{uri.path}", source.revision, uri=source.uri,
            patterns=_PATTERNS, ignore=_NOT, environ=environ,
        ),
    )  # fmt: skip


def check_model(path: Path, uri: str) -> None:
    """ModelNotFound if the folder holds no model, ModelUnsupported if it is not one that can be tuned,
    CredentialsRejected for files that this user may not read."""
    _check_readable(path, uri)
    config = _json(path / "config.json")
    if config is None:
        raise FinetuneError(Reason.ModelNotFound, f"there is no model in {uri}: it has no readable config.json")
    check_config(config, uri)
    for file in _weights(path, uri):
        _check_weights(file, uri)


def check_config(config: Mapping[str, Any], uri: str) -> None:
    """ModelUnsupported if config.json describes no model that can be tuned."""
    architectures = [str(name) for name in config.get("architectures") or ()]
    _check_own_code(config, architectures, uri)
    if not any(name.endswith(_CAUSAL) for name in architectures) and not _has_text_inside(config, architectures):
        what = f"a {' or '.join(architectures)}" if architectures else "of an unknown architecture"
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} is {what}, not a causal language model",
            "Use a model whose config.json names an architecture that ends in ForCausalLM, or in "
            "ForConditionalGeneration and has a text_config.",
        )
    if packed := config.get("quantization_config"):
        how = packed.get("quant_method") if isinstance(packed, dict) else None
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} has its weights quantised already ({how or 'in a way that config.json does not name'}), and "
            "gradients and adapters are of whole ones",
            "Use the model that it was made from; method.type: qlora keeps it in 4 bits while it trains.",
        )


def _has_text_inside(config: Mapping[str, Any], architectures: list[str]) -> bool:
    """A decoder, that is: speech and captioning models are encoders with a decoder that looks at them."""
    text = config.get("text_config")
    whole = any(name.endswith(_LARGER) for name in architectures)
    return whole and isinstance(text, dict) and not (config.get("is_encoder_decoder") or text.get("is_encoder_decoder"))


def _check_own_code(config: Mapping[str, Any], architectures: list[str], uri: str) -> None:
    """ModelUnsupported for a model whose class comes as Python code in its folder, and is not in transformers too."""
    code = config.get("auto_map")
    named = [str(value) for name, value in code.items() if "Tokenizer" not in name] if isinstance(code, dict) else []
    if not named:
        return
    from transformers import __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    known = any(name in CLASSES.values() or name.endswith(_LARGER) for name in architectures)
    if known and config.get("model_type") in CONFIG_MAPPING_NAMES:
        return
    raise FinetuneError(
        Reason.ModelUnsupported,
        f"{uri} needs Python code that comes with it ({', '.join(named[:2])}), for transformers {__version__} has no "
        f"class of its own for {config.get('model_type') or 'its model_type'}; code of models is never run, by choice",
        "Use a model whose class is in transformers, a copy of this one converted to such a class, or a trainer image "
        "with a transformers release that has it.",
    )


def _check_readable(path: Path, uri: str) -> None:
    """Each file that will be read later, by other libraries and in every rank."""
    with os_errors("read", uri):
        files = _read_later(path)
    for file in files:
        with os_errors("read", f"{uri.rstrip('/')}/{file.name}"):
            file.open("rb").close()


def _read_later(path: Path) -> list[Path]:
    named = (file for file in path.iterdir() if any(fnmatch(file.name, pattern) for pattern in _PATTERNS))
    templates = (path / "additional_chat_templates").glob("*.jinja")
    return sorted(file for file in (*named, *templates) if not file.is_dir())


def _weights(path: Path, uri: str) -> list[Path]:
    try:
        files, indexed = weight_files(path), indexed_files(path)
    except ValueError as error:
        raise FinetuneError(
            Reason.ModelUnsupported, f"{INDEX} of {uri} is not an index of safetensors files: {error}", _AGAIN
        ) from error
    if not files:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} has no weights in safetensors format",
            "Convert it: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…) writes safetensors.",
        )
    if indexed and indexed != files:
        for file in indexed:
            _check_weights(file, uri)
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{uri} holds two models: {ONE_FILE}, and the files that {INDEX} names; programs differ in which they load",
            "Remove the one that is out of date.",
        )
    return files


def _check_weights(file: Path, uri: str) -> None:
    """The header of a safetensors file says how long the file is."""
    try:
        complete = file_header(file).stop
    except FileNotFoundError:
        raise FinetuneError(
            Reason.ModelUnsupported, f"{uri} lacks {file.name}, which its index names", _AGAIN
        ) from None
    except MalformedHeader as error:
        message = f"{file.name} of {uri} is not a valid safetensors file: {error.reason}"
        raise FinetuneError(Reason.ModelUnsupported, message, _AGAIN) from error
    if file.stat().st_size < complete:
        message = f"{file.name} of {uri} is truncated: {file.stat().st_size} bytes of {complete}"
        raise FinetuneError(Reason.ModelUnsupported, message, _AGAIN)


def _json(file: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
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
