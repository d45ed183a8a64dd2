"""Which namespaces the cache holds in full. Only their jobs are decided on; the others wait.

A namespace may be refused: no rights there, none any more, or it is gone and its RoleBinding with it. Its lists are
tried again for ever, and from the first that comes through its jobs are looked after like all others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from finetune_operator.kube.resources import FINETUNEJOBS, WATCHED, Key, Resource

logger = logging.getLogger(__name__)

Namespace = str | None
"""None: all namespaces, if the operator watches all."""


class WatchedNamespaces:
    """The namespaces that the operator watches, which of them it may list, and which lists came through."""

    def __init__(self, namespaces: Sequence[str]) -> None:
        self.namespaces: tuple[Namespace, ...] = tuple(namespaces) or (None,)
        self._refused: dict[tuple[str, Namespace], str] = {}
        self.term = 0
        """Goes up with each `forget`."""
        self.forget()

    def forget(self) -> None:
        """No list that was begun before counts any more."""
        self.term += 1
        self._lacking = {namespace: {each.plural for each in WATCHED} for namespace in self.namespaces}

    def listed(self, resource: Resource, namespace: Namespace, *, term: int) -> bool:
        """A list came through that was begun in `term`. Whether the namespace is in sync by that, and was not yet."""
        if self._refused.pop((resource.plural, namespace), None) is not None:
            logger.info("%s in %s can be listed again", resource.plural, namespace or "all namespaces")
        lacking = self._lacking[namespace]
        if term != self.term or resource.plural not in lacking:
            return False
        lacking.discard(resource.plural)
        return not lacking

    def refused(self, resource: Resource, namespace: Namespace, why: str) -> None:
        """The API server answered, and does not let us list."""
        if (resource.plural, namespace) not in self._refused:
            where = namespace or "all namespaces"
            logger.warning(
                "%s in %s cannot be listed, and jobs there are ignored until they can: %s", resource.plural, where, why
            )
        self._refused[resource.plural, namespace] = why

    def is_refused(self, plural: str, namespace: Namespace) -> bool:
        return (plural, namespace) in self._refused

    @property
    def open(self) -> tuple[str, ...]:
        """The namespaces by name whose FineTuneJobs were not refused; empty for all."""
        return tuple(n for n in self.namespaces if n is not None and not self.is_refused(FINETUNEJOBS.plural, n))

    def covers(self, key: Key) -> bool:
        """Whether everything about the job is in the cache."""
        return not self._lacking.get(key[0], self._lacking.get(None, {""}))

    @property
    def complaints(self) -> str:
        """What is not looked after, in one line; empty if nothing."""
        return "; ".join(f"{plural} in {where or 'all namespaces'}: {why}"
                         for (plural, where), why in self._refused.items())  # fmt: skip
