"""Field types used in several parts of a manifest: names, durations, quantities and URIs, with their limits."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from . import durations, uris

LIST_MAP = "x-kubernetes-list-type"
MAP_KEYS = "x-kubernetes-list-map-keys"
PRESERVE = "x-kubernetes-preserve-unknown-fields"
RULES = "x-kubernetes-validations"
NULLABLE = "nullable"

DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
DNS_NAME = r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$"
ENV_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
MOUNT_PATH = r"^/[^:\s]+$"
QUANTITY = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$"
TERM = r"^\S(.*\S)?$"
CONTROLLER_NAME = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?/[A-Za-z0-9][-._A-Za-z0-9]*$"

Name = Annotated[str, Field(min_length=1, max_length=63, pattern=DNS_LABEL)]
ControllerName = Annotated[str, Field(min_length=3, max_length=63, pattern=CONTROLLER_NAME)]
ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_NAME)]


def _not_too_long(text: str) -> str:
    if not durations.at_most_ten_years(text):
        raise ValueError(durations.TOO_LONG)
    return text


Duration = Annotated[
    str,
    Field(
        min_length=2,
        max_length=32,
        pattern=durations.PATTERN,
        json_schema_extra={RULES: [{"rule": durations.cel("self"), "message": durations.TOO_LONG}]},
    ),
    AfterValidator(_not_too_long),
]
Quantity = Annotated[
    Annotated[int, Field(ge=0)] | Annotated[str, Field(min_length=1, max_length=64, pattern=QUANTITY)],
    Field(union_mode="left_to_right"),
]
DataUri = Annotated[str, Field(min_length=1, max_length=1024, pattern=uris.DATA)]
OutputUri = Annotated[str, Field(min_length=1, max_length=1024, pattern=uris.OUTPUT)]
Label = Annotated[str, Field(max_length=256)]
