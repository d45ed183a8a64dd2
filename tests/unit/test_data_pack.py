"""Packing is a layout: it changes where documents lie and nothing that is learned."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.corpus import Corpus, corpus_of
from finetune_trainer.data.pack import IGNORED, PADDING, MicroBatch, micro_batches

PAD = 0


@st.composite
def corpora(draw: st.DrawFn) -> Corpus:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=25))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    tokens = [random.integers(0, 50, length).astype(np.int32) for length in lengths]  # pad and all
    trained = [random.random(length) < 0.5 for length in lengths]
    for flags in trained:
        flags[0] = False
    return corpus_of(tokens, trained, [0] * len(lengths))


def learned(corpus: Corpus, batches: list[MicroBatch]) -> Counter[tuple[int, tuple[int, ...], int]]:
    """(document, everything before, target) of each target, found through segments and positions alone."""
    found: Counter[tuple[int, tuple[int, ...], int]] = Counter()
    for batch in batches:
        for line, place in zip(*np.nonzero(batch.targets != IGNORED), strict=True):
            segment = batch.segments[line, place]
            inside = (batch.segments[line] == segment) & (np.arange(batch.tokens.shape[1]) <= place)
            assert batch.positions[line][inside].tolist() == list(range(int(inside.sum())))
            document = int(batch.documents[segment])
            found[document, tuple(batch.tokens[line][inside].tolist()), int(batch.targets[line, place])] += 1
    return found


def expected(corpus: Corpus, rows: np.ndarray) -> Counter[tuple[int, tuple[int, ...], int]]:
    wanted: Counter[tuple[int, tuple[int, ...], int]] = Counter()
    for document in rows.tolist():
        tokens, trained = corpus.row(document)
        for place in np.nonzero(trained)[0]:
            wanted[document, tuple(tokens[:place].tolist()), int(tokens[place])] += 1
    return wanted


@given(corpus=corpora(), budget=st.integers(1, 300), length=st.integers(8, 300), packing=st.booleans(), data=st.data())
def test_each_target_is_learned_once_from_its_own_document(
    corpus: Corpus, budget: int, length: int, packing: bool, data: st.DataObject
) -> None:
    rows = np.array(data.draw(st.permutations(range(len(corpus)))))[: data.draw(st.integers(0, len(corpus)))]
    batches = micro_batches(corpus, rows, max_tokens=budget, sequence_length=length, packing=packing, pad_id=PAD)
    assert learned(corpus, batches) == expected(corpus, rows)
    assert sorted(document for batch in batches for document in batch.documents) == sorted(rows)


@given(corpus=corpora(), budget=st.integers(1, 300), packing=st.booleans())
def test_the_budget_holds_for_all_but_single_documents(corpus: Corpus, budget: int, packing: bool) -> None:
    rows = np.arange(len(corpus))
    for batch in micro_batches(corpus, rows, max_tokens=budget, sequence_length=64, packing=packing, pad_id=PAD):
        assert batch.tokens.size <= budget or len(batch.documents) == 1
        assert (batch.tokens[batch.segments == PADDING] == PAD).all()
        assert (batch.targets[batch.segments == PADDING] == IGNORED).all()


def test_documents_share_rows_as_long_as_the_longest() -> None:
    lengths = [300, 100, 200, 150, 90]
    corpus = corpus_of([np.ones(n, np.int32) for n in lengths], [np.ones(n, bool) for n in lengths], [0] * 5)
    rows = np.arange(5)
    [packed] = micro_batches(corpus, rows, max_tokens=2000, sequence_length=512, packing=True, pad_id=PAD)
    assert packed.tokens.shape == (3, 300)
    [apart] = micro_batches(corpus, rows, max_tokens=2000, sequence_length=512, packing=False, pad_id=PAD)
    assert apart.tokens.shape == (5, 300)
    assert packed.padding_ratio < 0.07 < 0.4 < apart.padding_ratio


def test_short_documents_are_packed_into_rows_of_256() -> None:
    corpus = corpus_of([np.ones(16, np.int32)] * 32, [np.ones(16, bool)] * 32, [0] * 32)
    [batch] = micro_batches(corpus, np.arange(32), max_tokens=4096, sequence_length=2048, packing=True, pad_id=PAD)
    assert batch.tokens.shape == (2, 256)
    assert batch.padding_ratio == 0


def test_no_rows_no_micro_batches() -> None:
    corpus = corpus_of([np.ones(4, np.int32)], [np.ones(4, bool)], [0])
    nothing = np.zeros(0, np.int64)
    assert micro_batches(corpus, nothing, max_tokens=64, sequence_length=64, packing=True, pad_id=PAD) == []
