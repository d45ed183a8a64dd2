"""Files to rows: what is read, and how every complaint names file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow
import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.read import PASSAGE, Row, iter_rows
from finetune_trainer.store.sources import SourceFile


def read_rows(path: Path, name: str | None = None) -> list[Row]:
    return list(iter_rows(SourceFile(name or str(path), "", path)))


def test_rows_keep_the_line_numbers_of_an_editor(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": "t\xc3\xb6"}')
    assert [(row.line, row.fields) for row in read_rows(path)] == [(1, {"text": "one"}), (4, {"text": "tö"})]


def test_gzip_is_read_as_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n'))
    assert read_rows(path)[0].fields == {"text": "one"}


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "txt.gz"])
def test_a_line_that_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_trainer.data.read.LONGEST_LINE", 2 << 20)
    bomb = b'{"text": "one"}\n{"text": "' + bytes(5 << 20)
    packed = {"gz": gzip.compress, "zst": zstd}.get(ending.rpartition(".")[2], bytes)(bomb)
    (tmp_path / f"bomb.{ending}").write_bytes(packed)

    with pytest.raises(FinetuneError, match="line 2 has more than 2 MiB") as caught:
        read_rows(tmp_path / f"bomb.{ending}")
    assert caught.value.reason is Reason.DataUnreadable


def zstd(content: bytes) -> bytes:
    return pyarrow.compress(content, codec="zstd", asbytes=True)


def test_zstd_is_read_as_what_it_holds(tmp_path: Path) -> None:
    """Also where it was written in several frames, as tools of many threads do, and of more than a block."""
    path = tmp_path / "a.jsonl.zst"
    rows = [f'{{"text": "{number} {"x" * 50}"}}\n'.encode() for number in range(4000)]
    path.write_bytes(zstd(b"".join(rows[:1000])) + zstd(b"".join(rows[1000:])))
    read = read_rows(path)
    assert [row.line for row in read] == list(range(1, 4001))
    assert read[-1].fields == {"text": "3999 " + "x" * 50}


def test_plain_text_is_cut_at_blank_lines_into_passages_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraphs = [f"paragraph {number} " + "x" * (PASSAGE // 3) for number in range(7)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n\n" + "\n\n".join(paragraphs) + "\n\n\n")
    rows = read_rows(path)
    assert [row.line for row in rows] == [4, 10, 16]
    assert "\n\n".join(row.fields["text"] for row in rows) == "\n\n".join(paragraphs)


GZIPPED = gzip.compress(b'{"text": "one"}\n' * 99, mtime=0)
BAD = [
    ("missing.jsonl", None, Reason.DataNotFound, "there is no file NAME"),
    ("empty.jsonl", b"", Reason.DataEmpty, "NAME has no rows"),
    ("blank.jsonl", b"\n \n", Reason.DataEmpty, "NAME has no rows"),
    ("empty.txt", b"\n\n", Reason.DataEmpty, "NAME has no rows"),
    ("broken.jsonl", b'{"text": "a"}\n{"text": ', Reason.DataUnreadable, "NAME line 2: not valid JSON"),
    ("list.jsonl", b'{"text": "a"}\n\n["a"]', Reason.DataUnreadable, "NAME line 3: a row is a JSON object"),
    ("number.jsonl", b"1", Reason.DataUnreadable, "NAME line 1: a row is a JSON object, this is a number"),
    ("latin.jsonl", b'{"text": "a"}\n{"text": "\xe4"}', Reason.DataUnreadable, "NAME line 2: byte 11 is not UTF-8"),
    ("latin.txt", b"one\n\n\xe4", Reason.DataUnreadable, "NAME line 3: byte 1 is not UTF-8"),
    ("half.jsonl", rb'{"text": "\ud83d"}', Reason.DataUnreadable, r"NAME line 1: a \ud… escape"),
    ("cut.jsonl.gz", GZIPPED[:-9], Reason.DataUnreadable, "NAME is not a whole gzip"),
    ("plain.jsonl.gz", b'{"text": "one"}\n', Reason.DataUnreadable, "NAME is not a whole gzip"),
    ("cut.jsonl.zst", zstd(b'{"text": "one"}\n' * 99)[:-5], Reason.DataUnreadable, "NAME is not a whole zstd file"),
    ("plain.jsonl.zst", b'{"text": "one"}\n', Reason.DataUnreadable, "NAME is not a whole zstd file"),
    ("list.json", b'[{"text": "a"}]', Reason.DataUnreadable, "NAME is none of .jsonl, "),
    ("table.csv", b"text,label\n", Reason.DataUnreadable, "NAME is none of .jsonl, .jsonl.gz, .jsonl.zst, .txt"),
]


@pytest.mark.parametrize(("name", "content", "reason", "message"), BAD, ids=[case[0] for case in BAD])
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes | None, reason: Reason, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FinetuneError) as caught:
        read_rows(tmp_path / name, name=f"s3://corp/{name}")
    assert caught.value.reason is reason
    assert caught.value.message.startswith(message.replace("NAME", f"s3://corp/{name}"))
    assert caught.value.hint


def test_a_whole_emoji_escaped_in_two_halves_is_a_character(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(rb'{"text": "\ud83d\ude00"}')
    assert read_rows(path)[0].fields["text"] == "😀"
