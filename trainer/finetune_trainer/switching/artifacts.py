"""Adapters by the URIs of their artifacts, with what their runs recorded of the base model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import ModelSource
from finetune_trainer.methods.servable import LARGEST_RANK
from finetune_trainer.report.record import RunRecord, read_record
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.fetch import fetch_folder
from finetune_trainer.store.fingerprints import fingerprint_of
from finetune_trainer.store.folder import NotFound
from finetune_trainer.store.models import LocalModel
from finetune_trainer.store.opening import open_folder

from .files import CONFIG, WEIGHTS, Adapter, ServedBase, check, rank_of

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, LARGEST_RANK)
"""What vLLM takes for max_lora_rank (vllm/config/lora.py, MaxLoRARanks)."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """An adapter of an artifact."""

    uri: str
    adapter: Adapter
    record: RunRecord

    @property
    def base(self) -> ModelSource:
        """The model that its run tuned, at the commit that it used."""
        return self.record.base_of(self.uri)


def find(uri: str, *, name: str, cache: Path, environ: Mapping[str, str] = os.environ) -> Found:
    """DataNotFound where there is no artifact, ModelUnsupported where it is not an adapter, DataUnreadable where one of
    its files is not the one that was committed."""
    try:
        folder = open_folder(uri, prefix=names.PREFIX_OUTPUT, environ=environ)
        manifest, record = read_manifest(folder), read_record(folder)
    except NotFound:
        hint = "Name the output.uri of a job that succeeded."
        raise FinetuneError(Reason.DataNotFound, f"there is no artifact in {uri}", hint) from None
    if not {CONFIG, WEIGHTS} <= manifest.files.keys():
        message = f"{uri} is not an adapter that PEFT loads: it has no {CONFIG} with {WEIGHTS}"
        raise FinetuneError(Reason.ModelUnsupported, message, "Name artifacts of method.type lora.")
    own = fetch_folder(uri, prefix=names.PREFIX_OUTPUT, cache=cache, patterns=(CONFIG, WEIGHTS), environ=environ)
    for file in (CONFIG, WEIGHTS):
        if folder.digest(file) != manifest.files[file].digest:
            message = f"{uri}/{file} is not the file that the artifact's manifest names"
            raise FinetuneError(Reason.DataUnreadable, message, f"See finetune verify {uri}.")
    adapter = Adapter(name=name, folder=own, base_weights=record.provenance.base_weights)
    return Found(uri=uri, adapter=adapter, record=record)


def find_all(uris: Sequence[str], *, cache: Path, environ: Mapping[str, str] = os.environ) -> list[Found]:
    """Each under the last part of its URI; all with their number where two have the same. InvalidSpec for one that is
    named twice."""
    plain = [uri.rstrip("/") for uri in uris]
    for uri in plain:
        if plain.count(uri) > 1:
            raise FinetuneError(Reason.InvalidSpec, f"{uri} is named twice", "Name each artifact once.")
    lasts = [uri.rpartition("/")[2] for uri in plain]
    unique = len(set(lasts)) == len(lasts)
    named = lasts if unique else [f"{last}-{at + 1}" for at, last in enumerate(lasts)]
    return [find(uri, name=name, cache=cache, environ=environ) for uri, name in zip(plain, named, strict=True)]


def base_in_memory(local: LocalModel, shapes: Mapping[str, tuple[int, int]] | None = None) -> ServedBase:
    return ServedBase(
        name=local.loadable, revision=local.revision, weights=fingerprint_of(local.path), shapes=shapes or {}
    )


def rank_bound(adapters: Iterable[Adapter]) -> int:
    """The smallest bound that vLLM takes and all fit in; the largest bound if none does."""
    largest = max(map(rank_of, adapters))
    return next((bound for bound in RANKS if bound >= largest), LARGEST_RANK)


def check_earlier(uris: Sequence[str], local: LocalModel, *, cache: Path) -> None:
    """Before a run trains an adapter that is to be switched with these: FinetuneError for one that cannot be used."""
    base = base_in_memory(local)
    for found in find_all(uris, cache=cache):
        check(found.adapter, base, largest_rank=LARGEST_RANK)
