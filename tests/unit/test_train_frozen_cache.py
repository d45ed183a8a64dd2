"""Frozen layers once: with kept states a run has the losses, weights and resumes of one that computes them anew."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.methods import Method, Partial
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.hidden_states import Chunks
from finetune_trainer.parallel.base import Place
from finetune_trainer.parallel.single import Single
from finetune_trainer.train import frozen_cache
from finetune_trainer.train.frozen_cache import StateCache, keep, worthwhile
from finetune_trainer.train.frozen_layers import find_frozen_layers
from finetune_trainer.transfer.evaluate import Layout, Stopped
from tests.support.training import CPU, LENGTHS, Knobs, Run, documents, largest_difference, make_run, model, network

PARTIAL = Method(type="partial", partial=Partial(layers=1))
KNOBS = Knobs(method=PARTIAL, steps=9, batch_size=5, checkpoint_steps=4)
"""Twelve rows in batches of five: three epochs."""


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_cache, "CHUNK_BYTES", 50 * 32 * 4)  # fifty tokens of width 32


def _kept(run: Run, root: Path, **changes: Any) -> Run:
    """The same run, reading the states of its frozen layers."""
    attached, trainer = run.attached, run.trainer
    below = find_frozen_layers(run.net, attached.lowest_layer, CPU)
    assert below is not None
    trainer = replace(trainer, model=replace(trainer.model, below=below))
    shelf = StateCache(trainer.model, trainer.layout, root, "weights")

    def keeping(corpus: Corpus) -> Corpus:
        return keep(corpus, shelf, strategy=trainer.strategy, going_on=lambda: True, say=lambda _: None, **changes)

    assert trainer.validation is not None
    return replace(run, trainer=replace(trainer, train=keeping(trainer.train), validation=keeping(trainer.validation)))


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "GPTNeoX", "Gemma2"])
def test_losses_are_equal_to_the_bit_where_the_layout_is(tmp_path: Path, kind: str) -> None:
    """With a document in each micro-batch, states are computed as the step would compute them."""
    knobs = replace(KNOBS, kind=kind, packing=False, max_tokens=1)
    without = make_run(tmp_path / "a", knobs)
    state = without.finish()
    found = _kept(make_run(tmp_path / "b", knobs), tmp_path / "states")
    kept = found.finish()
    assert [point.loss for point in kept.curve] == [point.loss for point in state.curve]
    assert kept.validation == state.validation
    assert largest_difference(found.tensors(), without.tensors()) == 0.0


def test_packed_documents_have_their_own_states(tmp_path: Path) -> None:
    without = make_run(tmp_path / "a", KNOBS).finish()
    kept = _kept(make_run(tmp_path / "b", KNOBS), tmp_path / "states").finish()
    losses = [point.loss or 0.0 for point in without.curve]
    assert [point.loss for point in kept.curve] == pytest.approx(losses, rel=1e-5)
    assert kept.validation[-1].scores.loss == pytest.approx(without.validation[-1].scores.loss, rel=1e-5)


def test_frozen_layers_do_not_run_in_a_step(tmp_path: Path) -> None:
    run = _kept(make_run(tmp_path, KNOBS), tmp_path / "states")
    ran: list[int] = []
    for index, block in enumerate(run.net.model.layers):
        block.self_attn.register_forward_hook(lambda *_, index=index: ran.append(index))
    run.trainer._step(run.start())
    assert set(ran) == {1}


def test_a_run_that_lost_its_disk_resumes_to_the_bit(tmp_path: Path) -> None:
    whole = _kept(make_run(tmp_path / "whole", KNOBS), tmp_path / "states")
    whole.finish()
    first = _kept(make_run(tmp_path / "cut", KNOBS), tmp_path / "others")
    state = first.start()
    while state.step < 5:
        state, _ = first.trainer._step(state)
    first.trainer.checkpointer.save(state, first.trainer.weights)
    first.trainer.checkpointer.wait()
    shutil.rmtree(tmp_path / "others")
    second = _kept(make_run(tmp_path / "cut", KNOBS), tmp_path / "others")
    assert second.start().step == 5
    second.finish()
    assert largest_difference(second.tensors(), whole.tensors()) == 0.0


def _shelf(root: Path, **changes: Any) -> StateCache:
    net = network(layers=3)
    layout = Layout(max_tokens=48, sequence_length=64, packing=True, pad_id=0)
    ours = replace(model(net), below=find_frozen_layers(net, 2, CPU))
    return replace(StateCache(ours, layout, root, "weights"), **changes)


def _keep(shelf: StateCache, corpus: Corpus, **changes: Any) -> Corpus:
    told = {"strategy": Single(), "going_on": lambda: True, "say": lambda _: None, **changes}
    return keep(corpus, shelf, **told)


class Neighbour(Single):
    """One of two processes of a node."""

    def __init__(self, rank: int) -> None:
        object.__setattr__(self, "place", Place(rank, rank, 2, 2))


def test_processes_of_a_node_share_the_work_and_find_the_same(tmp_path: Path) -> None:
    corpus, alone, shared = documents(LENGTHS), _shelf(tmp_path / "alone"), _shelf(tmp_path / "shared")
    one = _keep(alone, corpus).states
    shared.chunks(corpus).folder.mkdir(parents=True)
    computed: list[int] = []
    object.__setattr__(shared, "compute", _counted(shared, computed))
    for rank in (0, 1):
        there = len(computed)
        two = _keep(shared, corpus, strategy=Neighbour(rank)).states
        assert one is not None
        assert two is not None
        assert all(np.array_equal(one.row(i), two.row(i)) for i in range(len(corpus)))
        assert (len(computed) > there) is (rank == 0)  # nobody answers rank 0, which then does all


def _counted(shelf: StateCache, computed: list[int]) -> Any:
    compute = shelf.compute
    return lambda corpus, rows, places: (computed.append(1), compute(corpus, rows, places))[1]


def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(tmp_path: Path) -> None:
    corpus, shelf = documents(LENGTHS), _shelf(tmp_path)
    answers = iter([True, True, False])
    with pytest.raises(Stopped):
        _keep(shelf, corpus, going_on=lambda: next(answers))
    assert len(list(shelf.chunks(corpus).folder.glob("*.npy"))) == 2
    computed: list[int] = []
    object.__setattr__(shelf, "compute", _counted(shelf, computed))
    assert _keep(shelf, corpus).states is not None
    assert len(computed) == len(shelf.chunks(corpus)) - 2


@pytest.mark.parametrize(
    "other",
    [{"weights": "others"}, {"layout": Layout(max_tokens=32, sequence_length=64, packing=True, pad_id=0)}],
    ids=["other weights", "another layout"],
)
def test_states_of_something_else_are_not_taken(tmp_path: Path, other: dict[str, Any]) -> None:
    corpus = documents(LENGTHS)
    assert _shelf(tmp_path).chunks(corpus).folder == _shelf(tmp_path).chunks(corpus).folder
    assert _shelf(tmp_path, **other).chunks(corpus).folder != _shelf(tmp_path).chunks(corpus).folder
    assert _shelf(tmp_path).chunks(documents(LENGTHS, seed=1)).folder != _shelf(tmp_path).chunks(corpus).folder


def test_without_room_layers_run_as_ever_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_cache, "MOST_BYTES", 1000)
    said: list[str] = []
    corpus = documents(LENGTHS)
    assert _keep(_shelf(tmp_path), corpus, say=said.append).states is None
    assert said == ["frozen layers run in every step: their states need 1 MiB of disk, and 0 may be used"]


@pytest.mark.parametrize(
    ("passes", "nodes", "answer"), [(1, 1, False), (1.2, 1, False), (2, 1, True), (3, 2, True), (3, 4, False)]
)
def test_states_are_kept_where_they_save_work(passes: float, nodes: int, answer: bool) -> None:
    assert worthwhile(passes=passes, nodes=nodes) is answer


CHUNKS = [
    ([3, 3, 3], 6, [0, 2, 3]),
    ([3, 3, 3], 100, [0, 3]),
    ([9, 1, 9], 4, [0, 1, 3]),
    ([0, 5], 3, [0, 2]),
    ([5], 3, [0, 1]),
]


@pytest.mark.parametrize(("lengths", "tokens", "starts"), CHUNKS)
def test_files_hold_whole_rows(tmp_path: Path, lengths: list[int], tokens: int, starts: list[int]) -> None:
    chunks = Chunks.of(tmp_path, np.cumsum([0, *lengths]), tokens=tokens)
    assert chunks.starts.tolist() == starts


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_is_below_what_trains_from_the_first_layer_on(count: int) -> None:
    assert find_frozen_layers(network(), count, CPU) is None


def test_dropout_in_frozen_layers_is_found_out() -> None:
    assert find_frozen_layers(network("GPT2", layers=3), 2, CPU) is not None
    assert find_frozen_layers(network("GPT2", layers=3, resid_pdrop=0.1), 2, CPU) is None
    assert find_frozen_layers(network("Llama", layers=3, attention_dropout=0.1), 2, CPU) is None


def test_a_block_that_hands_on_more_than_states_is_found_out() -> None:
    net = network(layers=3)
    for block in net.model.layers:
        forward = block.forward
        block.forward = lambda hidden, *args, forward=forward, **named: forward(hidden + net.carried, *args, **named)
        block.register_forward_hook(lambda _m, _i, output: setattr(net, "carried", net.carried + output.sum()))
    net.carried = torch.zeros(())
    assert find_frozen_layers(net, 2, CPU) is None
