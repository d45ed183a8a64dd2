"""URIs of models, data and outputs: the supported schemes and their patterns."""

from __future__ import annotations

import re
from typing import NamedTuple

BUCKET = r"[a-z0-9][a-z0-9.-]{2,62}"
_OBJECTS = rf"(s3|gs|az)://{BUCKET}(/[^/\s][^\s]*)?"
_FILE = r"file:///[^\s]+"
_PVC = r"pvc://[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/[^\s]+)?"
_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*"
_HUB_DATA = r"hf://datasets/[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*(@[A-Za-z0-9_.%-]+)?(/[^\s]*)?"

MODEL = rf"^({_HUB}|{_OBJECTS}|{_FILE}|{_PVC})$"
DATA = rf"^({_HUB_DATA}|{_OBJECTS}|{_FILE}|{_PVC})$"
OUTPUT = rf"^({_OBJECTS}|{_FILE}|{_PVC})$"
OBJECT_SCHEMES = frozenset({"s3", "gs", "az"})


class Uri(NamedTuple):
    """`s3://corp/models/a` → scheme `s3`, authority `corp`, path `models/a`."""

    scheme: str
    authority: str
    path: str

    @property
    def text(self) -> str:
        if self.scheme == "file":
            return f"file:///{self.path}"
        return f"{self.scheme}://{self.authority}" + (f"/{self.path}" if self.path else "")

    def join(self, *parts: str) -> Uri:
        """Returns the URI with the parts appended to its path."""
        return self._replace(path="/".join(p for p in (self.path.rstrip("/"), *parts) if p))


def parse(text: str) -> Uri:
    """Parses a URI. Raises ValueError if the scheme is not supported. `hf://org/name`: authority `org`, path `name`."""
    match = re.match(r"^(hf|s3|gs|az|pvc|file)://([^/]*)/?(.*)$", text)
    if not match or not (re.match(MODEL, text) or re.match(DATA, text)):
        raise ValueError(f"{text!r} is not a supported URI: use hf://, s3://, gs://, az://, pvc:// or file:///")
    scheme, authority, path = match.groups()
    return Uri(scheme, authority, path)
