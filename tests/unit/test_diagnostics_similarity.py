"""How far tuning moved each layer: changes that are planted must be found, where they begin, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from finetune_trainer.statistics.similarity import FEWEST
from finetune_trainer.transfer.diagnostics.similarity import Similarity, _order, similarity

DOCUMENTS, EACH, DIM = 60, 20, 16
OWNER = np.repeat(np.arange(DOCUMENTS), EACH)


def _before(layers: int, *, shared: float = 0.0) -> NDArray[np.float32]:
    """States whose documents differ; `shared` is what all documents have at a place, like a chat template."""
    chosen = np.random.default_rng(0)
    own = chosen.standard_normal((layers, DOCUMENTS, EACH, DIM)) + chosen.standard_normal((layers, DOCUMENTS, 1, DIM))
    template = shared * chosen.standard_normal((layers, 1, EACH, DIM))
    return (own + template).reshape(layers, DOCUMENTS * EACH, DIM).astype(np.float32)


def _found(before: NDArray[np.float32], after: NDArray[np.float32]) -> Similarity:
    return similarity("test", before, after, OWNER, layers=range(len(before)), seed=1)


def test_a_model_that_did_not_change_is_1_to_the_bit_and_so_is_one_whose_states_are_rotated() -> None:
    before = _before(2)
    turned = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, DIM)))[0]
    after = np.stack([before[0], (before[1] @ turned).astype(np.float32)])
    found = _found(before, after)
    assert (found.layers[0].cka, found.layers[0].error) == (1, 0)
    assert found.layers[1].cka == pytest.approx(1, abs=1e-6)
    assert found.changed_from is None


def test_the_layer_at_which_change_begins_is_found() -> None:
    before = _before(5)
    after = before.copy()
    after[3:] += 0.5 * np.random.default_rng(2).standard_normal(after[3:].shape).astype(np.float32)
    found = _found(before, after)
    assert found.changed_from == 3
    assert found.least.layer in (3, 4)
    for each in found.layers:
        assert (each.cka < 0.99) == (each.layer >= 3)
        assert abs(each.null) < 0.1 < each.cka
        assert each.canonical is not None
        assert each.canonical_null is not None
        assert each.canonical_null.svcca < 0.35 < each.canonical.svcca
    assert (found.tokens, found.documents) == (DOCUMENTS * EACH, DOCUMENTS)


def test_what_all_documents_share_is_in_the_null() -> None:
    before = _before(1, shared=3.0)
    assert _found(before, before).layers[0].null > 0.3


def test_a_few_huge_numbers_hide_a_change_in_raw_states_and_not_in_scaled_ones() -> None:
    """A tenth of the tokens a thousand times as large, as first tokens and separators are in many models."""
    before = _before(1)
    after = before + 0.7 * np.random.default_rng(4).standard_normal(before.shape).astype(np.float32)
    huge = np.arange(DOCUMENTS * EACH) % 10 == 0
    before[:, huge] *= 1000
    after[:, huge] = before[:, huge]
    [layer] = _found(before, after).layers
    assert layer.raw > 0.999
    assert layer.cka < 0.95


def test_more_dimensions_than_a_tenth_of_the_tokens_leave_canonical_correlations_out_and_say_what_they_need() -> None:
    chosen = np.random.default_rng(5)
    before = chosen.standard_normal((1, DOCUMENTS * EACH, 200)).astype(np.float32)
    found = _found(before, before)
    assert found.layers[0].canonical is None
    assert 1_900 <= found.needed <= 2_000
    assert found.layers[0].cka == 1


def test_too_few_tokens_are_refused() -> None:
    few = FEWEST // EACH * EACH - EACH
    with pytest.raises(ValueError, match=r"an unbiased CKA needs 1,024"):
        similarity("test", _before(1)[:, :few], _before(1)[:, :few], OWNER[:few], layers=[0], seed=1)


def test_permuted_documents_keep_their_tokens_in_order() -> None:
    owner = np.array([0, 0, 0, 1, 2, 2])
    order = _order(owner, 3, 1)
    assert sorted(order.tolist()) == list(range(6))
    assert [tuple(order[owner[order] == one]) for one in range(3)] == [(0, 1, 2), (3,), (4, 5)]
