"""`manifest.json`: the one file that makes a folder an artifact. It names every file with its sha256 and size."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from finetune_api.base import ApiModel
from finetune_api.plan import JobIdentity
from finetune_api.status import Servable
from finetune_api.switching import SwitchTest

from .folder import Digest
from .sequence import Sequence
from .trained_on import TrainedOn

MANIFEST = "manifest.json"
MERGED = "merged"
"""The folder next to an adapter that holds the whole model, base and adapter in one."""
VERSION = 1

Kind = Literal["adapter", "model"]


class FileEntry(ApiModel):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: Annotated[int, Field(ge=0)]

    @property
    def digest(self) -> Digest:
        return Digest(self.sha256, self.size)


class Promotion(ApiModel):
    """Of an artifact that a guard had kept back: a person published it all the same."""

    time: str = Field(description="RFC 3339, UTC.")
    candidate: str = Field(description="URI of the folder that it was kept in.")
    refused: str = Field(description="Why a guard had kept it back.")


class Climbed(ApiModel):
    """Of an artifact that a ladder chose; the whole ladder is in run.json."""

    rung: str = Field(description="Its method.")
    tried: tuple[str, ...] = Field(description="The rungs that were run, in this order.")
    stop_reason: str


class Manifest(ApiModel):
    """What an artifact consists of and which run made it. The same content gives the same bytes."""

    version: Annotated[int, Field(ge=1, le=VERSION)] = VERSION
    run: JobIdentity
    kind: Kind
    servable: Servable | None = None
    temperature: float | None = Field(
        None,
        description="Of classifications: the divisor of label scores that fits data.validation. Nothing applies it.",
    )
    promotion: Promotion | None = None
    ladder: Climbed | None = None
    switch_test: SwitchTest | None = Field(None, description="Of an adapter that was tested with others on one base.")
    continual: Sequence | None = Field(None, description="With continueFrom: the tasks before this one, and it.")
    trained_on: TrainedOn | None = Field(
        None, description="The training data of this job and of those before it; None of older releases."
    )
    files: dict[str, FileEntry]

    def encode(self) -> bytes:
        return canonical(self.to_json())

    @property
    def digest(self) -> str:
        """sha256 of the encoded manifest: names the artifact's whole content."""
        return hashlib.sha256(self.encode()).hexdigest()

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())


def decode(data: bytes) -> Manifest:
    """ValueError, with the field, if it is not an artifact manifest, or one of a later version."""
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc'])) or MANIFEST}: {first['msg']}") from error
    return manifest


def entries(digests: dict[str, Digest]) -> dict[str, FileEntry]:
    return {name: FileEntry(sha256=d.sha256, size=d.size) for name, d in sorted(digests.items())}


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, so that equal values have equal digests. ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
