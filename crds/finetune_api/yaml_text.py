"""YAML (and so JSON) from files that people write or were given: read safely, and bounded."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import yaml

MOST_VALUES = 100_000
"""Of a document, with each alias counted as what it stands for. A manifest has some hundred."""


class YamlError(ValueError):
    """The text is not YAML, or too large once its aliases are expanded. The message is one line."""


def documents(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> list[Any]:
    """Every document of the text that is not empty. YamlError."""
    try:
        found = [each for each in yaml.load_all(text, Loader=loader) if each is not None]
        for each in found:
            _count(each, {})
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(" ".join(str(error).split())) from error
    return found


def document(text: str) -> Any:
    """The only document of the text; None if there is none. YamlError."""
    with contextlib.suppress(ValueError, RecursionError):  # YAML, too, then; but for JSON that is indented by tabs
        return json.loads(text)
    found = documents(text)
    if len(found) > 1:
        raise YamlError(f"it has {len(found)} documents, and one is expected")
    return found[0] if found else None


def _count(value: Any, known: dict[int, int | None]) -> int:
    """Values in it. ValueError for too many, or for one that contains itself. `known`: by identity, None while open."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        known[id(value)] = None
        items = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_count(each, known) for each in items)
    count = known[id(value)]
    if count is None:
        raise ValueError("an alias stands for something that contains it")
    if count > MOST_VALUES:
        raise ValueError(f"it has more than {MOST_VALUES:,} values once its aliases are expanded")
    return count
