"""`finetune data inspect`: rows as the model will see them, with a byte-level tokenizer made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from finetune_api.failures import ExitCode
from finetune_api.spec import ModelSource
from finetune_trainer.cli.data import GREEN, PLAIN, bars, marked
from finetune_trainer.cli.main import main
from finetune_trainer.statistics.language import guess
from finetune_trainer.store.models import LocalModel
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


def test_files_of_data_need_no_manifest(
    job: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(job[2]).parent
    monkeypatch.chdir(folder)
    write_jsonl(folder / "more.jsonl", *[{"prompt": "Where is it, and when?", "completion": " It is on the way."}] * 40)
    assert main(["data", "inspect", "train.jsonl", "more.jsonl", "--model", "model", "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    conforms("data-inspect", printed)
    assert [source["rows"] for source in printed["statistics"]["sources"]] == [30, 40]
    assert printed["repeated"] == 39
    assert printed["languages"]["English"] > 0.5
    asked: list[str] = []

    def resolved(source: ModelSource, *, cache: Path) -> LocalModel:
        asked.append(source.uri)
        return LocalModel(path=folder / "model", revision="main", uri=source.uri)

    monkeypatch.setattr("finetune_trainer.store.models.resolve_model", resolved)
    assert main(["data", "inspect", "more.jsonl", "--model", "hf://org/name"]) == ExitCode.OK
    assert asked == ["hf://org/name"]
    text = capsys.readouterr().out
    assert "train: 39 rows are copies of earlier ones" in text
    assert "English 100 %" in text


def test_the_question_of_classification_is_no_part_of_the_language(
    job: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(job[2]).parent)
    rows = [{"text": f"Где посылка {number}?", "label": "ab"[number % 2]} for number in range(40)]
    write_jsonl(Path("texts.jsonl"), *rows)
    assert main(["data", "inspect", "texts.jsonl", "--model", "model", "-o", "json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["languages"] == {"Cyrillic script": 1.0}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("empty.jsonl", b"", "has no rows"),
        ("lies.jsonl.gz", b"not packed", "lies.jsonl.gz"),
        ("table.csv", b"text,label\n", ".parquet"),
        ("missing.jsonl", None, "missing.jsonl"),
        ("job.yaml", b"{}", "spec: is required"),
    ],
)
def test_odd_files_of_data_are_named(
    job: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    file: str, content: bytes | None, said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(Path(job[2]).parent)
    if content is not None:
        Path(file).write_bytes(content)
    assert main(["data", "inspect", file, "--model", "model"]) in (ExitCode.DATA, ExitCode.CONFIG)
    told = " ".join(capsys.readouterr().err.split())
    assert said in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The parcel that you have sent is not for me.", "English"),
        ("Wo ist mein Paket, und wann wird das Geld erstattet?", "German"),
        ("La commande n'est pas arrivée, et les délais sont dépassés.", "French"),
        ("El pedido no ha llegado y los plazos se han cumplido.", "Spanish"),
        ("O pedido não chegou e os prazos já passaram.", "Portuguese"),
        ("Paczka nie dotarła na czas, ale to jest w porządku.", "Polish"),
        ("Где моя посылка?", "Cyrillic script"),
        ("荷物はどこですか", "Japanese"),
        ("我的包裹在哪里", "Chinese"),
        ("소포가 어디에 있나요", "Korean"),
        ("parcel 17", ""),
        ("for (int i = 0; i < n; i++) { a[i] += b[i]; }", ""),
        ("12 + 30", ""),
    ],
)
def test_a_language_is_guessed_by_script_and_frequent_words(text: str, language: str) -> None:
    assert guess(text) == language


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
