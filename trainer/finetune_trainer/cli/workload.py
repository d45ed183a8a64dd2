"""What `finetune plan` knows of the rows without a tokenizer: the sizes of local files of lines."""

from __future__ import annotations

import math
from pathlib import Path

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.continued import replayed_tasks
from finetune_trainer.planning.table import Workload

BYTES_A_TOKEN = 4.0
"""Bytes per token of English text, which has 0.23 to 0.25 tokens per byte."""

FEWEST_BYTES_A_TOKEN = 3.0
"""Lower bound for the estimate of the longest row, for code and for languages with multi-byte letters."""


def workload_of(spec: FineTuneJobSpec, *, longest: int | None) -> Workload:
    """Returns the workload by the sizes of the rows. `longest`: tokens of the longest row, if they are known."""
    rows, size, largest = 0, 0.0, 1
    for source in spec.data.train:
        sizes = _sizes(source.uri)
        if not sizes:
            return Workload(longest=longest)
        taken = min(len(sizes), source.max_rows or len(sizes))
        rows += taken
        size += sum(sizes) * taken / max(1, len(sizes))
        largest = max([largest, *(size - 1 for size in sizes)])
    known = longest or math.ceil(largest / FEWEST_BYTES_A_TOKEN)
    again = _replayed(spec)
    if again is None:
        return Workload(rows=rows, tokens=int(size / BYTES_A_TOKEN), longest=known)
    windows = [part for whole in again for part in _windows(whole, spec.data.sequence_length)]
    return Workload(
        rows=rows,
        tokens=int(size / BYTES_A_TOKEN),
        longest=max(known, *(math.ceil(part / FEWEST_BYTES_A_TOKEN) for part in windows)) if windows else longest,
        replayed_row=sum(windows) / len(windows) / BYTES_A_TOKEN if windows else None,
    )


def _replayed(spec: FineTuneJobSpec) -> list[int] | None:
    """Returns the size of each row that may be replayed; empty if they are not known, None if none is replayed."""
    if spec.replay_uri is not None:
        return _sizes(spec.replay_uri)
    if not spec.regularization.replays_earlier:
        return None
    files = [_sizes(uri) for task in replayed_tasks(spec) or () for uri in task.files]
    return [size for sizes in files for size in sizes] if all(files) else []


def _sizes(uri: str) -> list[int]:
    """Returns the size of each row of local files of lines; empty for others."""
    from finetune_trainer.data.read import ENDINGS
    from finetune_trainer.store.sources import local_paths

    files = local_paths(uri, endings=ENDINGS) if uri.startswith("file:///") else []
    if any(path.suffix not in (".jsonl", ".txt") for path in files):
        return []
    try:
        return [size for path in files for size in _row_bytes(path)]
    except OSError:
        return []


def _windows(size: int, sequence_length: int) -> list[float]:
    """Returns the sizes of the windows that a long text is split into."""
    count = math.ceil(size / (sequence_length * BYTES_A_TOKEN))
    return [size / count] * count


def _row_bytes(file: Path) -> list[int]:
    """Returns the size of each row with its line break. Text is split into passages of PASSAGE bytes at blank lines."""
    from finetune_trainer.data.read import PASSAGE

    lines = [len(line) + 1 for line in file.read_bytes().splitlines()]
    if file.suffix != ".txt":
        return [size for size in lines if size > 1]
    passages = [0]
    for size in lines:
        if size == 1 and passages[-1] >= PASSAGE:
            passages.append(0)
        passages[-1] += size
    return [size for size in passages if size > 1]
