"""From a manifest's `data` to tokenised sets: splits, statistics, the cache, and what is refused."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import load as load_module
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.order import Mixture
from finetune_trainer.data.sample import measured_part
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.data.writer import short_names
from finetune_trainer.statistics import DataRecord
from tests.support.datasets import labelled, load, spec_of, texts
from tests.support.fake_hub import COMMIT, environ, serving
from tests.support.tokenizers import tokenizer_folder, write_jsonl


def test_everything_at_once(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *labelled(40))
    test = write_jsonl(tmp_path / "test.jsonl", *labelled(6, "test"), *labelled(2))
    news = write_jsonl(tmp_path / "news.jsonl", *labelled(5, "news"))
    general = write_jsonl(tmp_path / "general.jsonl", {"text": "prose " * 30, "label": 7})
    spec = spec_of(
        train,
        test={"uri": test},
        slices=({"name": "news", "uri": news},),
        general={"uri": general},
        sequenceLength=128,
        allowDuplicates=True,
    )
    data = load(tmp_path, spec)
    assert data.labels == ("no", "yes")
    assert data.validation is not None
    assert data.test is not None
    assert data.general is not None
    assert (len(data.train), len(data.validation), len(data.test), len(data.slices["news"])) == (38, 2, 8, 5)
    assert data.general.choices is None
    assert len(data.general) == 2  # in windows
    assert data.digests[news] == hashlib.sha256((tmp_path / "news.jsonl").read_bytes()).hexdigest()
    assert list(data.digests) == [train, news, test, general]
    lines = list(data.statistics.lines())
    assert lines[0] == "format classification, labels no, yes"
    assert lines[1].startswith("train: 38 rows, ")
    assert "test: 8 rows" in lines[3]
    known = sum(f"row {number}<|im_end|>" in _texts(data, tmp_path) for number in range(2))
    assert data.statistics.splits["test"].duplicates == known


def _texts(data: Datasets, tmp_path: Path) -> str:
    from finetune_trainer.data.tokenizer import Tokenizer

    return Tokenizer.load(tmp_path / "model").backend.decode(data.train.tokens.tolist(), skip_special_tokens=False)


def test_several_files_are_one_training_set(tmp_path: Path) -> None:
    one = write_jsonl(tmp_path / "a.jsonl", *texts(30))
    two = write_jsonl(tmp_path / "b.jsonl", *texts(10, start=30))
    data = load(tmp_path, spec_of([one, two]))
    assert data.validation is not None
    assert len(data.train) + len(data.validation) == 40


def test_a_label_of_held_out_rows_alone_is_a_label(tmp_path: Path) -> None:
    rows = [{"text": f"{number}", "label": "abcdefgh"[number]} for number in range(8)]
    data = load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *rows), validation={"fraction": 0.5}))
    assert data.labels == tuple("abcdefgh")


def test_labels_of_the_manifest_keep_their_order(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *labelled(10))
    data = load(tmp_path, spec_of(train, classification={"labels": ("yes", "no", "maybe")}))
    assert data.labels == ("yes", "no", "maybe")
    assert data.train.choices is not None
    assert len(data.train.choices.answers) == 3


def test_a_second_call_reads_what_the_first_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(write_jsonl(tmp_path / "train.jsonl", *texts(10)))
    first = load(tmp_path, spec)
    monkeypatch.setattr(load_module, "Build", None)
    second = load(tmp_path, spec)
    np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
    assert first.statistics == second.statistics


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("content", {"text": "other"}),
    ("tokenizer", {"merge": True}),
    ("sequence length", {"sequenceLength": 9}),
    ("seed", {"seed": 2}),
]


@pytest.mark.parametrize("change", [case[1] for case in CHANGES], ids=[case[0] for case in CHANGES])
def test_whatever_the_arrays_depend_on_makes_them_anew(tmp_path: Path, change: dict[str, Any]) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(10))
    load(tmp_path, spec_of(train))
    if "text" in change:
        write_jsonl(tmp_path / "train.jsonl", *texts(9), change)
    if "merge" in change:
        tokenizer_folder(tmp_path / "model", template="{{ messages }}")
    length = {"sequenceLength": change["sequenceLength"]} if "sequenceLength" in change else {}
    load(tmp_path, spec_of(train, **length), seed=change.get("seed", 1))
    assert len([path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]) == 2


def test_packing_and_credentials_do_not(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(10))
    load(tmp_path, spec_of(train))
    load(tmp_path, spec_of(train, packing=False, credentials={"secretName": "a"}))
    assert len([path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]) == 1


def test_ranks_that_start_together_share_one_result(tmp_path: Path) -> None:
    spec = spec_of(write_jsonl(tmp_path / "train.jsonl", *texts(50)))
    tokenizer_folder(tmp_path / "model")
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(load(tmp_path, spec).train.tokens.tolist())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert all(tokens == found[0] for tokens in found)
    assert not list((tmp_path / "cache" / "tokenized").glob(".*"))


BAD: list[tuple[str, list[dict[str, object]], dict[str, Any], Reason, str]] = [
    ("no format", [{"a": 1}], {}, Reason.DataUnreadable, "line 1: keys a fit no format"),
    ("another format later", [*texts(2), {"messages": []}], {}, Reason.DataUnreadable, "line 3: text is missing"),
    ("a row without label", [*labelled(2), {"text": "a"}], {}, Reason.LabelsMissing, "line 3: the row has no label"),
    ("one label only", [{"text": "a", "label": "x"}] * 3, {}, Reason.LabelsMissing, "have 1 different label(s)"),
    ("too many labels", [{"text": "a", "label": str(n)} for n in range(65)], {}, Reason.LabelsMissing,
     "have 65 different label(s)"),
    ("a label that the manifest lacks", labelled(3), {"classification": {"labels": ("a", "b")}}, Reason.LabelsMissing,
     "label 'no' is not one of 'a', 'b'"),
    ("no group", texts(3), {"validation": {"fraction": 0.5, "groupBy": "patient"}}, Reason.DataUnreadable,
     "line 1: patient, by which data.validation.groupBy keeps rows together, is missing"),
    ("one group", [{"text": str(n), "p": 1} for n in range(3)], {"validation": {"fraction": 0.5, "groupBy": "p"}},
     Reason.InvalidSpec, "they are one group"),
    ("a row too long", [{"prompt": "a", "completion": "b" * 99}] * 3, {"sequenceLength": 50}, Reason.SequenceTooLong,
     "are more than data.sequenceLength 50"),
    ("all rows too long", [{"prompt": str(n), "completion": "b" * 99} for n in range(3)],
     {"sequenceLength": 50, "overlong": "drop"}, Reason.SequenceTooLong, "rows are longer than data.sequenceLength 50"),
    ("only empty texts", [{"text": ""}, {"text": "a"}], {}, Reason.NothingToTrain, "no token of its 1 rows is trained"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "fields", "reason", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_data(
    tmp_path: Path, rows: list[dict[str, object]], fields: dict[str, Any], reason: Reason, message: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *rows), **fields))
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert caught.value.hint
    assert not [path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]


def test_a_missing_file_is_named_by_its_uri(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match=f"file://{tmp_path}/none.jsonl") as caught:
        load(tmp_path, spec_of(f"file://{tmp_path}/none.jsonl"))
    assert caught.value.reason is Reason.DataNotFound


def test_a_folder_a_pattern_and_a_file_are_sources(tmp_path: Path) -> None:
    for number in range(3):
        write_jsonl(tmp_path / "train" / f"{number}.jsonl", *texts(10, start=10 * number))
    other = write_jsonl(tmp_path / "other.jsonl", *texts(5, start=50))
    spec = spec_of([f"file://{tmp_path}/train/", other], validation={"uri": f"file://{tmp_path}/dev-*.jsonl"})
    write_jsonl(tmp_path / "dev-1.jsonl", *texts(2, start=70))
    data = load(tmp_path, spec)
    assert [(source.files, source.rows, source.documents) for source in data.statistics.sources] == [
        (3, 30, 30), (1, 5, 5),
    ]  # fmt: skip
    assert [uri.rpartition("/")[2] for uri in data.digests] == [
        "0.jsonl", "1.jsonl", "2.jsonl", "other.jsonl", "dev-1.jsonl",
    ]  # fmt: skip
    write_jsonl(tmp_path / "train" / "3.jsonl", *texts(10, start=30))
    assert len(load(tmp_path, spec).train) == 45, "a file more is other data"


def test_a_sample_of_a_source_is_the_same_in_any_order(tmp_path: Path) -> None:
    """A larger one holds the smaller one, and labels are those of all rows."""

    def sample(rows: list[dict[str, object]], count: int, *, seed: int = 1) -> set[bytes]:
        uri = write_jsonl(tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl", *rows)
        spec = spec_of(uri).model_copy(update={"train": (TrainSource(uri=uri, max_rows=count),)})
        data = load(tmp_path, spec, seed=seed)
        assert data.labels == ("no", "yes")
        [source] = data.statistics.sources
        drawn = min(count, len(rows))
        held = data.statistics.splits["validation"].rows
        assert (source.rows, source.drawn, source.documents + held) == (len(rows), drawn, drawn)
        line = f"source {uri}: 1 files, {len(rows)} rows, {drawn} drawn by maxRows"
        assert line in list(data.statistics.lines())
        assert (uri, f"{drawn} of {len(rows)} rows, drawn by maxRows") in DataRecord(statistics=data.statistics).lines()
        parts = [part for part in (data.train, data.validation) if part is not None]
        return {part.row(index).tokens.tobytes() for part in parts for index in range(len(part))}

    rows = labelled(60)
    ten = sample(rows, 10)
    assert len(ten) == 10
    assert sample(rows[::-1], 10) == ten
    assert sample(rows, 20) > ten
    assert sample(rows, 10, seed=2) != ten
    assert len(sample(rows, 100)) == 60


def test_rows_of_the_hub_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"data/train-{n}.jsonl": "".join(f'{{"text": "{n} {r}"}}\n' for r in range(9)).encode() for n in range(4)}
    uri = "hf://datasets/org/name/data/train-*"
    with serving("datasets/org/name", files) as hub:
        for name, value in environ(hub).items():
            monkeypatch.setenv(name, value)
        data = load(tmp_path, spec_of(uri))
        assert hub.sent == sum(map(len, files.values())) + len(files["data/train-0.jsonl"]), "to see what its rows are"
        assert list(data.digests) == [f"hf://datasets/org/name@{COMMIT}/data/train-{n}.jsonl" for n in range(4)]
        assert [*data.digests.values()] == [hashlib.sha256(content).hexdigest() for content in files.values()]
        asked = len([path for path in hub.asked if "/resolve/" in path])
        assert load(tmp_path, spec_of(uri)).statistics == data.statistics
        assert len([path for path in hub.asked if "/resolve/" in path]) == asked, "nothing is read again"
    assert not list((tmp_path / "cache").rglob("*.jsonl"))


def test_weights_make_a_mixture_and_no_new_tokens(tmp_path: Path) -> None:
    one, two = (write_jsonl(tmp_path / f"{n}.jsonl", *texts(20, start=20 * n)) for n in range(2))
    validation = {"uri": write_jsonl(tmp_path / "v.jsonl", *texts(2, start=80))}
    even = load(tmp_path, spec_of([one, two], validation=validation))
    assert even.mixture == Mixture.even(40)
    assert even.trained_tokens_per_epoch == even.train.trained_tokens
    spec = Data.model_validate(
        {"train": ({"uri": one, "weight": 2.0}, {"uri": two, "weight": 0.25}), "validation": validation}
    )
    data = load(tmp_path, spec)
    assert data.mixture == Mixture((20, 20), (2.0, 0.25))
    assert data.mixture.per_epoch == 45
    counts = np.add.reduceat(data.train.trained, data.train.offsets[:-1], dtype=np.int64)
    assert data.trained_tokens_per_epoch == round(2 * counts[:20].sum() + 0.25 * counts[20:].sum())
    assert len([path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]) == 1


def test_a_temperature_makes_a_mixture_of_the_sizes_and_no_new_tokens(tmp_path: Path) -> None:
    small = write_jsonl(tmp_path / "small.jsonl", *texts(10))
    large = write_jsonl(tmp_path / "large.jsonl", *texts(90, start=10))
    validation = {"uri": write_jsonl(tmp_path / "v.jsonl", *texts(2, start=200))}
    load(tmp_path, spec_of([small, large], validation=validation))
    mixed = load(tmp_path, spec_of([small, large], validation=validation, mixing={"temperature": 2.0}))
    assert mixed.mixture.weights == pytest.approx((2.5, 75 / 90))
    assert len([path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]) == 1


def test_held_out_rows_know_their_source_if_it_has_a_name(tmp_path: Path) -> None:
    """Also after a sample was drawn of them."""
    uris = [write_jsonl(tmp_path / f"{n}.jsonl", *({"text": f"{n} {i}"} for i in range(60))) for n in "abc"]
    train = ({"uri": uris[0], "name": "first"}, {"uri": uris[1]}, {"uri": uris[2], "name": "third"})
    data = load(tmp_path, Data.model_validate({"train": train, "validation": {"fraction": 0.3}}))
    sampled, _ = measured_part(data, most=20, seed=1)
    assert sampled.validation is not None
    assert sampled.validation.marks is not None
    tokenizer = Tokenizer.load(tmp_path / "model")
    named = {"a": "first", "c": "third"}
    found = set()
    for at, digest in enumerate(sampled.validation.marks.rows.tolist()):
        text = tokenizer.backend.decode(sampled.validation.row(at).tokens.tolist())
        assert sampled.origins.get(digest) == named.get(text[0])
        found.add(text[0])
    assert found == {"a", "b", "c"}
    assert load(tmp_path, Data.model_validate({"train": tuple({"uri": uri} for uri in uris)})).origins == {}


def test_what_became_of_long_rows_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": str(n), "completion": "b" * (99 if n < 3 else 9)} for n in range(20)]
    validation = {"uri": write_jsonl(tmp_path / "v.jsonl", {"prompt": "v", "completion": "v"})}
    train = write_jsonl(tmp_path / "train.jsonl", *rows)
    counts = {}
    for overlong in ("drop", "truncate"):
        spec = spec_of(train, validation=validation, sequenceLength=50, overlong=overlong)
        split = load(tmp_path, spec).statistics.splits["train"]
        counts[overlong] = (split.rows, split.documents, split.overlong, split.dropped, split.truncated)
    assert counts == {"drop": (20, 17, 3, 3, 0), "truncate": (20, 20, 3, 0, 3)}
    long = write_jsonl(tmp_path / "long.jsonl", {"text": "a" * 120}, {"text": " "}, {"text": "bc"})
    dev = {"uri": write_jsonl(tmp_path / "w.jsonl", {"text": "other"})}
    split = load(tmp_path, spec_of(long, validation=dev, sequenceLength=50)).statistics.splits["train"]
    assert (split.rows, split.documents, split.split, split.untrained) == (3, 4, 1, 1)
    assert "1 cut into windows, 1 with nothing to train" in split.line()


def test_general_text_of_several_files_remembers_which(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *({"text": f"row {i} of a training file"} for i in range(40)))
    (tmp_path / "general").mkdir()
    for name, rows in (("wiki.jsonl", 3), ("code.jsonl", 2)):
        write_jsonl(tmp_path / "general" / name, *({"text": f"{name} has a line {i}"} for i in range(rows)))
    spec = spec_of(train, general={"uri": f"{(tmp_path / 'general').as_uri()}/"}, sequenceLength=64)
    for _ in range(2):  # the second time out of the cache
        data = load(tmp_path, spec)
        assert data.general is not None
        assert data.general.marks is not None
        marks = data.general.marks
        assert marks.sources is not None
        named = [marks.files[at] for at in marks.sources.tolist()]
        assert sorted(named) == ["code"] * 2 + ["wiki"] * 3
        assert data.train.marks is not None
        assert data.train.marks.sources is None


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["s3://a/b/wiki.jsonl", "s3://a/b/code/x.jsonl"], ("wiki", "code/x")),
        (["s3://a/x.jsonl", "s3://a/x.parquet"], ("x.jsonl", "x.parquet")),
        ([f"{'long' * 20}/{at}/same.jsonl" for at in "ab"], ("a/same", "b/same")),
        ([f"a/{at}/{'long' * 20}.jsonl" for at in "ab"], ("file 1", "file 2")),
    ],
)
def test_files_have_short_names_that_differ(files: list[str], names: tuple[str, ...]) -> None:
    assert short_names(files) == names
