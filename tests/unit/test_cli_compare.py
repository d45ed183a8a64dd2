"""`finetune compare`: from the records of committed artifacts to differences with intervals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune_api.failures import ExitCode
from finetune_api.plan import JobIdentity
from finetune_trainer.cli.main import main
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.opening import open_folder
from finetune_trainer.transfer.records import BASE, TUNED, DataSet, Records, encode, of_rows
from tests.support.printed_json import conforms

LABELS = ("no", "yes")


def classified(right: float, *, rows: int = 400, start: int = 0, sharp: float = 2.0) -> Records:
    """Rows of which the first `right` are answered well, all the same in every call but for that."""
    correct = np.arange(rows) < right * rows
    gold = np.arange(rows) % 2
    nats = np.where(np.eye(2, dtype=bool)[np.where(correct, gold, 1 - gold)], 0.1, sharp)
    return of_rows(
        row=[f"{start + i:064x}" for i in range(rows)],
        nats=nats[np.arange(rows), gold],
        sizes=np.full(rows, 4),
        tokens=np.full(rows, 2),
        score=correct.astype(float),
        label=[LABELS[g] for g in gold],
        prediction=[LABELS[g] for g in nats.argmin(axis=1)],
        label_nats=nats,
    )


def artifact(folder: Path, *data: DataSet) -> str:
    commit_artifact(
        open_folder(folder.as_uri(), prefix=""),
        {"adapter.bin": b"x", **{each.path: encode(each) for each in data}},
        run=JobIdentity(name=folder.name, namespace="default", uid=folder.name),
        kind="adapter",
        overwrite=False,
    )
    return folder.as_uri()


def measured(base: Records, tuned: Records, *, name: str = "test", kind: str = "test") -> DataSet:
    return DataSet(name=name, kind=kind, labels=LABELS, models={BASE: base, TUNED: tuned})  # type: ignore[arg-type]


def test_two_artifacts_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = artifact(tmp_path / "a", measured(classified(0.5), classified(0.7)))
    second = artifact(
        tmp_path / "b",
        measured(classified(0.5), classified(0.85)),
        measured(classified(0.5), classified(0.5), name="books", kind="slice"),
    )
    assert main(["compare", first, second, "-o", "json"]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)
    conforms("compare", told)
    main_line = told["data"][0]
    assert (main_line["name"], main_line["metric"], main_line["verdict"]) == ("test", "accuracy", "better")
    assert main_line["difference"] == pytest.approx(0.15)
    assert main_line["low"] < 0.15 < main_line["high"]
    assert [line["metric"] for line in told["data"]] == ["accuracy", "loss", "bitsPerByte", "calibrationError"]
    assert told["leftOut"] == ["slice books: measured in the second alone"]


def test_intervals_of_slices_are_adjusted_for_their_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slices = [measured(classified(0.5), classified(0.6), name=name, kind="slice") for name in ("books", "films")]
    first = artifact(tmp_path / "a", measured(classified(0.5), classified(0.6)), *slices)
    assert main(["compare", first, "-o", "json"]) == ExitCode.OK
    confidence = {line["name"]: line["confidence"] for line in json.loads(capsys.readouterr().out)["data"]}
    assert confidence == {"test": 0.95, "books": 0.975, "films": 0.975}


def test_names_in_an_artifact_do_not_reach_the_terminal_as_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = np.array(["\x1b[2Jwiki", "code"] * 200)
    base, tuned = (replace(classified(right), source=files) for right in (0.5, 0.6))
    general = measured(base, tuned, kind="general", name="general")
    assert main(["compare", artifact(tmp_path / "a", general)]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert "wiki accuracy" in shown
    assert "\x1b" not in shown


def test_slices_on_which_the_second_is_worse_are_flagged_among_all_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def slices(books: float) -> list[DataSet]:
        right = {"books": books, "films": 0.7}
        return [measured(classified(0.5), classified(each), name=n, kind="slice") for n, each in right.items()]

    first, second = (artifact(tmp_path / name, *slices(books)) for name, books in (("a", 0.7), ("b", 0.6)))
    assert main(["compare", first, second, "-o", "json"]) == ExitCode.OK
    lines = json.loads(capsys.readouterr().out)["data"]
    told = {(line["name"], line["metric"]): line.get("negativeTransfer") for line in lines}
    assert told[("books", "accuracy")] is True
    assert told[("films", "accuracy")] is False
    assert {flag for (_, metric), flag in told.items() if metric != "accuracy"} == {None}
    assert main(["compare", first, second]) == ExitCode.OK
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.endswith("worse, negative transfer")] == ["books"]


def test_one_artifact_compares_its_base_with_its_tuned_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact(tmp_path / "a", measured(classified(0.5), classified(0.7)))
    assert main(["compare", str(tmp_path / "a")]) == ExitCode.OK
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if "test accuracy" in line)
    assert line.split()[:5] == ["test", "accuracy", "0.5000", "0.7000", "+0.2000"]
    assert line.endswith("better")


def test_different_rows_are_refused_with_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = artifact(tmp_path / "a", measured(classified(0.5), classified(0.7)))
    second = artifact(
        tmp_path / "b", measured(classified(0.5), classified(0.7, rows=380, start=100), name="test", kind="test")
    )
    assert main(["compare", first, second]) == ExitCode.DATA
    told = " ".join(capsys.readouterr().err.split())
    assert "test has 400 rows in the first and 380 in the second, 300 of them in both" in told


def test_a_data_set_that_neither_has_and_an_artifact_without_records_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = artifact(tmp_path / "a", measured(classified(0.5), classified(0.7)))
    bare = artifact(tmp_path / "b")
    for command in (["compare", first, "--data", "general"], ["compare", first, bare]):
        assert main(command) != ExitCode.OK
        assert "to compare" in capsys.readouterr().err


def test_records_that_changed_after_the_commit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = artifact(tmp_path / "a", measured(classified(0.5), classified(0.7)))
    (tmp_path / "a/evaluation/test.parquet").write_bytes(encode(measured(classified(0.5), classified(0.99))))
    assert main(["compare", first]) == ExitCode.DATA
    assert "finetune verify" in capsys.readouterr().err
