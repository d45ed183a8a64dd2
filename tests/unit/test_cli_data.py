"""`finetune data inspect`: rows as the model will see them, with a byte-level tokenizer made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from finetune_api.failures import ExitCode
from finetune_trainer.cli.data import GREEN, PLAIN, bars, marked
from finetune_trainer.cli.main import main
from tests.support.printed_json import conforms
from tests.support.tokenizers import tokenizer_folder, write_jsonl


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of the command."""
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    tokenizer_folder(tmp_path / "model")
    rows = [{"prompt": f"{number}: ", "completion": "yes" * (number + 1)} for number in range(30)]
    spec = {
        "model": {"uri": (tmp_path / "model").as_uri()},
        "data": {
            "train": [{"uri": write_jsonl(tmp_path / "train.jsonl", *rows)}],
            "slices": [
                {"name": "news", "uri": write_jsonl(tmp_path / "news.jsonl", {"prompt": "a", "completion": "b"})}
            ],
        },
        "output": {"uri": (tmp_path / "out").as_uri()},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**head, "spec": spec}))
    return ["data", "inspect", str(tmp_path / "job.yaml"), "--model", str(tmp_path / "model")]


def test_rows_have_their_trained_tokens_marked(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*job, "--rows", "2"]) == ExitCode.OK

    text = capsys.readouterr().out
    assert "train: 28 rows" in text
    assert "row 1 of 28" in text
    assert "0: ⟦yes" in text
    assert "row 3 of" not in text


def test_a_slice_as_json_is_the_row_in_pieces(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*job, "--set", "news", "-o", "json"]) == ExitCode.OK

    printed = json.loads(capsys.readouterr().out)
    conforms("data-inspect", printed)
    (row,) = printed["rows"]
    assert [piece["trained"] for piece in row] == [False, True]
    assert row[0]["text"].endswith("a")
    assert row[1]["text"].startswith("b")
    assert len(printed["lengths"]) == 1
    assert printed["statistics"]["splits"]["train"]["rows"] == 28


def test_a_set_that_is_not_there_is_named_with_those_that_are(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*job, "--set", "test"]) == ExitCode.NO_INPUT
    assert "train, validation, news" in capsys.readouterr().err


def test_what_is_wrong_is_reported_with_its_line(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with (Path(job[2]).parent / "train.jsonl").open("a") as file:
        file.write("{not json\n")

    assert main(job) == ExitCode.DATA
    assert "line 31" in capsys.readouterr().err


def test_colours_and_marks() -> None:
    row = [("Q: ", False), ("yes", True)]

    assert marked(row, colour=False) == "Q: ⟦yes⟧"
    assert marked(row, colour=True) == f"Q: {GREEN}yes{PLAIN}"


@pytest.mark.parametrize(
    ("lengths", "lines"),
    [
        ([5], ["  5 to 5  " + "█" * 40 + " 1"]),
        ([1, 1, 20], ["   1 to  3  " + "█" * 40 + " 2", "  19 to 20  " + "█" * 20 + " 1"]),
    ],
)
def test_a_histogram(lengths: list[int], lines: list[str]) -> None:
    shown = bars(lengths)

    assert [shown[0], shown[-1]] == [lines[0], lines[-1]]
    assert len(shown) <= 8
