"""What the log says about padding is what the network computes."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_trainer.data.corpus import corpus_of
from finetune_trainer.data.order import Mixture, share, step_rows
from finetune_trainer.data.pack import micro_batches
from finetune_trainer.data.padding import layout_statistics


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
def test_padding_is_that_of_the_micro_batches_of_the_first_steps(packing: bool, world_size: int) -> None:
    sizes = np.random.default_rng(1).integers(2, 60, 50)
    corpus = corpus_of([np.ones(n, np.int32) for n in sizes], [np.arange(n) > 0 for n in sizes], sizes)
    mixture = Mixture((30, 20), (1.5, 0.5))
    bounds = {"max_tokens": 128, "sequence_length": 64, "packing": packing}
    found = layout_statistics(
        corpus.lengths, mixture, total_steps=7, batch_size=16, seed=4, world_size=world_size, **bounds
    )
    batches = []
    for step in range(7):
        rows = step_rows(mixture, batch_size=16, seed=4, step=step)
        for rank in range(world_size):
            mine = share(rows, corpus.lengths[rows], rank=rank, world_size=world_size)
            batches += micro_batches(corpus, mine, **bounds, pad_id=0)
    computed = sum(batch.tokens.size for batch in batches)
    padding = sum(int(np.count_nonzero(batch.segments == -1)) for batch in batches)
    assert (found.steps, found.micro_batches, found.computed) == (7, len(batches), computed)
    assert found.padding_ratio == pytest.approx(padding / computed)
    assert (found.computed == found.unpacked) == (not packing)
    assert f"{100 * padding / computed:.1f} % padding" in found.line()
