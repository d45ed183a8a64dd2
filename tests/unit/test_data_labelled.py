"""Labels of single tokens: from files and from Python source, to the right tokens, bounded, and refused in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.diagnostics import ConceptProbe
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data import labelled as module
from finetune_trainer.data.labelled import EACH, SPANS, labelled
from finetune_trainer.data.python_labels import python_names, python_tokens
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.tokenizers import sentencepiece_like, tiny, write_jsonl

TEXT = "The red fox sees a dog."
SPANS_OF = [(4, 7, "adjective"), (8, 11, "noun"), (12, 16, "verb"), (19, 22, "noun")]
SOURCE = """def area(width, *, unit="mm"):
    # é: the parser counts bytes
    größe = width.value * 2
    return scale(größe, by=unit).strip()
"""


def _row(text: str = TEXT, spans: list[Any] | None = None) -> dict[str, Any]:
    return {"text": text, "spans": spans if spans is not None else [_span(*each) for each in SPANS_OF]}


def _span(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


def _probe(folder: Path, *rows: dict[str, Any], **more: Any) -> ConceptProbe:
    return ConceptProbe(name="part", uri=write_jsonl(folder / "labelled.jsonl", *rows), **more)


@pytest.fixture(params=["bytes", "words"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """Without and with a token that is put before every text."""
    return tiny(tmp_path / "model", backend=None if request.param == "bytes" else sentencepiece_like())


def test_a_span_is_its_last_token_and_its_label_and_text_are_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    found = labelled(_probe(tmp_path, *[_row()] * 30), tokenizer, seed=1)
    assert found.labels == ("adjective", "noun", "verb")
    assert len(found.gold) == 4 * 30 == len(found.sample.documents)
    assert len(set(found.words.tolist())) == 4
    assert found.groups.tolist() == sorted(found.groups.tolist())
    corpus = found.sample.corpus
    ids = corpus.row(0).tokens
    before = tokenizer.bos is not None
    for number, (_, end, label) in enumerate(SPANS_OF):
        [position] = (found.sample.places[0] == number).nonzero()[0].tolist()
        text = tokenizer.backend.decode(ids[before : position + 1].tolist())
        assert text.strip() == TEXT[:end], label
        assert found.labels[found.gold[number]] == label


def test_a_long_text_is_cut_into_windows_whose_tokens_stay_of_one_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    long = " ".join([TEXT] * 200)
    spans = [
        _span(start + at, end + at, label)
        for at in range(0, len(long), len(TEXT) + 1)
        for start, end, label in SPANS_OF
    ]
    found = labelled(_probe(tmp_path, *[_row(long, spans)] * 12), tokenizer, seed=1)
    assert SPANS <= len(found.gold) <= SPANS + EACH
    assert len(found.sample.corpus) > len(set(found.groups.tolist())) == 12
    assert found.sample.corpus.lengths.max() <= 256
    fewer = labelled(_probe(tmp_path, *[_row(long, spans)] * 12), tokenizer, seed=1, fewer=2)
    assert SPANS // 2 <= len(fewer.gold) <= SPANS // 2 + EACH


def test_reading_ends_where_enough_was_read(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ALL_CHARACTERS", 40 * len(TEXT))
    broken = tmp_path / "labelled.jsonl"
    write_jsonl(broken, *[_row()] * 50)
    with broken.open("a") as file:
        file.write("not JSON\n")
    assert len(labelled(ConceptProbe(name="part", uri=broken.as_uri()), tokenizer, seed=1).gold) == 4 * 41


def test_tokens_of_python_have_their_kind() -> None:
    found = {SOURCE[span.start : span.end]: span.label for span in python_tokens(SOURCE)}
    assert found["def"] == "keyword"
    assert found["größe"] == "name"
    assert found['"mm"'] == "string"
    assert found["2"] == "number"
    assert found["*"] == "operator"
    assert found["# é: the parser counts bytes"] == "comment"


def test_names_of_python_have_their_role() -> None:
    found = [(SOURCE[span.start : span.end], span.label) for span in python_names(SOURCE)]
    assert found == [
        ("area", "defined"), ("width", "parameter"), ("unit", "parameter"), ("größe", "assigned"), ("width", "read"),
        ("value", "attribute"), ("scale", "called"), ("größe", "read"), ("by", "keyword"), ("unit", "read"),
        ("strip", "called"),
    ]  # fmt: skip


@pytest.mark.parametrize("odd", ["\f", "# \v", "# \x1c", "# \x85", "# \u2028", "x = 1\r"])
def test_only_what_python_takes_for_the_end_of_a_line_moves_labels(odd: str) -> None:
    source = f"{odd}\n{SOURCE}"
    for labels in (python_tokens, python_names):
        found = [(source[span.start : span.end], span.label) for span in labels(source)]
        assert found[-len(labels(SOURCE)) :] == [(SOURCE[span.start : span.end], span.label) for span in labels(SOURCE)]


@pytest.mark.parametrize("source", ["def", "\0", "(" * 5000, "-" * 90_000 + "1", "a" + ".b" * 30_000, "x = '"])
def test_what_is_not_python_has_no_labels_and_ends_nothing(tokenizer: Tokenizer, tmp_path: Path, source: str) -> None:
    rows = [{"text": SOURCE}] * 20
    probe = _probe(tmp_path, *rows, {"text": source}, labels="pythonNames")
    assert "called" in labelled(probe, tokenizer, seed=1).labels


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"spans": []}, "has no text"),
        ({"text": 3, "spans": []}, "has no text"),
        (_row(spans=[{"start": 3, "end": 1, "label": "a"}]), "is not a labelled span"),
        (_row(spans=[{"start": "0", "end": 1, "label": "a"}]), "is not a labelled span"),
        (_row(spans=[{"start": True, "end": 4, "label": "a"}]), "is not a labelled span"),
        (_row(spans=[{"start": 0, "end": 1}]), "is not a labelled span"),
        (_row(spans=[[0, 1, "a"]]), "is not a labelled span"),
        ({"text": TEXT, "spans": 5}, "spans of the row are not a list"),
        ({"text": TEXT, "spans": "noun"}, "spans of the row are not a list"),
    ],
)
def test_a_row_of_another_form_is_refused_by_its_line(
    tokenizer: Tokenizer, tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(FinetuneError, match=words) as refused:
        labelled(_probe(tmp_path, _row(), row), tokenizer, seed=1)
    assert refused.value.reason is Reason.DataUnreadable
    assert "labelled.jsonl line 2" in refused.value.message
    assert "offsets count characters" in refused.value.hint


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([_row()] * 5, "20 labelled spans with 3 labels in 5 rows"),
        ([_row(spans=[_span(4, 7, "a")])] * 120, "120 labelled spans with 1 labels"),
        ([_row(spans=[_span(4, 7, f"label {at}")]) for at in range(120)], "more than 64 labels"),
        ([_row(spans=[])] * 12, "0 labelled spans"),
    ],
)
def test_too_few_labels_and_too_many_are_refused(
    tokenizer: Tokenizer, tmp_path: Path, rows: list[dict[str, Any]], words: str
) -> None:
    with pytest.raises(FinetuneError, match=words) as refused:
        labelled(_probe(tmp_path, *rows), tokenizer, seed=1)
    assert refused.value.reason is Reason.InvalidSpec
    assert json.dumps(refused.value.hint)
