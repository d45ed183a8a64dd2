"""How many layers `partial` trains, where the manifest leaves it to the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method, Partial
from finetune_trainer.methods.needs import check_strategy
from finetune_trainer.parallel.single import Single
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.auto_layers import resolve_layers
from finetune_trainer.transfer.evaluate import Layout
from tests.support.training import JOB, LENGTHS, documents, model, network

AUTO = Method(type="partial")
LAYOUT = Layout(max_tokens=64, sequence_length=64, packing=False, pad_id=0)

OPEN = [
    (AUTO, True),
    (Method(type="partial", partial=Partial(layers="auto")), True),
    (Method(type="partial", partial=Partial(layers=3)), False),
    (Method(type="lora"), False),
]


@pytest.mark.parametrize(("method", "expected"), OPEN)
def test_what_is_left_open(method: Method, expected: bool) -> None:
    assert method.is_open is expected


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(open_folder(f"file://{folder}", prefix=""), JOB)


def _choose(store: CheckpointStore | None) -> int:
    beats: list[int] = []
    method = resolve_layers(
        AUTO,
        model(network(layers=6)),
        documents(LENGTHS),
        layout=LAYOUT,
        seed=1,
        batch_size=5,
        gang=Single(),
        store=store,
        alive=lambda: beats.append(1),
    )
    assert method.partial is not None
    layers = method.partial.layers
    assert isinstance(layers, int)
    assert len(beats) in (0, 8)
    return layers


def test_the_choice_is_a_function_of_model_data_and_seed() -> None:
    assert 1 <= _choose(None) <= 6
    assert _choose(None) == _choose(None)


def test_an_attempt_keeps_to_what_the_first_decided(tmp_path: Path) -> None:
    store = _store(tmp_path)
    chosen = _choose(store)
    assert store.noted("partial-layers") == chosen
    store.note("partial-layers", 5 if chosen != 5 else 4)  # as if other hardware had decided
    assert _choose(store) != chosen
    store.clear()
    assert store.noted("partial-layers") is None
    assert _choose(store) == chosen


SHARDED = [
    (AUTO, "fsdp", "method.partial.layers auto is measured on whole weights, and strategy fsdp shards them"),
    (Method(type="dora"), "deepspeed", "method.type dora was never tried with weights that deepspeed shares"),
    (Method(type="qlora"), "deepspeed", "method.type qlora was never tried with weights that deepspeed shares"),
]


@pytest.mark.parametrize(("method", "strategy", "says"), SHARDED)
def test_what_shards_would_get_wrong_is_refused(method: Method, strategy: str, says: str) -> None:
    with pytest.raises(FinetuneError) as error:
        check_strategy(method, strategy)
    assert (error.value.reason, error.value.message) == (Reason.InvalidSpec, says)
    check_strategy(method, "ddp")


def test_shards_are_fine_for_the_others() -> None:
    others = (Method(type=kind) for kind in ("full", "lora", "dora", "qlora", "adapter"))  # type: ignore[arg-type]
    for method in (*others, Method(type="partial", partial=Partial(layers=3))):
        check_strategy(method, "fsdp")
