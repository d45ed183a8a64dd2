"""Tokens whose states are compared: which ones, and that each state is that of its token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from finetune_trainer.data.corpus import corpus_of
from finetune_trainer.data.token_sample import EACH, TokenSample
from finetune_trainer.train.diagnose import Subject
from finetune_trainer.transfer.evaluate import Layout
from tests.support.training import documents, model, network

LENGTHS = [1, 2, 9, 200, 30, 3, 70, 12]


def test_a_sample_has_at_most_so_many_tokens_of_a_document_and_never_its_first() -> None:
    sample = TokenSample.of(documents(LENGTHS), tokens=10_000, seed=1)
    counts = np.bincount(sample.documents, minlength=len(LENGTHS))
    assert counts.tolist() == [min(length - 1, EACH) for length in LENGTHS]
    assert (sample.places[:, 0] == -1).all()
    assert sorted(sample.places[sample.places >= 0].tolist()) == list(range(len(sample.documents)))
    assert (np.diff(sample.documents) >= 0).all()


def test_a_smaller_sample_takes_fewer_documents_and_a_few_more_tokens_rather_than_fewer() -> None:
    corpus = documents([40] * 50)
    sample = TokenSample.of(corpus, tokens=200, seed=1)
    assert 200 <= len(sample.documents) <= 300
    assert len(sample.corpus) == len(set(sample.documents.tolist())) < 10


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_each_state_is_that_of_its_token_alone(packing: bool) -> None:
    """Against a pass of each document by itself, layer by layer."""
    net = network(layers=3)
    layout = Layout(max_tokens=64, sequence_length=64, packing=packing, pad_id=0)
    subject = Subject(model(net), layout, 3)
    sample = TokenSample.of(documents([5, 17, 9, 30, 2, 12]), tokens=10_000, seed=1)
    found = subject.token_states(sample, (0, 2, 3))
    for document in range(len(sample.corpus)):
        tokens = torch.from_numpy(sample.corpus.row(document).tokens.astype(np.int64))[None]
        with torch.no_grad():
            seen = net(input_ids=tokens, output_hidden_states=True, use_cache=False).hidden_states  # type: ignore[operator]
        for position, index in enumerate(sample.places[document, : tokens.shape[1]]):
            if index >= 0:
                for at, layer in enumerate((0, 2)):
                    assert np.allclose(found[at, index], seen[layer][0, position].numpy(), atol=1e-5)


def test_documents_of_one_token_have_no_states() -> None:
    alone = corpus_of([np.array([3], np.int32)] * 4, [np.zeros(1, np.bool_)] * 4, [1] * 4)
    sample = TokenSample.of(alone, tokens=100, seed=1)
    assert len(sample.documents) == 0
