"""What `validate`, `verify` and `promote` found, as they print it with `-o json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from finetune_api.base import ApiModel


class FieldProblem(ApiModel):
    """Why a manifest is not valid."""

    path: str = Field(description="The field, as in spec.data.train[0].uri; empty: the whole file.")
    message: str


class ValidatedFile(ApiModel):
    """A manifest in the list of finetune validate"""

    file: str
    valid: bool
    name: str = Field("", description="Name of the job; empty if the manifest is not valid.")
    summary: str = Field("", description="Method, model, nodes and processes.")
    problems: tuple[FieldProblem, ...] = ()
    warnings: tuple[str, ...] = Field((), description="Of a valid manifest.")


class Verified(ApiModel):
    """finetune verify"""

    uri: str
    intact: bool
    problems: tuple[str, ...] = Field(description="What is missing or differs; empty if it is intact.")
    files: int | None = Field(None, description="Number of files; null without an artifact manifest.")
    size_bytes: int | None = None
    kind: str | None = None
    digest: str | None = None


class Published(ApiModel):
    """finetune promote"""

    uri: str
    digest: str
    refused: str | None = Field(description="Why the guards kept it back.")


CHECKED: Mapping[str, Any] = {"validate": tuple[ValidatedFile, ...], "verify": Verified, "promote": Published}
"""By command."""
