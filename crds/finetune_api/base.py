"""Base classes of the manifest: the frozen model, and the validation rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One validation rule in two forms: as CEL for the API server, and as Python for `finetune validate`.

    `holds(new, old)` gets the JSON objects; `old` is None on creation. A rule whose CEL uses `oldSelf` applies to
    updates only. Tests compare both forms on a real API server. If CEL cannot express the rule (`cel` is empty), the
    operator checks it and reports the result in the status.
    """

    cel: str
    message: str
    holds: Callable[[dict[str, Any], dict[str, Any] | None], bool]

    @property
    def on_update_only(self) -> bool:
        return "oldSelf" in self.cel


def exactly_one(*fields: str, where: str) -> Rule:
    """Exactly one of the fields must be set."""
    has = ", ".join(f"has(self.{f})" for f in fields)
    names = ", ".join(fields[:-1]) + f" or {fields[-1]}"
    return Rule(
        cel=f"[{has}].filter(set, set).size() == 1",
        message=f"{where} needs exactly one of {names}",
        holds=lambda new, _: sum(f in new for f in fields) == 1,
    )


def _describe_rules(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Adds the CEL rules to a schema, except those of updates, which `schema.updates` adds."""
    if rules := [rule for rule in getattr(model, "RULES", ()) if rule.cel and not rule.on_update_only]:
        schema["x-kubernetes-validations"] = [{"rule": rule.cel, "message": rule.message} for rule in rules]


class ApiModel(BaseModel):
    """A frozen value with camelCase names in JSON. Unknown fields are ignored here, so that old readers accept objects
    of newer versions; `manifest.validate` reports them to users."""

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
        """Returns the object as Kubernetes stores it: camelCase, no nulls."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
