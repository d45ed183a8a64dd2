"""Random streams: each has numbers of its own, and a run keeps those that it began with."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import finetune_trainer
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.order import Mixture, step_rows
from finetune_trainer.parallel.single import Single
from finetune_trainer.random_streams import DROPOUT, KEYS, NEWEST, ORDER, PART, STREAMS
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.pinned_inputs import Inputs
from tests.support.training import plan_for

PLACES = (0, 1, 2, 3, 255, 2**31 - 1)
CONSTANT = {"kernels/correctness.py", "train/capabilities.py", "train/frozen_layers.py", "methods/qlora.py"}
"""Probes with a seed of their own: nothing that is learned depends on them."""
INITIAL = {"methods/lora.py", "methods/ptuning.py", "methods/adapter.py", "methods/soft.py"}
"""One of them is in a run: initial values by torch's generator, seeded with training.seed."""
ANSWERS = {"cli/chat.py"}
"""Answers to a person, who gives the seed."""
SWITCHES = {"switching/protocol.py"}
"""The order in which finished adapters are tried: nothing learns there."""
WAITS = {"store/retries.py", "store/checkpoint_parts.py"}
"""How long to wait for a store."""


def test_no_two_places_of_any_streams_draw_the_same_numbers() -> None:
    seen: dict[tuple[int, ...], tuple[object, ...]] = {}
    for stream in STREAMS:
        for seed, *place in itertools.product((0, 1, 7), *(PLACES for _ in stream.place)):
            numbers = tuple(stream.sequence(seed, *place).generate_state(4).tolist())
            here = (stream.name, seed, *place)
            assert numbers not in seen, f"{here} and {seen[numbers]} draw the same numbers"
            seen[numbers] = here
    keys = [key.number(seed, "content") for key in KEYS for seed in range(50)]
    assert len(set(keys)) == len(keys)


def test_streams_have_names_and_ends_of_their_own() -> None:
    assert len({stream.name for stream in (*STREAMS, *KEYS)}) == len(STREAMS) + len(KEYS)
    ends = [(stream.tag, len(stream.place)) for stream in STREAMS]
    assert len(set(ends)) == len(ends)
    assert [stream for stream in STREAMS if not stream.tag] == [ORDER], "one alone can do without a tag"
    with pytest.raises(ValueError, match="needs epoch, source"):
        PART.sequence(1, 2)


def test_chance_is_used_under_a_name_alone() -> None:
    """Whoever draws numbers in another file adds a stream, or says here why it needs none."""
    root = Path(finetune_trainer.__file__).parent
    drawing = re.compile(r"SeedSequence|default_rng|PCG64|manual_seed\(|random\.Random|np\.random\.[a-z]|random\.seed")
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if drawing.search(path.read_text())}
    named = {"random_streams.py", "train/loop.py", "train/importance.py", "train/written.py", "data/augment.py"}
    named.add("train/prior_gain.py")
    assert found == named | CONSTANT | INITIAL | ANSWERS | SWITCHES | WAITS


def test_rows_that_an_epoch_sees_twice_are_spread_over_all_of_it() -> None:
    """With the keys of the order they filled 99 % of what the first quarter of the epoch shows of that source."""
    rows, batch = 4000, 100
    shares = {}
    for generation in (1, NEWEST):
        mixture = Mixture((rows, rows), (1.25, 1.0), streams=generation)
        order = np.concatenate([step_rows(mixture, batch_size=batch, seed=1, step=step) for step in range(90)])
        twice = np.flatnonzero(np.bincount(order, minlength=2 * rows) == 2)
        quarter = order[: len(order) // 4]
        shares[generation] = np.isin(quarter[quarter < rows], twice).mean()
    assert shares[1] > 0.9
    assert shares[NEWEST] == pytest.approx(0.4, abs=0.04), "2 of 5 of what is seen of the source are seen twice"


def test_the_first_generation_is_what_earlier_releases_drew() -> None:
    old = np.random.PCG64(np.random.SeedSequence([5, 3, 1])).random_raw(4)
    assert PART.raw(4, 5, 3, 1, generation=1).tolist() == old.tolist()
    assert PART.raw(4, 5, 3, 1).tolist() != old.tolist()
    [state] = np.random.SeedSequence([5, 3, 1, 0]).generate_state(1, np.uint64)
    assert DROPOUT.number(5, 3, 1, 0, generation=1) == int(state) != DROPOUT.number(5, 3, 1, 0)


def test_a_run_keeps_the_streams_that_it_began_with(tmp_path: Path) -> None:
    plan = plan_for(tmp_path)
    output = open_folder(plan.spec.output.uri, prefix="")
    store = CheckpointStore(output, plan.job)

    assert Inputs.of(plan, Single(), output).streams() == NEWEST
    store.save(4, {"a": b"1"}, {})
    assert Inputs.of(plan, Single(), output).streams() == NEWEST, "as it is noted"

    store.clear()
    store.save(4, {"a": b"1"}, {})
    assert Inputs.of(plan, Single(), output).streams() == 1, "a checkpoint of a release that noted none"

    store.note("streams", NEWEST + 1)
    with pytest.raises(FinetuneError, match="a newer release began this run") as caught:
        Inputs.of(plan, Single(), output).streams()
    assert caught.value.reason is Reason.InvalidSpec
