"""The data files that a URI means.

    s3://corp/train.jsonl               one file
    s3://corp/train/                    the data files in a folder, not those in its subfolders
    s3://corp/train/2024-*.jsonl        those that a pattern matches; * and ? stay within one folder name
    hf://datasets/org/name/data/*       of a data set on the hub; with @revision, else as it is now, by its commit

Files come sorted. Nothing is read before a file is opened, and a remote one is read in place: as long as it is the
file that was found, and through a store's absence of up to two minutes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from finetune_api import uris
from finetune_api.failures import FinetuneError, Reason
from finetune_api.uris import Uri

from .folder import Entry, NotFound
from .hub import PATIENCE, Hub, HubDataset, is_pattern
from .local import LocalFolder
from .opening import open_folder
from .ranges import Ranges
from .retries import RetryingFolder

_HELD_OUT = re.compile(r"(^|[/_.-])(test|validation|valid|val|dev|eval)([/_.-]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    uri: str
    version: str
    """Changes when the content does. Empty for a file of this machine, whose content is at hand."""
    where: Path | Callable[[], Ranges]
    """On this machine, or how it is opened elsewhere."""


def find_files(
    uri: str, *, prefix: str, endings: Sequence[str], environ: Mapping[str, str] = os.environ
) -> list[SourceFile]:
    """NotFound when there is none; otherwise the errors of open_folder."""
    try:
        parsed = uris.parse(uri)
    except ValueError as error:
        raise FinetuneError(Reason.InvalidSpec, str(error)) from error
    if parsed.scheme == "hf":
        return _on_the_hub(HubDataset.parse(parsed.path), uri, Hub.of(environ, prefix=prefix), endings)
    base, pattern = _split(parsed.path)
    folder = open_folder(parsed._replace(path=base).text, prefix=prefix, environ=environ)
    if not is_pattern(pattern):
        entry = folder.stat(pattern)
        if entry is None:
            raise _missing(bool(folder.list(pattern)), uri)
        found = [entry]
    elif isinstance(folder, LocalFolder):
        files = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.glob(_literal(pattern)))
        found = [Entry(name, 0) for name in _data_files(files, pattern, endings) if (folder.path / name).is_file()]
    else:
        entries = {entry.path: entry for entry in folder.list()}
        found = [entries[name] for name in _data_files(sorted(entries), pattern, endings)]
    if not found:
        below = [
            entry.path for entry in folder.list() if entry.path.endswith(tuple(endings)) and not _hidden(entry.path)
        ]
        raise NotFound(f"there is no data file in {uri}", _in_folders(uri, below, endings))
    if is_pattern(pattern):
        _refuse_several_splits(uri, [entry.path for entry in found])
    where = parsed._replace(path=base)
    if isinstance(folder, LocalFolder):
        return [SourceFile(_below(where, each.path), "", folder.inside(folder.path / each.path)) for each in found]
    patient = RetryingFolder(folder, PATIENCE)

    def opener(entry: Entry, uri: str) -> Callable[[], Ranges]:
        return lambda: Ranges(uri, entry.size, lambda start, stop: patient.read_range(entry, start, stop))

    named = [(entry, _below(where, entry.path)) for entry in found]
    return [SourceFile(name, f"{entry.size} {entry.version}", opener(entry, name)) for entry, name in named]


def local_paths(uri: str, *, endings: Sequence[str]) -> list[Path]:
    """What a file:// URI means; nothing where there is none."""
    base, pattern = _split(uri.removeprefix("file:///"))
    folder = Path("/") / base
    if not is_pattern(pattern):
        return [folder / pattern]
    names = sorted(path.relative_to(folder).as_posix() for path in folder.glob(_literal(pattern)))
    return [folder / name for name in _data_files(names, pattern, endings)]


