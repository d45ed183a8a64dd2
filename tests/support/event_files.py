"""Reads TensorBoard's event files, with the wire format of protobuf decoded by hand; checksums are verified."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from finetune_trainer.trackers.events import crc32c

Value = int | bytes


@dataclass
class Event:
    step: int = 0
    time: float = 0.0
    version: str = ""
    scalars: dict[str, float] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read(content: bytes) -> list[Event]:
    return [_event(data) for data in _records(content)]


def scalars(content: bytes) -> dict[str, list[tuple[int, float]]]:
    """Curves by name: (step, value) in the order of the file."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in read(content):
        for name, value in event.scalars.items():
            found.setdefault(name, []).append((event.step, value))
    return found


def _records(content: bytes) -> Iterator[bytes]:
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        assert _unmasked(content[8:12]) == crc32c(content[:8])
        data, content = content[12 : 12 + length], content[12 + length :]
        assert _unmasked(content[:4]) == crc32c(data)
        content = content[4:]
        yield data


def _unmasked(stored: bytes) -> int:
    """As in tensorflow/core/lib/hash/crc32c.h."""
    rotated = (int(struct.unpack("<I", stored)[0]) - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def _event(data: bytes) -> Event:
    event = Event()
    for number, value in _fields(data):
        match number, value:
            case 1, bytes():
                event.time = struct.unpack("<d", value)[0]
            case 2, int():
                event.step = value
            case 3, bytes():
                event.version = value.decode()
            case 5, bytes():
                for _, part in _fields(value):
                    assert isinstance(part, bytes)
                    _take(event, dict(_fields(part)))
    return event


def _take(event: Event, value: dict[int, Value]) -> None:
    name = value[1]
    assert isinstance(name, bytes)
    if isinstance(number := value.get(2), bytes):
        event.scalars[name.decode()] = struct.unpack("<f", number)[0]
    elif isinstance(tensor := value.get(8), bytes):
        text = dict(_fields(tensor))[8]
        assert isinstance(text, bytes)
        event.texts[name.decode()] = text.decode()


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
