"""Durations as people write them: `90s`, `10m`, `24h`, `7d`, `1h30m`."""

import re

PATTERN = r"^([0-9]{1,6}[smhd]){1,4}$"
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds(text: str) -> int:
    """`1h30m` → 5400. ValueError names the text and the form wanted."""
    if not re.match(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration: write 90s, 10m, 24h or 7d")
    return sum(int(n) * _SECONDS[unit] for n, unit in re.findall(r"([0-9]+)([smhd])", text))
