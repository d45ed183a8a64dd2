"""From a manifest's `data` to tokenised sets: splits, statistics, the cache, and what is refused."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import Data, Validation
from finetune_trainer.data import load as load_module
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.read import Row
from finetune_trainer.data.split import hold_out
from tests.unit.data_helpers import tokenizer_folder, write_jsonl


def spec_of(train: str | list[str], **fields: Any) -> Data:
    uris = [train] if isinstance(train, str) else train
    return Data.model_validate({"train": tuple({"uri": uri} for uri in uris), **fields})


def load(tmp_path: Path, spec: Data, *, seed: int = 1) -> Datasets:
    model = tmp_path / "model"
    if not model.exists():
        tokenizer_folder(model)
    return load_datasets(spec, tokenizer_path=model, cache=tmp_path / "cache", seed=seed)


def texts(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"text": f"row {number}"} for number in range(start, start + count)]


def labelled(count: int, word: str = "row") -> list[dict[str, object]]:
    return [{"text": f"{word} {number}", "label": ("no", "yes")[number % 2]} for number in range(count)]


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


def test_a_validation_file_leaves_all_rows_to_training(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", *texts(10))
    dev = write_jsonl(tmp_path / "dev.jsonl", {"text": "ROW  3"}, *texts(2, start=90))
    data = load(tmp_path, spec_of(train, validation={"uri": dev}))
    assert data.validation is not None
    assert (len(data.train), len(data.validation)) == (10, 3)
    assert data.statistics.splits["validation"].duplicates == 1


def test_one_row_trains_without_validation(tmp_path: Path) -> None:
    data = load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *texts(1))))
    assert (len(data.train), data.validation) == (1, None)


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


@given(
    groups=st.lists(st.integers(0, 12), min_size=2, max_size=60),
    fraction=st.floats(0.01, 0.5),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_a_split_never_goes_through_a_group(groups: list[int], fraction: float, seed: int, data: st.DataObject) -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number}", "patient": group}) for number, group in enumerate(groups)]
    validation = Validation(fraction=fraction, group_by="patient")
    if len(set(groups)) == 1:
        with pytest.raises(FinetuneError, match="they are one group"):
            hold_out(rows, validation, seed=seed)
        return
    train, held = hold_out(rows, validation, seed=seed)
    assert train
    assert held
    assert sorted(row.line for row in train + held) == list(range(len(rows)))
    assert not {row.fields["patient"] for row in train} & {row.fields["patient"] for row in held}
    shuffled = data.draw(st.permutations(rows))
    assert {row.line for row in hold_out(shuffled, validation, seed=seed)[1]} == {row.line for row in held}


def test_copies_of_a_row_stay_together() -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number // 3}"}) for number in range(60)]
    train, held = hold_out(rows, Validation(fraction=0.2), seed=3)
    assert not {row.fields["text"] for row in train} & {row.fields["text"] for row in held}
    assert len(held) == 12


@pytest.mark.parametrize(("rows", "held"), [(2, 1), (100, 5), (30_000, 500)])
def test_the_default_holds_out_a_twentieth_but_never_more_than_500(rows: int, held: int) -> None:
    made = [Row("a.jsonl", number, {"text": f"{number}"}) for number in range(rows)]
    assert len(hold_out(made, None, seed=1)[1]) == held


def test_another_seed_holds_out_other_rows(tmp_path: Path) -> None:
    rows = [Row("a.jsonl", number, {"text": f"{number}"}) for number in range(100)]
    held = [tuple(row.line for row in hold_out(rows, None, seed=seed)[1]) for seed in range(3)]
    assert len(set(held)) == 3


def test_a_second_call_reads_what_the_first_one_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(write_jsonl(tmp_path / "train.jsonl", *texts(10)))
    first = load(tmp_path, spec)
    monkeypatch.setattr(load_module, "read_rows", None)
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
