"""Times as Kubernetes writes them."""

from __future__ import annotations

from datetime import UTC, datetime

YEARS = range(2000, 2100)
"""A time outside was never measured: the zero of Go's, a clock that was never set, or a joke. Sums stay in range."""


def parse_time(text: str | None) -> datetime | None:
    """RFC 3339 → UTC. None for nothing, and for a text that is not a time."""
    if not text or len(text) > 40:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    if moment.year not in YEARS:
        return None
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
