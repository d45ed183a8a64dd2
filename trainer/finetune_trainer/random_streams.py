"""Random streams. Every use of chance in a run has a name here, and numbers of its own.

Numbers come from numpy's SeedSequence over (seed, *place, tag). SeedSequence ignores trailing zeros: [1, 0] equals
[1, 0, 0]. So a stream's entropy ends with its tag, which is never zero; without one, source 0 of an epoch would draw
the numbers of that epoch's order. The order of rows has no tag, as the only stream with one number for its place.

Not listed, because they need no place: initial values of what a method adds (torch's generator, seeded with
training.seed itself), and probes of a device or a network, whose constant seeds decide nothing about what is learned.

Generations  a run keeps the numbers that it began with. 1: runs begun before tags were given to all streams, and before
             the sample of data.train[].maxRows and the held-out rows had keys of their own. 2: as described here
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

NEWEST = 2


@dataclass(frozen=True)
class Stream:
    """Numbers by seed and place."""

    name: str
    place: tuple[str, ...]
    """What the numbers of the place count."""
    tag: int = 0
    """0: none."""
    tagged_since: int = 1
    """Generation."""

    def sequence(self, seed: int, *place: int, generation: int = NEWEST) -> np.random.SeedSequence:
        if len(place) != len(self.place):
            raise ValueError(f"the stream {self.name} needs {', '.join(self.place)}, not {place}")
        tag = (self.tag,) if self.tag and generation >= self.tagged_since else ()
        return np.random.SeedSequence((seed, *place, *tag))

    def number(self, seed: int, *place: int, generation: int = NEWEST) -> int:
        """64 bits, to seed another generator."""
        [state] = self.sequence(seed, *place, generation=generation).generate_state(1, np.uint64)
        return int(state)

    def raw(
        self, count: int, seed: int, *place: int, generation: int = NEWEST
    ) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """(count,): numpy promises that PCG64's raw stream stays the same, but not `Generator.permutation`."""
        return np.random.PCG64(self.sequence(seed, *place, generation=generation)).random_raw(count)


@dataclass(frozen=True)
class Keys:
    """Numbers by seed and content, so that files or rows in another order have the same ones."""

    name: str
    prefix: str = ""
    prefixed_since: int = 1
    """Generation."""

    def number(self, seed: int, content: str, *, generation: int = NEWEST) -> int:
        """64 bits of a digest."""
        prefix = f"{self.prefix}\0" if self.prefix and generation >= self.prefixed_since else ""
        return int.from_bytes(hashlib.sha256(f"{prefix}{seed}\0{content}".encode()).digest()[:8], "big")


ORDER = Stream("order of the rows", ("epoch",))
PART = Stream("rows of a source that an epoch sees once more", ("epoch", "source"), tag=0x9A27, tagged_since=2)
DROPOUT = Stream("dropout", ("step", "rank", "micro-batch"), tag=0xD209, tagged_since=2)
AUGMENTED = Stream("rows that are augmented", ("epoch", "kind"), tag=0xA06)
AUGMENTATION = Stream("what augmentation does to a row", ("epoch", "row", "kind"), tag=0xA06)
REPLAYED = Stream("order of the replayed rows", ("pass",), tag=0x2E91)
FISHER = Stream("documents that importance is measured on, and their labels", ("documents or labels",), tag=0xF15E)
PERMUTED = Stream("what an analysis permutes to see chance", ("permutation",), tag=0x9E4)
ANSWERED = Stream("generated answers", ("batch",), tag=0x6E4A)
OWN_TEXT = Stream("text that the base model writes to replay it", ("batch",), tag=0x5E1F)
CONTROL = Stream("random labels of words, the control of a concept probe", ("control",), tag=0xC0A7)
LABELLED = Stream("windows of text with labelled tokens", (), tag=0x1ABE)
UNTRAINED = Stream("weights of an untrained copy", ("copy",), tag=0x92A1)
SAMPLE = Keys("rows drawn by data.train[].maxRows", prefix="sample", prefixed_since=2)
HELD_OUT = Keys("rows held out for validation")
MEASURED = Keys("held-out documents drawn by evaluation.maxRows", prefix="measured")
SHOWN = Keys("training rows that a few-shot prompt shows", prefix="shown")
RESERVOIR = Keys("training rows of earlier tasks, drawn to be replayed", prefix="earlier")

STREAMS = (
    ORDER,
    PART,
    DROPOUT,
    AUGMENTED,
    AUGMENTATION,
    REPLAYED,
    FISHER,
    PERMUTED,
    ANSWERED,
    OWN_TEXT,
    CONTROL,
    LABELLED,
    UNTRAINED,
)
KEYS = (SAMPLE, HELD_OUT, MEASURED, SHOWN, RESERVOIR)
