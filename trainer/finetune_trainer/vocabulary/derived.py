"""The extended model as a folder: the base model's files, with the tokenizer, the configuration and the embeddings of
more tokens.

Embeddings have a row for each token, and often some more, which are used first. A new row is the mean of the rows of
the pieces that its token replaces (input and output alike; Yamaguchi et al. 2024, arXiv 2406.11477, find it as good as
what needs more data). Every other byte of the weights is the base model's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.headers import file_header
from finetune_trainer.store.tensors import INDEX, StoredTensor, stored_tensors, tensors_of, weight_files

from .bpe import Bpe
from .extension import Extension

Floats = NDArray[np.float32]

_BY_TOKEN = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|lm_head|embed_out)\.(weight|bias)$")
_IN_A_BLOCK = re.compile(r"\.\d+\.")
_COPIED = ("*.json", "*.jinja", "additional_chat_templates/*.jinja", "LICENSE*")
_OUT_OF_DATE = ("vocab.json", "added_tokens.json", "tokenizer.json", "config.json", INDEX)
"""Other forms of the tokenizer would not have the new tokens; the last three are written again."""
_AT_ONCE = 16 << 20


def write(base: Path, bpe: Bpe, extension: Extension, target: Path) -> None:
    """The model of `base` with the extension, into an empty folder. ModelUnsupported where its embeddings go by names
    that are not known, or have no row for each token."""
    tensors = by_token(base)
    there = next(iter(tensors.values())).shape[0]
    if extension.first > there:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"the tokenizer has {extension.first} tokens, and the model embeddings for {there}",
            "Save the model after resize_token_embeddings(len(tokenizer)), or take the tokenizer it came with.",
        )
    rows = max(there, extension.first + len(extension.tokens))
    for file in weight_files(base):
        if any(tensor.file == file for tensor in tensors.values()):
            _rewrite(file, target / file.name, extension, rows=rows, mine=tensors)
        else:
            _link(file, target / file.name)
    _copy_others(base, target)
    (target / "config.json").write_text(_config(base, rows))
    (target / "tokenizer.json").write_bytes(extension.encoded(bpe))
    if (base / INDEX).is_file():
        index = json.loads((base / INDEX).read_bytes())
        written = (tensor for file in weight_files(base) for tensor in tensors_of(target / file.name).values())
        index["metadata"] = {"total_size": sum(tensor.size for tensor in written)}
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def by_token(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a model that have a row for each token, by name: its embeddings, and its head if it has one of its
    own. ModelUnsupported where they are not known."""
    config = json.loads((folder / "config.json").read_bytes())
    size = (config.get("text_config") or config).get("vocab_size")
    tensors = stored_tensors(folder)
    found = {name: t for name, t in tensors.items() if _BY_TOKEN.search(name) and t.shape[:1] == (size,)}
    outside = {name: t for name, t in tensors.items() if not _IN_A_BLOCK.search(name)}
    strange = [name for name, t in outside.items() if name not in found and t.shape[:1] == (size,)]
    if config.get("text_config"):
        fault = "this model has towers next to its decoder"
    elif not found or strange:
        fault = f"this model has them as {', '.join(strange) or 'tensors of unknown names'}"
    elif packed := sorted({t.dtype for t in found.values()} - set(_DTYPES)):
        fault = f"this model has them as {packed[0]}"
    else:
        return found
    raise FinetuneError(
        Reason.ModelUnsupported,
        f"vocabulary trains rows of a decoder's embeddings, and {fault}",
        "Remove vocabulary, or use a model whose embeddings are named embed_tokens, wte, embed_in or word_embeddings, "
        "in float32, float16 or bfloat16.",
    )


def overwrite(folder: Path, rows: Mapping[str, Mapping[int, Floats]]) -> None:
    """Writes rows of tensors into a model's files: by the tensor's name, then by the row's number."""
    tensors = stored_tensors(folder)
    for name, each in rows.items():
        tensor = tensors[name]
        width = tensor.size // tensor.shape[0]
        with tensor.file.open("r+b") as file:
            for number, row in each.items():
                file.seek(tensor.start + number * width)
                file.write(_packed(row, tensor.dtype))


