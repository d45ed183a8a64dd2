"""spec.vocabulary before a run: once for each content, with a report of what it did, and refused where it would do
nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune_api.data import Data, DataSource, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.vocabulary import Vocabulary
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.store.models import LocalModel
from finetune_trainer.vocabulary import prepared as module
from finetune_trainer.vocabulary.prepared import Prepared, prepared
from tests.support.tiny_model import tiny_model, worded
from tests.support.tokenizers import write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("vocabulary")
    tiny_model(made / "model")
    write_jsonl(made / "train.jsonl", *worded(30, seed=1))
    write_jsonl(made / "general.jsonl", *worded(10, seed=2, script="greek"))
    return made


def rows(folder: Path) -> Datasets:
    spec = Data(
        train=(TrainSource(uri=f"file://{folder}/train.jsonl"),),
        general=DataSource(uri=f"file://{folder}/general.jsonl"),
        sequence_length=512,
    )
    return load_datasets(spec, tokenizer_path=folder / "model", cache=folder / "cache", seed=1)


def made(folder: Path, cache: Path, settings: Vocabulary) -> Prepared:
    local = LocalModel(folder / "model", None, f"file://{folder}/model")
    return prepared(settings, local, rows(folder), cache=cache, seed=1)


def test_terms_and_frequent_pairs_become_tokens_and_the_report_says_what_that_saves(
    folder: Path, tmp_path: Path
) -> None:
    found = made(folder, tmp_path, Vocabulary(terms=("STEMI", "acute-care"), mine=True, max_new_tokens=40))
    record = found.record
    assert record.new_tokens == record.trained_rows == len(found.ids) == 40
    assert record.added_rows == 35, "five were spare"
    train, general = record.texts
    assert (train.name, general.name) == ("training rows", "general text")
    assert train.after is not None
    assert train.after.tokens_per_byte < 0.5 * train.before.tokens_per_byte
    assert general.after == general.before, "no new merge applies to Greek letters"
    whole, split = record.terms
    assert (whole.term, whole.before, whole.after) == ("STEMI", 5, 1)
    assert split.after > 1
    told = "\n".join(record.lines())
    assert "40 tokens added, 5 in spare rows of the embeddings, 35 in new ones; 40 rows train" in told
    assert "acute-care is not one token: the tokenizer splits it before it merges: Ġacute | - | care" in told
    tokenizer = AutoTokenizer.from_pretrained(found.local.path)
    assert len(tokenizer(" STEMI").input_ids) == 1


def test_it_is_made_once_for_each_content(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Vocabulary(terms=("STEMI",))
    first = made(folder, tmp_path, settings)
    other = made(folder, tmp_path, Vocabulary(terms=("NSTEMI",)))
    assert other.local.path != first.local.path

    def twice(*_: object, **__: object) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(module, "_fill", twice)
    again = made(folder, tmp_path, settings)
    assert (again.local, again.ids, again.record, again.first) == (first.local, first.ids, first.record, first.first)
    assert first.pieces is not None
    assert again.pieces is not None
    assert again.pieces.flat.tolist() == first.pieces.flat.tolist()


def test_existing_rows_leave_the_model_as_it_is(folder: Path, tmp_path: Path) -> None:
    found = made(folder, tmp_path, Vocabulary(terms=("abc", "cab"), existing_rows=True))
    assert found.local.path == folder / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert set(tokenizer.convert_ids_to_tokens(list(found.ids))) == {"a", "b", "c"}, "not the space"
    assert next(iter(found.record.lines())) == "tokenizer unchanged; 3 rows of the embeddings train"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Vocabulary(terms=("a-b",)), "a-b: the tokenizer splits it before it merges: Ġa | - | b"),
        (Vocabulary(terms=("STEMI",), max_new_tokens=2), "STEMI: vocabulary.maxNewTokens is reached"),
    ],
)
def test_a_vocabulary_that_adds_nothing_is_refused(
    folder: Path, tmp_path: Path, settings: Vocabulary, why: str
) -> None:
    with pytest.raises(FinetuneError, match=re.escape(f"vocabulary adds no token ({why}")) as refused:
        made(folder, tmp_path, settings)
    assert refused.value.reason is Reason.InvalidSpec
