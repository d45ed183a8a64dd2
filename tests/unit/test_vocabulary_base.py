"""The base model of a run that adds tokens: the text of each row in its own tokens, and the logits of its own head."""

from __future__ import annotations

import copy
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from finetune_api.data import Classification, Data, DataSource, TrainSource
from finetune_trainer.data.corpus import Corpus, corpus_of
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.store.models import LocalModel
from finetune_trainer.train.origin import Origin
from finetune_trainer.train.written import answers
from finetune_trainer.transfer.generated.prompts import prompts_of
from finetune_trainer.vocabulary.base_head import BaseHead
from finetune_trainer.vocabulary.base_rows import Pieces, base_rows
from finetune_trainer.vocabulary.bpe import Bpe
from finetune_trainer.vocabulary.extension import Growing
from tests.support.tokenizers import byte_level, tokenizer_folder, write_jsonl
from tests.support.training import CPU, VOCAB, documents, model, network, replace
from tests.unit.test_vocabulary_rows import KINDS, batch

FIRST = 90
"""Of the new tokens; seven rows were to spare."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Pieces]:
    """(with the base model's tokenizer, with an extended one, its pieces)"""
    root = tmp_path_factory.mktemp("both")
    old = tokenizer_folder(root / "old", backend=byte_level())
    bpe = Bpe.of(old)
    growing = Growing(bpe, most=100)
    for term in ("STEMI", "hello wor", "abab", "Ödem"):
        assert growing.add(bpe.words(term)[0])
    made = growing.made()
    new = tokenizer_folder(root / "new", backend=byte_level())
    (new / "tokenizer.json").write_bytes(made.encoded(bpe))
    return old, new, Pieces.of(made.first, made.pieces)


@cache
def loaded(old: Path, new: Path) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.load(old), Tokenizer.load(new)


def test_a_fold_that_is_measured_has_the_same_text_for_both_models(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    """Rows that are truncated end elsewhere for a tokenizer with longer tokens."""
    pieces, ends = folders[2], '{"eos_token": "<|im_end|>"}'
    old, new = (Path(shutil.copytree(path, tmp_path / path.name)) for path in folders[:2])
    for path in (old, new):
        (path / "tokenizer_config.json").write_text(ends)
    rows = [{"prompt": f"{row}: ", "completion": "STEMI " * 12} for row in range(8)]
    spec = Data(train=(TrainSource(uri=write_jsonl(tmp_path / "train.jsonl", *rows)),), sequence_length=32)
    spec = spec.model_copy(update={"overlong": "truncate"})
    by_old, by_new = (
        load_datasets(spec, tokenizer_path=path, cache=tmp_path / "cache", seed=1, fold=(0, 2)) for path in (old, new)
    )
    assert by_old.fold is not None
    assert by_new.fold is not None
    assert (by_old.fold.bytes < by_new.fold.bytes).all()
    (old / "config.json").write_text('{"max_position_embeddings": 4096}')
    local = LocalModel(old, None, "hf://org/base")
    data, origin = Origin(local, by_old, len(pieces.counts), pieces).beside(by_new, say=print)
    assert data.fold is not None
    assert origin.data.fold is not None
    assert origin.data.fold.bytes.tolist() == data.fold.bytes.tolist()
    assert origin.data.fold.marks is not None
    assert data.fold.marks is not None
    assert origin.data.fold.marks.rows.tolist() == data.fold.marks.rows.tolist()


_PARTS = st.sampled_from(["STEMI", "STE", "hello wor", "ld ", "abab", "ab", "Ödem", " ", "心"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.lists(_PARTS, min_size=1, max_size=12).map("".join))
def test_new_tokens_are_spelled_as_the_base_models_tokenizer_spells_them(
    folders: tuple[Path, Path, Pieces], text: str
) -> None:
    *tokenizers, pieces = *loaded(*folders[:2]), folders[2]
    [own], [extended] = (tokenizer.encode([text]) for tokenizer in tokenizers)
    assert pieces.spelled(extended.ids).tolist() == own.ids.tolist()


def both(folders: tuple[Path, Path, Pieces], root: Path, rows: list[dict[str, Any]], **spec: Any) -> list[Datasets]:
    """The rows as data.test, by each of the tokenizers."""
    write_jsonl(root / "test.jsonl", *rows)
    write_jsonl(root / "train.jsonl", *({key: f"other {text}" if key != "label" else text for key, text in row.items()}
                                        for row in rows))  # fmt: skip
    data = Data(
        train=(TrainSource(uri=f"file://{root}/train.jsonl"),),
        test=DataSource(uri=f"file://{root}/test.jsonl"),
        **{"sequence_length": 512, **spec},
    )
    return [load_datasets(data, tokenizer_path=folder, cache=root / "cache", seed=1) for folder in folders[:2]]


def cut(folders: tuple[Path, Path, Pieces], found: list[Datasets]) -> tuple[Corpus, Corpus, Corpus]:
    """(by the base model's tokenizer alone, as the run sees it, as the base model is measured on it)"""
    own, run = found[0].test, found[1].test
    assert own is not None
    assert run is not None
    decode = Tokenizer.load(folders[0]).backend.decode
    return own, run, base_rows(run, own, folders[2], lambda ids: str(decode(ids, skip_special_tokens=False)))


def same(one: Corpus, other: Corpus) -> bool:
    names = ("tokens", "offsets", "trained", "bytes")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def text_of(folder: Path, corpus: Corpus, row: int, *, trained: bool = False) -> str:
    found = corpus.row(row)
    ids = found.tokens[found.trained] if trained else found.tokens
    return str(Tokenizer.load(folder).backend.decode(ids.tolist(), skip_special_tokens=False))


def test_rows_that_begin_with_no_new_token_are_those_of_a_run_without_one(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    rows = [{"text": f"{n} STEMI abab hello world"} for n in range(30)]
    own, run, base = cut(folders, both(folders, tmp_path, rows))
    assert len(run.tokens) < len(own.tokens)
    assert same(base, own)


def test_what_is_trained_is_the_same_text_in_windows_and_after_a_first_token_that_is_new(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    rows = [{"text": f"STEMI {n} " + f"STEMI abab {n * 7} " * n} for n in range(1, 12)]
    own, run, base = cut(folders, both(folders, tmp_path, rows, sequence_length=40))
    assert len(base) == len(run) != len(own), "the tokenizers make other windows of the texts"
    assert base.bytes.tolist() == run.bytes.tolist()
    assert base.marks is run.marks
    for row in range(len(run)):
        for part in (False, True):
            assert text_of(folders[0], base, row, trained=part) == text_of(folders[1], run, row, trained=part)
    assert (folders[2].counts[base.tokens] == 1).all(), "no new token is left"


def test_a_row_is_the_tokenizers_own_where_pieces_say_something_else(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    """As after a merge that makes a token which the base model has, but does not use for this text."""
    rows = [{"text": f"{n} hello hello"} for n in range(25)]
    own, run, _ = cut(folders, both(folders, tmp_path, rows))
    backend = Tokenizer.load(folders[0]).backend
    vocabulary = backend.get_vocab()
    whole, parts = vocabulary["\u0120hello"], [vocabulary["\u0120"], vocabulary["hello"]]
    assert whole in run.row(0).tokens
    pieces = Pieces.of(len(folders[2].counts), ())
    counts = pieces.counts.copy()
    counts[whole] = 2
    flat = np.concatenate([pieces.flat[:whole], np.array(parts, np.int32), pieces.flat[whole + 1 :]])
    other = Pieces(flat, counts)
    assert not same(other.spelled_corpus(run), own)
    assert same(base_rows(run, own, other, lambda ids: str(backend.decode(ids, skip_special_tokens=False))), own)


def test_the_answers_of_labels_are_in_the_base_models_tokens(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    rows = [{"text": f"{n} abab", "label": ("STEMI", "hello")[n % 2]} for n in range(24)]
    found = both(folders, tmp_path, rows, format="classification", classification=Classification())
    own, run, base = cut(folders, found)
    assert base.choices is not None
    assert own.choices is not None
    assert run.choices is not None
    assert [len(each) for each in run.choices.answers] != [len(each) for each in own.choices.answers]
    assert [each.tolist() for each in base.choices.answers] == [each.tolist() for each in own.choices.answers]
    assert base.choices.prompts.tolist() == own.choices.prompts.tolist()
    assert same(base, own)


def test_prompts_are_the_same_text_for_both_and_leave_space_for_an_answer(
    folders: tuple[Path, Path, Pieces], tmp_path: Path
) -> None:
    rows = [{"text": f"{n} " + "STEMI " * n} for n in range(4, 24)]
    own, run, _ = cut(folders, both(folders, tmp_path, rows))
    asked: dict[str, Any] = {"most": 99, "seed": 1, "stops": (), "new": 8}
    found = prompts_of({"test": run}, context=60, spelled=folders[2].spelled, **asked)
    plain = prompts_of({"test": run}, context=60, **asked)
    assert found is not None
    assert plain is not None
    assert plain.of_base == plain.tokens
    assert found.left_out > plain.left_out == 0
    for prompt, base in zip(found.tokens, found.of_base, strict=True):
        texts = [
            Tokenizer.load(folder).backend.decode(ids.tolist())
            for folder, ids in zip(folders[1::-1], (prompt, base), strict=False)
        ]
        assert texts[0] == texts[1]
        assert len(prompt) < len(base) <= 52
    assert len(own)


def extended(root: Path, kind: str) -> tuple[nn.Module, nn.Module, Path]:
    """(base model, the same with other rows from FIRST on and with more of them, the base model's files)"""
    name, changes = KINDS[kind]
    net = network(name, **changes)
    net.save_pretrained(root)  # type: ignore[operator]
    more: Any = copy.deepcopy(net)
    more.resize_token_embeddings(VOCAB + 9, mean_resizing=False)
    for matrix in {
        id(m.weight): m.weight for m in (more.get_input_embeddings(), more.get_output_embeddings())
    }.values():
        with torch.no_grad():
            matrix[FIRST:] = 3.0
    return net.requires_grad_(False), more.requires_grad_(False), root


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_are_the_base_models(kind: str, tmp_path: Path) -> None:
    net, more, folder = extended(tmp_path, kind)
    layout, _ = batch()
    corpus = documents([20, 30], masked=0.0)
    corpus = replace(corpus, tokens=corpus.tokens % FIRST)
    piece = layout.batches(corpus, np.arange(2))[0]
    alone, grown = model(net), model(more)
    base = replace(grown, base_head=BaseHead.of(more, folder, first=FIRST, device=CPU))
    wanted, found = alone.target_nats(piece), base.target_nats(piece)
    if alone.capabilities.fused_head:
        assert found.tolist() == wanted.tolist()
    assert found == pytest.approx(wanted, abs=1e-5)
    assert grown.target_nats(piece) != pytest.approx(wanted, abs=1e-2), "with the new rows it is another model"
    mask = np.tril(np.ones((1, 20, 20), np.bool_))
    row = corpus.row(0)
    targets = np.roll(row.tokens, -1).astype(np.int64)[None]
    given = (row.tokens.astype(np.int64)[None], np.arange(20)[None], targets, mask)
    if alone.shares_prompts:
        assert base.token_nats(*given) == pytest.approx(alone.token_nats(*given), abs=1e-5)


def test_it_writes_what_the_base_model_writes(tmp_path: Path) -> None:
    net, more, folder = extended(tmp_path, "untied")
    prompts = [corpus_of([np.arange(2, 2 + n, dtype=np.int32)], [np.ones(n, bool)], [n]).tokens for n in (4, 9)]
    base = replace(model(more), base_head=BaseHead.of(more, folder, first=FIRST, device=CPU))
    asked: dict[str, Any] = {"new": 8, "stops": frozenset({1}), "pad": 1, "seed": 1, "most_tokens": 64}
    for mode in ("greedy", "sampled"):
        wanted, found = (answers(each, prompts, mode=mode, **asked) for each in (model(net), base))
        assert found == wanted.below(FIRST), "ids without a text are left out"
        if mode == "greedy":
            assert any(id >= FIRST for each in wanted.tokens for id in each)
    assert not more.get_output_embeddings()._forward_hooks  # type: ignore[operator]
