"""The frozen model and the rule that every part of a manifest is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One statement about a part of a manifest, told twice: to the API server as CEL, to `finetune validate` as Python.

    `holds(new, old)` gets the JSON objects; `old` is None on creation. A rule whose CEL names `oldSelf` is judged on
    updates alone. Both tellings are tested against each other on the real API server. Where CEL cannot look (`cel` is
    empty), the operator judges in the API server's stead, and puts the verdict into the status.
    """

    cel: str
    message: str
    holds: Callable[[dict[str, Any], dict[str, Any] | None], bool]

    @property
    def on_update_only(self) -> bool:
        return "oldSelf" in self.cel


def _describe_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Less those of updates, which `schema.updates` tells."""
    if rules := [rule for rule in getattr(model, "RULES", ()) if rule.cel and not rule.on_update_only]:
        schema["x-kubernetes-validations"] = [{"rule": rule.cel, "message": rule.message} for rule in rules]


class ApiModel(BaseModel):
    """A frozen value with camelCase names outside. Unknown fields are ignored here, so that an old reader survives a
    new writer; `manifest.validate` reports them to people."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        json_schema_extra=_describe_rules,
        protected_namespaces=(),
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def to_json(self) -> dict[str, Any]:
        """The object as Kubernetes stores it: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