def _on_the_hub(wanted: HubDataset, uri: str, hub: Hub, endings: Sequence[str]) -> list[SourceFile]:
    dataset, names = wanted.pinned(hub)
    if not wanted.path:
        found = [name for name in names if name.endswith(tuple(endings)) and not _hidden(name)]
        _refuse_several_splits(uri, found)
    else:
        _, pattern = _split(wanted.path)
        full = wanted.path + "*" if wanted.path.endswith("/") else wanted.path
        found = _data_files(names, full, endings) if is_pattern(pattern) else [n for n in names if n == wanted.path]
        if is_pattern(pattern):
            _refuse_several_splits(uri, found)
    if not found:
        near = ", ".join([name for name in names if name.endswith(tuple(endings))][:6])
        raise NotFound(f"there is no data file {uri}", f"The data set has {near}." if near else "")

    def opener(name: str) -> Callable[[], Ranges]:
        return lambda: dataset.ranges(hub, name)

    return [SourceFile(dataset.uri(name), dataset.revision or "", opener(name)) for name in found]


def _refuse_several_splits(uri: str, names: Sequence[str]) -> None:
    """InvalidSpec for rows to train on and rows to measure on under one URI, by the names of their files."""
    splits = {(match[2] if (match := _HELD_OUT.search(name)) else "train").lower()[:3] for name in names}
    if len(splits) > 1:
        folder = uri if uri.endswith("/") else f"{uri.rpartition('/')[0]}/" if is_pattern(uri) else f"{uri}/"
        first = next((name for name in names if not _HELD_OUT.search(name)), names[0])
        raise FinetuneError(
            Reason.InvalidSpec,
            f"{uri} has files of several splits: {', '.join(names[:6])}{', …' if len(names) > 6 else ''}",
            f"Name those that are meant, such as {folder}{_pattern_of(first)}",
        )


def _in_folders(uri: str, names: Sequence[str], endings: Sequence[str]) -> str:
    """What to do where the files are in folders below."""
    folders = list(dict.fromkeys(name.rpartition("/")[0] for name in names if "/" in name))
    if not folders or not uri.endswith("/"):
        return f"Data files end in {', '.join(endings)}."
    shown = ", ".join(f"{folder}/" for folder in folders[:5]) + (", …" if len(folders) > 5 else "")
    return f"Files in folders below are not read; there are some in {shown} Name one, such as {uri}{folders[0]}/"


def _split(path: str) -> tuple[str, str]:
    """(the folder, what is looked for in it): `a/b/*.jsonl` → `a/b`, `*.jsonl`; `a/b/` → `a/b`, `*`."""
    if not path or path.endswith("/"):
        path += "*"
    segments = path.split("/")
    fixed = next((i for i, segment in enumerate(segments) if is_pattern(segment)), len(segments) - 1)
    return "/".join(segments[:fixed]), "/".join(segments[fixed:])


def _literal(pattern: str) -> str:
    """Square brackets are only brackets."""
    return pattern.replace("[", "[[]")


def _data_files(names: Sequence[str], pattern: str, endings: Sequence[str]) -> list[str]:
    """The sorted names that match, folder by folder."""
    parts = _literal(pattern).split("/")
    return [
        name
        for name in names
        if name.endswith(tuple(endings))
        and not _hidden(name)
        and len(segments := name.split("/")) == len(parts)
        and all(fnmatchcase(segment, part) for segment, part in zip(segments, parts, strict=True))
    ]


def _hidden(name: str) -> bool:
    """Markers of other tools (_SUCCESS, .crc) are not data."""
    return any(segment.startswith((".", "_")) for segment in name.split("/"))


def _pattern_of(name: str) -> str:
    """`data/train-00000-of-00002.parquet` → `data/train-*.parquet`."""
    return re.sub(r"-\d+-of-\d+", "-*", name)


def _below(folder: Uri, name: str) -> str:
    return folder.join(name).text


def _missing(is_folder: bool, uri: str) -> NotFound:
    if is_folder:
        return NotFound(f"there is no file {uri}, but a folder of that name", "End it with / for the files in it.")
    return NotFound(f"there is no file {uri}")
