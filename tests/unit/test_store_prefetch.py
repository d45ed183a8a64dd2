"""Weights that are read ahead: all of them, in order, and never a reason to fail."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finetune_trainer.store.prefetch import PIECE, prefetch_weights


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    calls: list[tuple[str, int, int]] = []

    def advise(descriptor: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        calls.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")).name, start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return calls


@pytest.mark.parametrize("claim", [False, True])
def test_every_piece_of_every_file_is_asked_for_in_order(
    tmp_path: Path, asked: list[tuple[str, int, int]], claim: bool
) -> None:
    folder = tmp_path / "models" / "m"
    folder.mkdir(parents=True)
    (folder / "b.safetensors").write_bytes(bytes(10))
    (folder / "a.safetensors").write_bytes(bytes(2 * PIECE + 1))
    (folder / "config.json").write_text("{}")
    uri = "pvc://models/m" if claim else f"file://{folder}"
    thread = prefetch_weights(uri, environ={"FINETUNE_PVC_ROOT": str(tmp_path)})
    assert thread is not None
    thread.join(30)
    pieces = [("a.safetensors", start, PIECE) for start in (0, PIECE, 2 * PIECE)]
    assert asked == [*pieces, ("b.safetensors", 0, PIECE)]


@pytest.mark.parametrize("uri", ["hf://org/model", "s3://bucket/model", "pvc://no-such-claim/model"])
def test_what_is_not_on_this_machine_is_left_alone(tmp_path: Path, asked: list[tuple[str, int, int]], uri: str) -> None:
    assert prefetch_weights(uri, environ={"FINETUNE_PVC_ROOT": str(tmp_path)}) is None
    assert asked == []


def test_a_missing_folder_is_for_others_to_tell(tmp_path: Path, asked: list[tuple[str, int, int]]) -> None:
    thread = prefetch_weights(f"file://{tmp_path}/nowhere")
    assert thread is not None
    thread.join(30)
    assert asked == []
