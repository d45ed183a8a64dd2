"""What the plan counts is what trains, for every method on a real architecture."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import TRAITS, Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.methods.registry import method_of
from finetune_trainer.planning.memory import trained_parameters
from finetune_trainer.planning.model import read_shape
from tests.support.training import BASE, network

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
CASES += [Method.model_validate({"type": name}) for name in TRAITS if name not in {method.type for method in CASES}]


EXPERTS: dict[str, dict[str, int]] = {
    "Mixtral": {"num_local_experts": 4, "num_key_value_heads": 4},
    "Qwen2Moe": {
        "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64, "num_key_value_heads": 4,
    },
}  # fmt: skip


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


@pytest.mark.parametrize("method", [CASES[2], CASES[4], Method(type="full")], ids=lambda method: method.type)
@pytest.mark.parametrize("kind", EXPERTS)
def test_experts_have_no_adapters_in_the_plan_as_in_training(tmp_path: Path, kind: str, method: Method) -> None:
    net = network(kind, hidden_size=64, intermediate_size=128, **EXPERTS[kind])
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    attached = method_of(method).attach(net, seed=1, base=BASE)
    assert sum(p.numel() for p in attached.trainable.values()) == trained_parameters(read_shape(tmp_path), method)
    if isinstance(attached, LoraAttached):  # and a run says so
        experts = [p.numel() for n, p in net.named_parameters() if ".experts." in n or n.endswith(".gate.weight")]
        assert attached.without == sum(experts)


def test_a_model_that_is_mostly_experts_is_not_for_four_bits() -> None:
    net = network("Mixtral", hidden_size=64, intermediate_size=128, **EXPERTS["Mixtral"])
    with pytest.raises(FinetuneError, match=r"\d+ % of the weights of MixtralForCausalLM's blocks") as caught:
        method_of(Method(type="qlora")).attach(net, seed=1, base=BASE)
    assert caught.value.reason is Reason.ModelUnsupported
    assert "method.type: lora" in caught.value.hint
