"""What commands print with -o json, against the schemas that are documented."""

from __future__ import annotations

from typing import Any

import jsonschema

from finetune_trainer.cli.outputs import schema_of


def conforms(command: str, printed: Any) -> None:
    """AssertionError for what the schema does not allow, and for a field that it does not have."""
    schema = schema_of(command)
    closed = _closed(schema) if command != "status" else schema  # a job may have fields of a newer version
    try:
        jsonschema.validate(printed, closed)
    except jsonschema.ValidationError as error:
        raise AssertionError(f"finetune {command} -o json: {error.json_path}: {error.message[:500]}") from error


def _closed(schema: Any) -> Any:
    """The schema, in which no object may have other fields than those that it lists."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if "properties" in closed and closed.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
