"""How the tokenizer cuts each source: from files to numbers, without what all rows of a source have in common."""

from __future__ import annotations

import random
from pathlib import Path

from finetune_trainer.cli.analysis import _by_source
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.transfer.diagnostics.vocabulary import cuts_of, vocabulary
from tests.support.datasets import load, spec_of
from tests.support.tokenizers import write_jsonl

COMMON = ("river", "stone", "window", "paper", "winter", "garden", "letter", "silver", "morning", "bridge")


def _texts(count: int, *, seed: int, extra: str = "") -> list[str]:
    chosen = random.Random(seed)
    return [" ".join([*chosen.choices(COMMON, k=5), extra, *chosen.choices(COMMON, k=3)]) for _ in range(count)]


def test_the_text_of_classified_rows_is_counted_without_instruction_template_and_label(tmp_path: Path) -> None:
    texts = [f"{text} end{number}" for number, text in enumerate(_texts(12, seed=1))]
    texts[0], texts[1] = "alpha " + texts[0], "beta " + texts[1]
    rows = [{"text": text, "label": ("no", "yes")[at % 2]} for at, text in enumerate(texts)]
    data = load(tmp_path, spec_of(write_jsonl(tmp_path / "train.jsonl", *rows)))
    cuts = cuts_of(data.train, Tokenizer.load(tmp_path / "model"))
    assert len(cuts) == len(data.train)
    for cut in cuts:
        assert " ".join(cut.text.split()) in [" ".join(text.split()) for text in texts], "the row's text and no more"
        assert len(cut.spans) > 0


def test_each_source_has_a_line_and_planted_terms_are_found_with_their_pieces(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "first.jsonl", *({"text": text} for text in _texts(40, seed=1)))
    second = write_jsonl(
        tmp_path / "second.jsonl", *({"text": text} for text in _texts(40, seed=2, extra="electrocardiogram"))
    )
    general = write_jsonl(tmp_path / "general.jsonl", *({"text": text} for text in _texts(60, seed=3)))
    given = spec_of([first, second], general={"uri": general}, validation={"fraction": 0.1})
    data = load(tmp_path, given)
    assert data.general is not None
    training = _by_source(data, given)
    assert list(training) == ["first.jsonl", "second.jsonl"]
    assert sum(map(len, training.values())) == len(data.train)
    found = vocabulary(
        training, {"general": data.general}, general="general", tokenizer=Tokenizer.load(tmp_path / "model")
    )
    lines = found.sources
    assert list(lines) == ["first.jsonl", "second.jsonl", "general"]
    assert all(each.fertility is not None and each.fertility > 1 for each in lines.values())
    assert lines["second.jsonl"].tokens > lines["first.jsonl"].tokens
    [term] = found.terms
    assert (term.word, term.documents) == ("electrocardiogram", len(training["second.jsonl"]))
    assert term.pieces >= 4