def copy(source: Path, target: Path, *, rows: Mapping[str, Mapping[int, Floats]]) -> None:
    """The model of `source` with other rows, see `overwrite`, and with its tokenizer; without weights that are the same
    twice on one disk where it allows that."""
    changed = {tensor.file for name, tensor in stored_tensors(source).items() if name in rows}
    target.mkdir()
    for file in weight_files(source):
        (shutil.copyfile if file in changed else _link)(file, target / file.name)
    _copy_others(source, target)
    for name in _OUT_OF_DATE:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    overwrite(target, rows)


def read_rows(tensor: StoredTensor, ids: Sequence[int]) -> Floats:
    """(ids, dim), or (ids,) of a bias."""
    width = tensor.size // tensor.shape[0]
    with tensor.file.open("rb") as file:
        parts = []
        for id in ids:
            file.seek(tensor.start + id * width)
            parts.append(_unpacked(file.read(width), tensor.dtype))
    return (
        np.stack(parts).reshape(len(ids), *tensor.shape[1:]) if parts else np.zeros((0, *tensor.shape[1:]), np.float32)
    )


def means(tensor: StoredTensor, extension: Extension) -> Floats:
    """(new tokens, dim): of each the mean of its pieces' rows."""
    return np.stack([read_rows(tensor, pieces).mean(axis=0, dtype=np.float32) for pieces in extension.pieces])


def _rewrite(file: Path, target: Path, extension: Extension, *, rows: int, mine: Mapping[str, StoredTensor]) -> None:
    """A file whose embeddings have `rows` rows. Tensors keep their order."""
    header = file_header(file)
    raw = json.loads(header.raw)
    ordered = sorted(header.tensors.items(), key=lambda item: item[1].start)
    described: dict[str, Any] = {"__metadata__": raw.get("__metadata__") or {"format": "pt"}}
    end = 0
    for name, entry in ordered:
        shape = [rows, *entry.shape[1:]] if name in mine else list(entry.shape)
        size = entry.size // entry.shape[0] * rows if name in mine else entry.size
        described[name] = {"dtype": entry.dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("rb") as old, target.open("wb") as new:
        new.write(len(text).to_bytes(8, "little") + text)
        for name, entry in ordered:
            if name not in mine:
                _stream(old, new, entry.start, entry.stop)
                continue
            for part in _extended(mine[name], extension, rows):
                if isinstance(part, bytes):
                    new.write(part)
                else:
                    _stream(old, new, *part)


def _extended(tensor: StoredTensor, extension: Extension, rows: int) -> Iterator[bytes | tuple[int, int]]:
    """The parts of a tensor with its new rows: bytes, or where they are in its file."""
    width = tensor.size // tensor.shape[0]
    last = extension.first + len(extension.tokens)
    yield tensor.start, tensor.start + min(extension.first, tensor.shape[0]) * width
    yield _packed(means(tensor, extension), tensor.dtype)
    if last < tensor.shape[0]:
        yield tensor.start + last * width, tensor.stop
    assert rows >= last


def _stream(old: Any, new: Any, start: int, stop: int) -> None:
    old.seek(start)
    while start < stop:
        part = old.read(min(_AT_ONCE, stop - start))
        if not part:
            raise OSError(f"{old.name} is truncated")
        new.write(part)
        start += len(part)


def _link(source: Path, target: Path) -> None:
    """The same file by another name, where both are on one disk."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _copy_others(base: Path, target: Path) -> None:
    for file in (file for pattern in _COPIED for file in base.glob(pattern)):
        if file.name not in _OUT_OF_DATE:
            into = target / file.relative_to(base)
            into.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, into)


def _config(base: Path, rows: int) -> str:
    config = json.loads((base / "config.json").read_bytes())
    return json.dumps({**config, "vocab_size": rows}, indent=2, sort_keys=True) + "\n"


_DTYPES = ("F32", "F16", "BF16")


def _unpacked(data: bytes, dtype: str) -> Floats:
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, "<f4" if dtype == "F32" else "<f2").astype(np.float32)


def _packed(values: Floats, dtype: str) -> bytes:
    """In the dtype of a file; bfloat16 rounds to the nearest, to even where there are two, as torch does."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, "<f4" if dtype == "F32" else "<f2").tobytes()
