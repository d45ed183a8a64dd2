"""TensorBoard's event files, written by hand: the package `tensorboard` would bring a server, grpc and 70 MB.

A file is a sequence of TFRecords, each of which holds one Event in protobuf's wire format:

    uint64 length · uint32 masked crc32c of the length · bytes · uint32 masked crc32c of the bytes, little endian

Sources: tensorflow/core/lib/io/record_writer.h (records), tensorflow/core/lib/hash/crc32c.h (the mask),
tensorflow/core/util/event.proto, framework/summary.proto, framework/tensor.proto (field numbers), and for texts
tensorboard/plugins/text/metadata.py. `make proof` reads what is written here with the package itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime

from finetune_trainer.report.record import RunRecord

from .points import clock, of_curves, outcome_of

FOLDER = "tensorboard"
"""Of event files: in a run directory, in an artifact, and in .finetune/<uid>/ while a run is under way."""

_POLYNOMIAL = 0x82F63B78
"""Castagnoli's, with its bits reversed: RFC 3720, appendix B.4."""
_MASK = 0xA282EAD8
_STRING = 7
"""DT_STRING of framework/types.proto."""


def file_name(job: str, started: float) -> str:
    """TensorBoard reads the files whose names contain `tfevents`, in the order of the number after it."""
    return f"events.out.tfevents.{int(started):010d}.{job}"


def header(time: float) -> bytes:
    """The first record of every file."""
    return _record(_double(1, time) + _bytes(3, b"brain.Event:2"))


def scalars(step: int, time: float, values: Mapping[str, float]) -> bytes:
    """Numbers of one step; `time` in Unix seconds."""
    return _event(step, time, b"".join(_bytes(1, _bytes(1, n.encode()) + _float(2, v)) for n, v in values.items()))


def text(name: str, content: str, time: float) -> bytes:
    """A text for the tab TEXT, which shows it as Markdown."""
    metadata = _bytes(9, _bytes(1, _bytes(1, b"text")))
    shape = _bytes(2, _bytes(2, _varint(1, 1)))
    tensor = _bytes(8, _varint(1, _STRING) + shape + _bytes(8, content.encode()))
    return _event(0, time, _bytes(1, _bytes(1, name.encode()) + metadata + tensor))


def opening(name: str, manifest: str, time: float) -> bytes:
    """The header, and the manifest as a text."""
    return header(time) + text(name, f"```yaml\n{manifest}```", time)


def of_record(record: RunRecord, *, manifest: str) -> tuple[str, bytes]:
    """(name, content) of the event file of a finished run: curves of all attempts, evaluation, guards. A function of
    the record alone."""
    ended = _seconds(record.completion_time)
    started = _seconds(record.start_time) or ended
    at = clock(record.attempts, until=ended)
    parts = [opening("manifest", manifest, started)]
    parts += [scalars(point.step, at(point.step), point.values) for point in of_curves(record.curve, record.validation)]
    outcome = outcome_of(record)
    parts.append(scalars(outcome.step, ended, outcome.values))
    return file_name(record.job.name, started), b"".join(parts)


def _seconds(when: str) -> float:
    return datetime.fromisoformat(when).timestamp() if when else 0.0


def _event(step: int, time: float, summary: bytes) -> bytes:
    return _record(_double(1, time) + _varint(2, step) + _bytes(5, summary))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """crc32c(b"123456789") == 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _entry(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(map(_entry, range(256)))


def _key(field: int, wire: int) -> bytes:
    return _number(field << 3 | wire)


def _number(value: int) -> bytes:
    """A base-128 varint; negative numbers do not occur."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _varint(field: int, value: int) -> bytes:
    return _key(field, 0) + _number(value)


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    try:
        return _key(field, 5) + struct.pack("<f", value)
    except OverflowError:  # beyond the range of 32 bits
        return _key(field, 5) + struct.pack("<f", float("inf") if value > 0 else float("-inf"))


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, 2) + _number(len(value)) + value
