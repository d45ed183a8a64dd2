"""Frozen layers once: what they make of a row is the same in every epoch, so it is computed before the first step, kept
on disk next to the tokens, and read in every step and every evaluation after.

    below        the layers whose states may be kept
    kept         corpora with their states, where that saves work and the disk has space
    worthwhile   whether a run passes over its rows often enough
    StateCache        where states lie, by a digest of all that they depend on: weights, rows, layout, versions
    keep         states of a corpus, computed by the processes of a node together

States do not depend on the step in which they are used, nor on the number of processes, so a run that was stopped and
lost its disk continues bit for bit. Disk is bounded: half of what is free, and never more than `MOST_BYTES`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.plan import RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.cache import prune
from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.data.hidden_states import Array, Chunks
from finetune_trainer.data.pack import PADDING, MicroBatch, idle
from finetune_trainer.methods.base import Attached
from finetune_trainer.methods.needs import WHOLE
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.transfer.evaluate import Layout, Stopped

from .frozen_layers import FrozenLayers, find_frozen_layers
from .loop import Course
from .model import LanguageModel
from .reporter import Reporter

MOST_BYTES = 20 << 30
FREE_SHARE = 0.5
CHUNK_BYTES = 64 << 20
"""Bytes of a file, which is what a process that is stopped may lose."""

SAVING = 1.25
"""Passes that it takes to pay for states apart from the steps, for writing and for reading them."""

RECIPE = 1
"""Raised when the same layers would leave other states."""


def below(
    spec: FineTuneJobSpec, network: nn.Module, attached: Attached, device: torch.device, strategy: Strategy
) -> FrozenLayers | None:
    """The layers whose states may be kept, if there are any: they lie below the lowest one that trains."""
    if not spec.training.frozen_layer_cache or strategy.name not in WHOLE or not attached.trainable:
        return None
    return find_frozen_layers(network, attached.lowest_layer, device)


def kept(
    train: Corpus, validation: Corpus | None, shelf: StateCache, plan: RunPlan, *, course: Course, reporter: Reporter
) -> tuple[Corpus, Corpus | None]:
    """Collective: both with their states, where that saves work. Interrupted when a rank was asked to stop; what was
    computed by then is not computed again."""
    # Validation also measures the base model, and what is kept in the end.
    passes = course.total_steps * course.batch_size / max(1, len(train)), 2 + course.total_steps / course.evaluate_every

    def going_on() -> bool:
        reporter.alive()
        return not reporter.run_dir.stop_requested

    def known(corpus: Corpus | None, times: float) -> Corpus | None:
        if corpus is None or not worthwhile(passes=times, nodes=plan.nodes):
            return corpus
        reporter.say(f"{shelf.model.depth_below} frozen layers run once over {corpus.offsets[-1]:,} tokens")
        return keep(corpus, shelf, strategy=shelf.model.strategy, going_on=going_on, say=reporter.say)

    try:
        return known(train, passes[0]) or train, known(validation, passes[1])
    except Stopped:
        raise FinetuneError(Reason.Interrupted, "stopped on request before the first step") from None


def worthwhile(*, passes: float, nodes: int) -> bool:
    """`passes`: how often the run sees a row. Without states the gang shares the work of each pass; with them each node
    computes every row once for itself."""
    return passes > SAVING * nodes


@dataclass(frozen=True)
class StateCache:
    model: LanguageModel
    """The model, whose layers below the lowest trained one are known."""
    layout: Layout
    root: Path
    """The folder of all states in the node's cache."""
    weights: str
    """Distinguishes the model's files from others."""

    def chunks(self, corpus: Corpus) -> Chunks:
        return Chunks.of(self.root / self._key(corpus), corpus.offsets, tokens=CHUNK_BYTES // self._width)

    def bytes(self, corpus: Corpus) -> int:
        return int(corpus.offsets[-1]) * self._width

    def compute(self, corpus: Corpus, rows: Numbers, places: Numbers) -> Array:
        """(tokens of `rows`, dim); `rows` follow each other. They are packed with each other, and with no others."""
        made: Tensor | None = None
        for batch in self.layout.batches(corpus, rows):
            found = self.model.states(batch).flatten(0, 1).cpu()
            if made is None:
                made = torch.empty(int(places[-1]), found.shape[1], dtype=found.dtype)
            for document, where in _documents(batch):
                start = int(places[document - rows[0]])
                made[start : start + len(where)] = found[where]
        assert made is not None
        return made.view(torch.int16).numpy() if made.dtype.itemsize == 2 else made.numpy()

    @property
    def _width(self) -> int:
        """Bytes of a token's states."""
        one = self.model.states(idle())
        return one.shape[-1] * one.element_size()

    def _key(self, corpus: Corpus) -> str:
        import transformers

        digest = hashlib.blake2b(digest_size=16)
        for array in (corpus.tokens, corpus.offsets):
            digest.update(np.ascontiguousarray(array).data)
        model, device = self.model, self.model.device
        facts = [self.weights, model.depth_below, model.describe(), self.layout, RECIPE]
        facts += [torch.__version__, transformers.__version__, torch.get_num_threads(), device.type]
        if device.type == "cuda":
            facts.append(torch.cuda.get_device_name(device))
        digest.update(repr(facts).encode())
        return digest.hexdigest()


def keep(
    corpus: Corpus, shelf: StateCache, *, strategy: Strategy, going_on: Callable[[], bool], say: Callable[[str], None]
) -> Corpus:
    """Collective. The corpus with its states; without, where this node's disk is too full. `going_on` is asked between
    files; when it says no on any rank, every rank raises Stopped."""
    chunks, place = shelf.chunks(corpus), strategy.place
    chunks.folder.mkdir(parents=True, exist_ok=True)
    lock = chunks.folder.with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)  # as long as this process uses them, nobody removes them
    os.utime(chunks.folder)
    need, room = shelf.bytes(corpus), _room(chunks)
    mebibytes = f"{(need >> 20) + 1} MiB of disk, and {room >> 20} may be used"
    fits = need <= room
    if fits and place.local_rank == 0:
        prune(shelf.root, keep=chunks.folder, most_bytes=MOST_BYTES - need)
    if not fits:
        say(f"frozen layers run in every step: their states need {mebibytes}")

    def compute(rows: Numbers, places: Numbers) -> Array:
        return shelf.compute(corpus, rows, places)

    stopped = False
    for index in range(place.local_rank, len(chunks) if fits else 0, place.local_world_size):
        if stopped := not going_on():
            break
        chunks.fill(index, compute)
    if strategy.sum_counters([float(stopped)])[0]:
        raise Stopped
    if not fits:
        return corpus
    for index in range(len(chunks)):  # of a neighbour that found no room
        chunks.fill(index, compute)
    return replace(corpus, states=chunks.open(lock))


def digest_of(folder: Path) -> str:
    """A digest of a model's files, by names, sizes and times: weights are too large to be read twice."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json"))
    return repr([(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files])


def _room(chunks: Chunks) -> int:
    there = sum(file.stat().st_size for file in chunks.folder.iterdir())
    return min(MOST_BYTES, there + int(FREE_SHARE * shutil.disk_usage(chunks.folder).free))


def _documents(batch: MicroBatch) -> Iterator[tuple[int, Tensor]]:
    """(row of the corpus, its places among all tokens of the batch, in order)"""
    segments = batch.segments.ravel()
    order = np.argsort(segments, kind="stable")
    order = order[np.searchsorted(segments[order], PADDING, side="right") :]
    for places in np.split(order, np.flatnonzero(np.diff(segments[order])) + 1):
        yield int(batch.documents[segments[places[0]]]), torch.from_numpy(places)
