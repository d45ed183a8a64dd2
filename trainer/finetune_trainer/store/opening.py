"""Opens the folder that a URI names: the one module that knows every kind of store.

`folder` has what all stores have in common and imports none of them. A new kind of store is a module with a Folder and
one line in `_OPENERS` (docs/extending.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from finetune_api import uris
from finetune_api.failures import FinetuneError, Reason
from finetune_api.uris import Uri

from .folder import Folder
from .local import open_local
from .object_store import open_objects
from .retries import RetryingFolder


def open_folder(uri: str, *, prefix: str, environ: Mapping[str, str] = os.environ, patience: float = 0.0) -> Folder:
    """The folder at a file://, pvc://, s3://, gs:// or az:// URI. No store is contacted yet.

    Credentials are read as `prefix` + NAME, then NAME. Each operation waits up to `patience` seconds for a store that
    is unavailable; with 0 the store's client retries for a few seconds only.
    """
    try:
        parsed = uris.parse(uri)
        opener = _OPENERS[parsed.scheme]
    except (ValueError, KeyError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{uri} is not a folder that can be read and written"
        hint = "Give a folder as in output.uri: s3://, gs://, az://, pvc:// or file:///."
        raise FinetuneError(Reason.InvalidSpec, reason, hint) from error
    folder = opener(parsed, prefix, environ)
    return RetryingFolder(folder, seconds=patience) if patience else folder


def _open_local(uri: Uri, _prefix: str, environ: Mapping[str, str]) -> Folder:
    return open_local(uri, environ=environ)


def _open_objects(uri: Uri, prefix: str, environ: Mapping[str, str]) -> Folder:
    return open_objects(uri, prefix=prefix, environ=environ)


_OPENERS: Mapping[str, Callable[[Uri, str, Mapping[str, str]], Folder]] = {
    "file": _open_local,
    "pvc": _open_local,
    "s3": _open_objects,
    "gs": _open_objects,
    "az": _open_objects,
}

SCHEMES = frozenset(_OPENERS)
"""Schemes of the URIs that `open_folder` opens."""
