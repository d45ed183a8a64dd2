"""Durations such as `90s`, `10m`, `24h`, `7d` or `1h30m`. At most ten years."""

import re

PATTERN = r"^([0-9]{1,6}[smhd]){1,4}$"
SHORT_PATTERN = r"^([0-9]{1,6}[sm]|[0-9]{1,4}h|[0-8]?[0-9]{1,2}d){1,4}$"
"""A pattern that matches only durations below ten years, for rules where CEL cannot afford to add."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

LONGEST = 3650 * 86400
"""Maximum in seconds. Longer durations overflow the calendar of timestamps."""

TOO_LONG = "must be at most 10 years (3650d)"


def seconds(text: str) -> int:
    """Returns seconds: `1h30m` → 5400. Raises ValueError with the expected form."""
    if not re.match(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 24h or 7d")
    return sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([smhd])", text))


def at_most_ten_years(text: str) -> bool:
    return seconds(text) <= LONGEST


def cel(value: str) -> str:
    """Returns CEL for the same check, for a string that matches the pattern."""
    return (
        f"{value}.findAll('[0-9]+[smhd]').map(part, int(part.substring(0, part.size() - 1)) * "
        "(part.endsWith('s') ? 1 : part.endsWith('m') ? 60 : part.endsWith('h') ? 3600 : 86400)).sum() "
        f"<= {LONGEST}"
    )
