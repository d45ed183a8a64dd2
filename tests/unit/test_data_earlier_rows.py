"""Training rows of earlier tasks that are replayed: which ones, and which never are."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import build
from finetune_trainer.data.earlier_rows import EarlierRows, Reservoir, from_file, shares, to_file
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.read import Row
from finetune_trainer.data.split import fingerprint, reservoir_key
from finetune_trainer.store import sources
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.trained_on import TrainedTask, trained_task
from tests.support.datasets import spec_of, texts
from tests.support.faulty_stores import MemoryFolder
from tests.support.tokenizers import tokenizer_folder, write_jsonl
from tests.unit.test_data_in_place import as_parquet

NONE = np.zeros(0, np.uint64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    tokenizer_folder(folder)
    return folder


def job(model: Path, cache: Path, uri: str | list[str], *, seed: int = 1, **data: object) -> tuple[Data, Datasets]:
    spec = spec_of(uri, format="text", **data)
    return spec, load_datasets(spec, tokenizer_path=model, cache=cache, seed=seed)


def task(spec: Data, data: Datasets, name: str = "one", *, seed: int = 1, keys: tuple[str, ...] = ()) -> TrainedTask:
    found = trained_task(
        spec,
        name=name,
        artifact=f"s3://corp/{name}",
        seed=seed,
        labels=(),
        keys=keys,
        rows=[source.rows for source in data.statistics.sources],
        files=data.files,
        digests=data.digests,
    )
    assert found is not None
    return found


def earlier(model: Path, cache: Path, *uris: str) -> EarlierRows:
    """One task of each file, and the rows that their jobs held out."""
    jobs = [job(model, cache, uri) for uri in uris]
    tasks = tuple(task(*each, name=f"task-{at}") for at, each in enumerate(jobs))
    return EarlierRows(tasks, np.unique(np.concatenate([found.measured for _, found in jobs])))


def replay(
    model: Path, folder: Path, rows: EarlierRows, *, most: int = 10_000, seed: int = 1, **data: object
) -> Datasets:
    """What a job replays that trains on other rows."""
    train = write_jsonl(folder / "now.jsonl", *texts(20, start=9000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "EARLIER_ROWS", most)
        return load_datasets(
            spec_of(train, **data), tokenizer_path=model, cache=folder / f"now-{most}", seed=seed, earlier=rows
        )


def texts_in(data: Datasets, model: Path) -> list[str]:
    from finetune_trainer.data.tokenizer import Tokenizer

    assert data.replay is not None
    decoded = Tokenizer.load(model).backend
    rows = (data.replay.row(at).tokens.tolist() for at in range(len(data.replay)))
    return [decoded.decode(row, skip_special_tokens=True).strip() for row in rows]


def test_a_reservoir_keeps_the_lowest_keys_each_once() -> None:
    chosen = random.Random(3)
    for count in (0, 1, 7, 200):
        keys = [chosen.randrange(100) for _ in range(count)]
        for most in (1, 5, 64):
            kept = Reservoir(most)
            for key in keys:
                kept.add(key)
            assert sorted(kept.lowest(most)) == sorted(set(keys))[:most]
            assert sorted(kept.lowest(3)) == sorted(set(keys))[: min(3, most)]


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [
        ([50, 900, 400], 600, [50, 275, 275]),
        ([5, 5], 100, [5, 5]),
        ([900, 900, 900], 10, [3, 3, 4]),
        ([0, 30], 10, [0, 10]),
        ([], 10, []),
    ],
)
def test_tasks_get_equal_parts_where_they_have_them(rows: list[int], most: int, expected: list[int]) -> None:
    assert shares(rows, most) == expected


def test_every_task_is_in_the_sample_as_much_as_any_other(model: Path, tmp_path: Path) -> None:
    large = write_jsonl(tmp_path / "large.jsonl", *texts(300))
    small = write_jsonl(tmp_path / "small.jsonl", *texts(15, start=1000))
    rows = earlier(model, tmp_path / "cache", large, small)
    data = replay(model, tmp_path, rows, most=60)
    first, second = data.statistics.replayed
    assert (first.name, first.rows, first.drawn) == ("task-0", 285, 46)
    assert (second.name, second.rows, second.drawn) == ("task-1", 14, 14)
    assert data.replay_parts == (46, 14)
    found = texts_in(data, model)
    assert {text in {f"row {n}" for n in range(300)} for text in found[:46]} == {True}
    assert {text in {f"row {n}" for n in range(1000, 1015)} for text in found[46:]} == {True}
    assert "46 of 285 training rows, 46 documents to replay; 15 left out, since they measure a task" in str(
        data.statistics
    )


def test_content_and_seed_decide_what_is_drawn(model: Path, tmp_path: Path) -> None:
    """Neither the order of the rows, nor copies of them; and a larger sample has the smaller one in it."""
    rows = texts(200)
    here = write_jsonl(tmp_path / "here.jsonl", *rows)
    found = {most: _drawn(model, tmp_path, here, most=most) for most in (20, 40)}
    assert (len(found[20]), len(found[40])) == (20, 40)
    assert found[20] < found[40]
    assert _drawn(model, tmp_path, here, most=20, seed=2) != found[20]
    random.Random(0).shuffle(rows)
    shuffled = write_jsonl(tmp_path / "shuffled.jsonl", *rows, *rows[:30])
    again = replay(model, tmp_path, EarlierRows(_tasks(model, tmp_path, shuffled), NONE), most=40)
    assert sorted(texts_in(again, model)) == sorted(_drawn(model, tmp_path, here, most=40, measured=NONE))


def _tasks(model: Path, folder: Path, uri: str) -> tuple[TrainedTask, ...]:
    return (task(*job(model, folder / "cache", uri)),)


def _drawn(
    model: Path, folder: Path, uri: str, *, most: int, seed: int = 1, measured: np.ndarray | None = None
) -> set[str]:
    rows = earlier(model, folder / "cache", uri)
    rows = rows if measured is None else EarlierRows(rows.tasks, measured)
    return set(texts_in(replay(model, folder, rows, most=most, seed=seed), model))


def test_each_row_is_drawn_as_likely_as_any_other() -> None:
    """Rows of the first quarter of a file, over ten seeds, lie within four deviations of a binomial share."""
    rows = [Row("train.jsonl", number + 1, fields) for number, fields in enumerate(texts(400))]
    drawn = []
    for seed in range(1, 11):
        keys = [reservoir_key(row, seed=seed) for row in rows]
        kept = Reservoir(80)
        for key in keys:
            kept.add(key)
        drawn.append({number for number, key in enumerate(keys) if key in kept.lowest(80)})
    assert all(len(each) == 80 for each in drawn)
    count = sum(number < 100 for each in drawn for number in each)
    assert abs(count - 800 * 0.25) <= 4 * math.sqrt(800 * 0.25 * 0.75)
    assert len(set().union(*drawn)) > 300, "other seeds draw other rows"


def test_rows_that_measure_any_task_are_never_drawn(model: Path, tmp_path: Path) -> None:
    """Neither what the earlier job held out, nor its test data, nor what this job measures; also with other case."""
    train = write_jsonl(tmp_path / "train.jsonl", *texts(60))
    test = write_jsonl(tmp_path / "test.jsonl", *texts(5, start=500))
    spec, before = job(model, tmp_path / "cache", train, test={"uri": test})
    # the second job trains on what the first measured
    later = write_jsonl(tmp_path / "later.jsonl", *texts(30, start=480), {"text": "ROW  700"})
    more, found = job(model, tmp_path / "cache", later, allowDuplicates=True)
    measured = np.union1d(before.measured, found.measured)
    rows = EarlierRows((task(spec, before), task(more, found, "two")), measured)
    now = write_jsonl(tmp_path / "mine.jsonl", {"text": "Row 700"}, {"text": "row 3"}, {"text": "row 485"})
    general = write_jsonl(tmp_path / "general.jsonl", {"text": "row 4"}, {"text": "row 12345"})
    data = replay(model, tmp_path, rows, test={"uri": now}, general={"uri": general})
    replayed = {fingerprint(text) for text in texts_in(data, model)}
    assert not replayed & set(measured.tolist())
    assert not replayed & set(data.measured.tolist())
    assert before.validation is not None
    assert data.statistics.replayed[0].left_out == len(before.validation) + len({3, 4} - _held(before))
    assert {fingerprint(text) for text in ("row 3", "row 4", "row 485", "row 500", "row 700")} <= (
        set(measured.tolist()) | set(data.measured.tolist())
    )


def _held(data: Datasets) -> set[int]:
    return {number for number in (3, 4) if fingerprint(f"row {number}") in set(data.measured.tolist())}


def test_rows_that_the_job_did_not_draw_are_not_replayed(model: Path, tmp_path: Path) -> None:
    uri = write_jsonl(tmp_path / "train.jsonl", *texts(100))
    spec = Data.model_validate({"train": ({"uri": uri, "maxRows": 30},), "format": "text"})
    before = load_datasets(spec, tokenizer_path=model, cache=tmp_path / "cache", seed=5)
    rows = EarlierRows((task(spec, before, seed=5),), before.measured)
    data = replay(model, tmp_path, rows)
    assert before.train.marks is not None
    assert data.replay is not None
    assert data.replay.marks is not None
    assert sorted(data.replay.marks.rows.tolist()) == sorted(before.train.marks.rows.tolist())


def test_long_rows_are_dropped_and_long_texts_cut(model: Path, tmp_path: Path) -> None:
    text = write_jsonl(tmp_path / "text.jsonl", *texts(3), {"text": " ".join(f"row {n}" for n in range(50))})
    rows = EarlierRows(_tasks(model, tmp_path, text), NONE)
    data = replay(model, tmp_path, rows, sequenceLength=32)
    assert data.replay is not None
    assert data.replay.lengths.max() <= 32
    assert data.statistics.splits["replay"].split == 1
    assert data.replay_parts == (len(data.replay),)


CHANGES = {
    "another content": (lambda file: file.write_text(file.read_text() + '{"text": "more"}\n'), Reason.DataChanged),
    "no file": (Path.unlink, Reason.DataNotFound),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_files_that_are_not_what_the_task_trained_on_are_refused(
    model: Path, tmp_path: Path, change: object, reason: Reason
) -> None:
    rows = EarlierRows(_tasks(model, tmp_path, write_jsonl(tmp_path / "train.jsonl", *texts(30))), NONE)
    replay(model, tmp_path, rows)
    change(tmp_path / "train.jsonl")  # type: ignore[operator]
    with pytest.raises(FinetuneError, match=r"training rows of the earlier task one are replayed: .*train\.jsonl") as e:
        replay(model, tmp_path, rows)
    assert e.value.reason is reason
    assert e.value.hint


def test_files_that_were_added_to_a_folder_are_not_replayed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "a.jsonl", *texts(30))
    rows = EarlierRows(_tasks(model, tmp_path, f"file://{tmp_path}/rows/"), NONE)
    write_jsonl(tmp_path / "rows" / "b.jsonl", *texts(30, start=100))
    data = replay(model, tmp_path, rows)
    assert set(texts_in(data, model)) == {f"row {number}" for number in range(30)}


@pytest.mark.parametrize("named", ["rows/", "rows/*.jsonl", "rows/a.json?"])
def test_a_manifest_that_names_a_folder_or_a_pattern_as_a_file_is_refused(
    model: Path, tmp_path: Path, named: str
) -> None:
    """A digest is that of one file, so none of those would be compared with it."""
    (tmp_path / "rows").mkdir()
    write_jsonl(tmp_path / "rows" / "a.jsonl", *texts(30))
    (honest,) = _tasks(model, tmp_path, f"file://{tmp_path}/rows/")
    source = honest.sources[0].model_copy(update={"files": {f"file://{tmp_path}/{named}": 64 * "0"}})
    forged = EarlierRows((honest.model_copy(update={"sources": (source,)}),), NONE)
    with pytest.raises(FinetuneError, match="the earlier task one are replayed: there is no file") as e:
        replay(model, tmp_path, forged)
    assert e.value.reason is Reason.DataNotFound


def test_a_task_of_which_nothing_is_left_is_refused(model: Path, tmp_path: Path) -> None:
    uri = write_jsonl(tmp_path / "train.jsonl", *texts(10))
    rows = EarlierRows(_tasks(model, tmp_path, uri), NONE)
    with pytest.raises(FinetuneError, match="task one are replayed: none of them is left: all of them measure") as e:
        replay(model, tmp_path, rows, test={"uri": uri})
    assert e.value.reason is Reason.NothingToTrain


def test_tables_in_a_bucket_are_known_again_whatever_this_job_reads_of_them(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of a table's columns is that of the columns that the earlier job read."""
    table = pa.table({"text": [f"row {n}" for n in range(40)], "who": [str(n // 4) for n in range(40)]})
    bucket = MemoryFolder({"a.parquet": as_parquet(table)}, "s3://corp")
    really = sources.open_folder

    def open_folder(uri: str, *, prefix: str, environ: Mapping[str, str]) -> Folder:
        return bucket if uri.startswith("s3://") else really(uri, prefix=prefix, environ=environ)

    monkeypatch.setattr(sources, "open_folder", open_folder)
    spec, before = job(model, tmp_path / "cache", "s3://corp/a.parquet", validation={"groupBy": "who", "fraction": 0.2})
    rows = EarlierRows((task(spec, before, keys=("who",)),), before.measured)
    assert rows.tasks[0].files["s3://corp/a.parquet"].startswith("rows:")
    now = load_datasets(
        spec_of("s3://corp/a.parquet", format="text"),
        tokenizer_path=model,
        cache=tmp_path / "cache",
        seed=1,
        earlier=rows,
    )
    assert now.digests["s3://corp/a.parquet"] != rows.tasks[0].files["s3://corp/a.parquet"]
    assert now.replay is not None
    changed = table.set_column(0, "text", pa.array([f"new {n}" for n in range(40)]))
    bucket.files["a.parquet"] = as_parquet(changed)
    with pytest.raises(FinetuneError, match=r"a\.parquet is not the file that the task was trained on"):
        replay(model, tmp_path, rows)


NAMED = {
    "a pattern": ("s3://corp/2024-?.jsonl", ["s3://corp/2024-1.jsonl"], True),
    "a signed URL": ("s3://corp/a.jsonl?X-Amz-Signature=0123456789abcdef", ["s3://corp/a.jsonl"], False),
    "a key in a file's name": ("s3://corp/rows/", ["s3://corp/a-AKIAABCDEFGHIJKLMNOP.jsonl"], False),
    "too many files": ("s3://corp/rows/", [f"s3://corp/{n}.jsonl" for n in range(4097)], False),
    "a file with a name that is too long": ("s3://corp/rows/", [f"s3://corp/{'a' * 1024}.jsonl"], False),
    "a file with a space in its name": ("s3://corp/rows/", ["s3://corp/rows/a b.jsonl"], False),
}


@pytest.mark.parametrize(("uri", "files", "named"), NAMED.values(), ids=NAMED)
def test_a_manifest_names_files_but_no_secrets(uri: str, files: Sequence[str], named: bool) -> None:
    found = trained_task(
        Data.model_validate({"train": ({"uri": uri},), "format": "text"}),
        name="one",
        artifact="s3://corp/one",
        seed=1,
        labels=(),
        keys=(),
        rows=[1],
        files={uri: tuple(files)},
        digests=dict.fromkeys(files, 64 * "0"),
    )
    assert (found is not None) == named


def test_a_policy_sees_a_data_set_of_the_hub_without_its_commit() -> None:
    files = {f"hf://datasets/corp/rows@{40 * 'a'}/data/a.jsonl": 64 * "0", "s3://corp/a@b/c.jsonl": 64 * "0"}
    source = {"uri": "hf://datasets/corp/rows", "rows": 1, "files": files}
    told = {"name": "one", "artifact": "s3://corp/one", "sources": (source,), "format": "text", "sequenceLength": 64}
    found = [uri for _, uri in EarlierRows((TrainedTask.model_validate(told),), NONE).uris()]
    assert found == ["hf://datasets/corp/rows/data/a.jsonl", "s3://corp/a@b/c.jsonl"]


def test_fingerprints_come_back_from_their_file() -> None:
    measured = np.array([7, 2**63, 7, 1], np.uint64)
    assert from_file(to_file(measured)).tolist() == [1, 7, 2**63]
    assert from_file(b"").tolist() == []
    with pytest.raises(ValueError, match="size"):
        from_file(b"123456789")
