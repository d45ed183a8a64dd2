"""One reader of safetensors headers: what it reads is what the library wrote, and nothing malformed passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.store.headers import LIMIT, MalformedHeader, TensorEntry, file_header, read_header

GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(header: bytes, data: bytes = bytes(8)) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def test_it_reads_what_the_library_writes(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3, 2, dtype=torch.bfloat16), "b": torch.tensor(2.0)}, file, metadata={"format": "pt"})
    header = file_header(file)
    assert header.tensors.keys() == {"a", "b"}
    a, b = header.tensors["a"], header.tensors["b"]
    assert (a.dtype, a.shape, a.size, a.count) == ("BF16", (3, 2), 12, 6)
    assert (b.dtype, b.shape, b.size, b.count) == ("F32", (), 4, 1)
    assert header.stop == file.stat().st_size
    content = file.read_bytes()
    assert torch.frombuffer(bytearray(content[b.start : b.stop]), dtype=torch.float32).item() == 2.0
    assert content[8 : header.start] == header.raw


def test_a_file_without_tensors_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(file_of(b"{}  ", b""))
    assert file_header(tmp_path / "empty").stop == 12


def entry(**changes: Any) -> bytes:
    return file_of(json.dumps({"a": {**GOOD, **changes}}).encode())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it has 0 bytes"),
        (b"version https://git-lfs.github.com/spec/v1", f"more than {LIMIT}"),
        (file_of(b"{}")[:9], "its header would have 2 bytes, and the file has 9"),
        (file_of(b"{'a': 1}"), "not valid JSON"),
        (file_of(b'{"\xff": 1}'), "not valid JSON"),
        (file_of(b"[" * 100_000), "not valid JSON"),
        (file_of(b"[]"), "not a JSON object"),
        (file_of(b'{"a": 1}'), "the entry of tensor 'a'"),
        (file_of(b'{"a": {"dtype": "F32", "shape": [2]}}'), "the entry of tensor 'a'"),
        (entry(shape=[-1]), "the entry of tensor 'a'"),
        (entry(shape=[2.0]), "the entry of tensor 'a'"),
        (entry(shape=[True]), "the entry of tensor 'a'"),
        (entry(dtype=7), "the entry of tensor 'a'"),
        (entry(data_offsets=[8, 0]), "the entry of tensor 'a'"),
        (entry(data_offsets=[-8, 0]), "the entry of tensor 'a'"),
        (entry(data_offsets=[0, 4, 8]), "the entry of tensor 'a'"),
    ],
)
def test_a_malformed_header_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(MalformedHeader, match=r"w\.safetensors is not a valid safetensors file: ") as caught:
        file_header(tmp_path / "w.safetensors")
    assert reason in str(caught.value)


def test_a_header_that_claims_too_much_is_not_read() -> None:
    """A stranger's file decides the length: of a file in a store, only the 8 bytes of it are requested."""
    asked: list[tuple[int, int]] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return (LIMIT + 1).to_bytes(8, "little")

    with pytest.raises(MalformedHeader):
        read_header(read, size=1 << 40, file="w")
    assert asked == [(0, 8)]


def test_a_tensor_may_end_after_the_file_does(tmp_path: Path) -> None:
    """A truncated download: the caller compares the size and says so in its own words."""
    (tmp_path / "w").write_bytes(entry()[:-4])
    header = file_header(tmp_path / "w")
    assert header.tensors["a"] == TensorEntry("F32", (2,), header.start, header.start + 8)
    assert header.stop == (tmp_path / "w").stat().st_size + 4
