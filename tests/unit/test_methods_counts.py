"""What the plan counts is what trains, for every method on a real architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.methods import Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_trainer.methods.registry import METHODS, method_of
from finetune_trainer.planning.memory import trained_parameters
from finetune_trainer.planning.model import read_shape
from tests.train_helpers import BASE, network

CASES = [
    Method(type="full"),
    Method(type="partial", partial=Partial(layers=1)),
    Method(type="lora", lora=Lora(rank=4)),
    Method(type="lora", lora=Lora(rank=4, targets="mlp")),
    Method(type="dora", dora=Lora(rank=4, targets="attention")),
    Method(type="qlora", qlora=Lora(rank=4)),
    Method(type="adapter", adapter=Adapter(bottleneck=8)),
    Method(type="adapter", adapter=Adapter(bottleneck=8, placement="pfeiffer")),
    Method(type="prompt", prompt=Prompt(virtual_tokens=5)),
    Method(type="ptuning", ptuning=PTuning(virtual_tokens=5, hidden=12)),
    Method(type="ptuning"),
    Method(type="prefix", prefix=Prefix(virtual_tokens=5)),
    Method(type="probe"),
]


def test_every_method_is_counted() -> None:
    assert {method.type for method in CASES} == METHODS.keys()


@pytest.mark.parametrize(
    ("kind", "method"),
    [(kind, method) for kind in ("Llama", "GPT2") for method in CASES if (kind, method.type) != ("GPT2", "qlora")],
    ids=lambda value: value if isinstance(value, str) else value.type,
)
def test_as_many_parameters_train_as_are_planned(tmp_path: Path, kind: str, method: Method) -> None:
    """GPT-2 keeps its matrices transposed, in layers that qlora refuses."""
    net = network(kind, **({"hidden_size": 64, "intermediate_size": 128} if kind == "Llama" else {}))
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    attached = method_of(method).attach(net, seed=1, base=BASE)
    assert sum(p.numel() for p in attached.trainable.values()) == trained_parameters(read_shape(tmp_path), method)
