"""Limits on the total size of texts in a manifest. Each text has its own limit; the sum bounds the memory of the
operator and the API server, and the environment of a pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .base import Rule

MOST = 32768
"""Maximum total number of characters of all texts of a field."""

KEY = 317
"""Maximum length of the key of a label or annotation: a DNS name, a slash and 63 characters."""


def _at_most(field: str, cel: str, size: Callable[[Any], int], *, where: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || {cel} <= {MOST}",
        message=f"{where} must have at most {MOST} characters in total: move longer content into a file or a ConfigMap",
        holds=lambda new, _: new.get(field) is None or size(new[field]) <= MOST,
    )


def _of_words(words: Any) -> int:
    return sum(len(str(word)) for word in words)


def _of_env(variables: Any) -> int:
    return sum(len(str(each.get("name", ""))) + len(str(each.get("value") or "")) for each in variables)


def _of_map(entries: Any) -> int:
    return sum(len(str(key)) + len(str(value)) for key, value in entries.items())


def _of_wordings(augmentations: Any) -> int:
    return sum(_of_words(each.get("templates") or ()) for each in augmentations)


COMMAND = _at_most("command", "self.command.map(word, word.size()).sum()", _of_words, where="command")

ENV = _at_most(
    "env",
    "self.env.map(each, each.name.size() + (has(each.value) ? each.value.size() : 0)).sum()",
    _of_env,
    where="pod.env",
)

ANNOTATIONS = _at_most(
    "annotations",
    "self.annotations.map(key, key.size() + self.annotations[key].size()).sum()",
    _of_map,
    where="pod.annotations",
)

AUGMENTATION = _at_most(
    "augmentation",
    "self.augmentation.map(each, has(each.templates) ? each.templates.map(text, text.size()).sum() : 0).sum()",
    _of_wordings,
    where="data.augmentation[].templates",
)


def short_keys(*fields: str) -> Rule:
    """Returns a rule that limits the keys of a map; the schema can limit only its values."""
    said = [f"(!has(self.{field}) || self.{field}.all(key, key.size() <= {KEY}))" for field in fields]
    return Rule(
        cel=" && ".join(said),
        message=f"{', '.join(fields)}: a key must have at most {KEY} characters",
        holds=lambda new, _: all(len(str(key)) <= KEY for field in fields for key in new.get(field) or {}),
    )
