"""Snapshots to the bit, and a writer that does not hold up training nor swallow an error."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.train.checkpoint import CheckpointWriter, Snapshot, load
from tests.support.faulty_stores import RUN, MemoryFolder


@dataclass
class Gate(MemoryFolder):
    """A store that answers only when the gate is open, or fails."""

    open: threading.Event = field(default_factory=threading.Event)
    failing: bool = False
    begun: list[str] = field(default_factory=list)
    """The paths with which somebody has come to the gate."""

    def put(self, path: str, data: bytes | Path) -> None:
        self.begun.append(path)
        assert self.open.wait(60)
        if self.failing:
            raise FinetuneError(Reason.StorageUnavailable, "the store is away")
        super().put(path, data)


def odd_values(dtype: torch.dtype) -> torch.Tensor:
    values = [0.0, -0.0, 1.0, -1e-8, 3.0e38, math.inf, -math.inf, math.nan, 1e-40]
    return torch.tensor(values).to(dtype)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_tensors_come_back_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        "weights/a": torch.randn(17, 5, generator=generator),
        "weights/b": torch.randn(4, 3, generator=generator).to(torch.bfloat16),
        "weights/transposed": torch.randn(4, 3, generator=generator).T,
        "moments/odd32": odd_values(torch.float32),
        "moments/odd16": odd_values(torch.bfloat16),
        "moments/step": torch.tensor(7, dtype=torch.int64),
        "random/state": generator.get_state(),
        "weights/empty": torch.empty(0, 3),
    }
    state = {"step": 7, "cursor": [1, 2], "best": {"loss": 0.1 + 0.2}, "name": "ä"}
    store = CheckpointStore(MemoryFolder(), RUN)
    writer = CheckpointWriter(store, keep=2)
    writer.submit(7, Snapshot(tensors, state))
    writer.wait()
    checkpoint = CheckpointStore(store.folder, RUN).latest()
    assert checkpoint is not None
    found = load(store, checkpoint)
    assert found.state == state
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert found.tensors[name].shape == tensor.shape, name
        assert torch.equal(bits(found.tensors[name]), bits(tensor)), name


def test_training_goes_on_while_a_snapshot_is_saved() -> None:
    folder = Gate()
    writer = CheckpointWriter(CheckpointStore(folder, RUN), keep=2)
    weights = torch.ones(3)
    state = {"losses": [1.0]}
    writer.submit(1, Snapshot({"weights/w": weights}, state))
    weights.add_(1)
    state["losses"].append(2.0)
    assert writer.busy
    assert writer.saved_step is None
    folder.open.set()
    writer.wait()
    assert not writer.busy
    assert writer.saved_step == 1
    store = CheckpointStore(folder, RUN)
    found = load(store, store.get(1))
    assert found.tensors["weights/w"].tolist() == [1, 1, 1]
    assert found.state == {"losses": [1.0]}


def test_the_memory_for_copies_is_used_again_for_what_fits_it() -> None:
    folder = MemoryFolder()
    store = CheckpointStore(folder, RUN)
    writer = CheckpointWriter(store, keep=9)
    for step, length in enumerate([3, 3, 5], start=1):
        writer.submit(step, Snapshot({"weights/w": torch.full((length,), float(step))}, {}))
    writer.free()
    saved = [load(store, store.get(step)).tensors["weights/w"] for step in store.steps()]
    assert [tensor.tolist() for tensor in saved] == [[1.0] * 3, [2.0] * 3, [3.0] * 5]

    first = Snapshot({"weights/w": torch.ones(3)}, {}).copy()
    again = Snapshot({"weights/w": torch.zeros(3)}, {"step": 1}).copy(first.tensors)
    other = Snapshot({"weights/w": torch.zeros(3, dtype=torch.float64)}, {}).copy(first.tensors)
    place = first.tensors["weights/w"].data_ptr()
    assert (again.tensors["weights/w"].data_ptr() == place, other.tensors["weights/w"].data_ptr() == place) == (
        True,
        False,
    )


def test_one_save_at_a_time() -> None:
    folder = Gate()
    writer = CheckpointWriter(CheckpointStore(folder, RUN), keep=5)
    writer.submit(1, Snapshot({"weights/w": torch.zeros(3)}, {"step": 1}))
    threading.Timer(0.1, folder.open.set).start()
    writer.submit(2, Snapshot({"weights/w": torch.ones(3)}, {"step": 2}))
    writer.wait()
    assert (writer.saved_step, CheckpointStore(folder, RUN).steps()) == (2, [1, 2])
    manifests = ["/checkpoints/" in path for path in folder.begun]
    assert manifests == 2 * [False, False, True], "weights, state and manifest of one, and then those of the other"


@pytest.mark.parametrize("act", ["submit", "wait"])
def test_an_error_is_raised_by_the_next_call_and_once(act: str) -> None:
    folder = Gate(failing=True)
    folder.open.set()
    writer = CheckpointWriter(CheckpointStore(folder, RUN), keep=2)
    snapshot = Snapshot({"weights/w": torch.ones(3)}, {})
    writer.submit(1, snapshot)
    with pytest.raises(FinetuneError, match="the store is away"):
        writer.submit(2, snapshot) if act == "submit" else writer.wait()
    assert writer.saved_step is None
    folder.failing = False
    writer.submit(3, snapshot)
    writer.wait()
    assert writer.saved_step == 3


def test_old_checkpoints_go_and_the_best_stays() -> None:
    store = CheckpointStore(MemoryFolder(), RUN)
    writer = CheckpointWriter(store, keep=2)
    for step in (1, 2, 3, 4, 5):
        writer.submit(step, Snapshot({"weights/w": torch.full((3,), float(step))}, {}), best_step=2)
    writer.wait()
    assert store.steps() == [2, 4, 5]


def test_groups_that_do_not_change_are_sent_once() -> None:
    folder = MemoryFolder()
    writer = CheckpointWriter(CheckpointStore(folder, RUN), keep=9)
    for step in (1, 2, 3):
        tensors = {"best/w": torch.ones(100), "weights/w": torch.full((100,), float(step))}
        writer.submit(step, Snapshot(tensors, {"step": step}))
    writer.wait()
    assert len([path for _, path in folder.changes if "/blobs/" in path]) == 1 + 3 + 3


def test_a_state_that_is_not_json_is_refused_at_once() -> None:
    writer = CheckpointWriter(CheckpointStore(MemoryFolder(), RUN), keep=2)
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.submit(1, Snapshot({}, {"loss": math.nan}))


def test_scratch_files_go_to_the_folder_named_and_do_not_stay(tmp_path: Path) -> None:
    writer = CheckpointWriter(CheckpointStore(MemoryFolder(), RUN), keep=2, scratch=tmp_path)
    writer.submit(1, Snapshot({"weights/w": torch.ones(3)}, {}))
    writer.wait()
    assert list(tmp_path.iterdir()) == []
