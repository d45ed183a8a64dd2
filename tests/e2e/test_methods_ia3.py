"""IA3: what it computes and trains, alone and in shards, what it needs, and who loads what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods import merged
from finetune_trainer.methods.base import Attached, Merges
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.servable import judge
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.parallel.ddp import Ddp
from finetune_trainer.parallel.registry import spread
from finetune_trainer.parallel.single import Single
from finetune_trainer.planning.memory import Precision, estimate
from finetune_trainer.planning.model import read_shape
from finetune_trainer.train.exact_memory import tracked
from finetune_trainer.train.model import load_network
from tests.support import rank_processes
from tests.support.model_families import network_of
from tests.support.training import (
    BASE,
    CPU,
    Knobs,
    Place,
    disturb,
    interrupted,
    largest_difference,
    make_run,
    network,
)

IA3 = Method(type="ia3")
KNOBS = Knobs(method=IA3, steps=8, rate=1e-3, max_norm=0.1)
TOKENS = (torch.arange(24) * 7 + 3).remainder(90).view(2, 12)


def biased(kind: str = "Qwen2") -> nn.Module:
    """Keys and values with biases, which IA3 scales too."""
    made = network(kind)
    torch.manual_seed(3)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return made


@torch.no_grad()
def logits(net: Any) -> torch.Tensor:
    answer: torch.Tensor = net.eval()(input_ids=TOKENS, use_cache=False).logits
    return answer


def attached(net: nn.Module, *, by: float = 0.1) -> Attached:
    made = method_of(IA3).attach(net, seed=1, base=BASE)
    disturb(made, by=by)
    return made


def test_factors_of_one_change_no_bit() -> None:
    net = biased()
    before = logits(net)
    attached(net, by=0.0)
    assert torch.equal(logits(net), before)


def test_keys_values_and_inner_features_are_multiplied() -> None:
    """Equation 1 and the feed-forward of section 3.3 in the paper, layer by layer."""
    net: Any = biased()
    attached(net)
    first = net.model.layers[0]
    x = torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(1))
    for layer in (first.self_attn.k_proj, first.self_attn.v_proj):
        (factors,) = layer.ia3_l.values()
        torch.testing.assert_close(layer(x), layer.base_layer(x) * factors.flatten())
    inner = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(2))
    (factors,) = first.mlp.down_proj.ia3_l.values()
    torch.testing.assert_close(first.mlp.down_proj(inner), first.mlp.down_proj.base_layer(inner * factors.flatten()))
    assert not hasattr(first.self_attn.q_proj, "ia3_l")


@pytest.mark.parametrize("kind", ["Qwen2", "GPT2"])
def test_plain_peft_and_plain_transformers_load_what_is_written(tmp_path: Path, kind: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base: Any = biased(kind)
    base.save_pretrained(tmp_path / "base")
    made = attached(base)
    tuned = logits(base)
    (tmp_path / "adapter").mkdir()
    made.export(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["base_model_name_or_path"]) == ("IA3", "org/tiny")
    assert judge(tmp_path / "adapter").servable == "hf-only"
    fresh = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(fresh, tmp_path / "adapter")), tuned)

    assert isinstance(made, Merges)
    merged.check(made.changes(), tmp_path / "base")
    merged.write(made.changes(), tmp_path / "base", tmp_path / "merged", alive=lambda: None)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(whole), tuned, rtol=1e-5, atol=1e-5)


def test_a_model_without_attention_and_feed_forward_is_refused() -> None:
    with pytest.raises(FinetuneError, match="neither keys and values") as raised:
        method_of(IA3).attach(network_of("mamba"), seed=1, base=BASE)
    assert raised.value.reason is Reason.ModelUnsupported


def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path) -> None:
    whole = make_run(tmp_path / "whole", KNOBS)
    state = whole.finish()
    assert (state.curve[-1].loss or 9.0) < (state.curve[0].loss or 0.0)
    resumed = interrupted(lambda: make_run(tmp_path / "cut", KNOBS), 4)
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0


CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 192, "intermediate_size": 512,
    "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 2048,
    "tie_word_embeddings": True, "max_position_embeddings": 1024,
}  # fmt: skip


@pytest.mark.parametrize(("precision", "recomputed"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_the_plan_is_within_10_percent_of_the_tracker(tmp_path: Path, precision: Precision, recomputed: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = read_shape(tmp_path, weightless=True)
    need = estimate(shape, IA3, precision=precision, device="cpu", tokens=512, row=512, recomputed=recomputed)
    followed = tracked(tmp_path, IA3, precision=precision, tokens=512, recomputed=recomputed)
    assert need.peak == pytest.approx(followed, rel=0.10)


def _run(root: Path, folder: str, strategy: Strategy) -> dict[str, Any]:
    net, _ = load_network(root / "base", dtype=torch.float32, strategy=strategy, device=CPU, frozen=True)
    run = make_run(root / folder, KNOBS, strategy=strategy, net=net)
    state = run.finish()
    if strategy.place.first:
        (root / folder / "export").mkdir()
        run.attached.export(root / folder / "export")
    return {"losses": [point.loss for point in state.curve], "tensors": run.tensors()}


def _rank(rank: int, world_size: int, port: int, root: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ddp.join(Place(rank, rank, world_size, world_size), CPU)
    kinds: tuple[Any, ...] = ("ddp", "fsdp")
    for kind in kinds:
        found = _run(Path(root), kind, spread(ranks, kind, device=CPU, settings=Settings(type=kind)))
        torch.save(found, f"{root}/{kind}.{rank}.pt")
        ranks.barrier()
    ranks.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What rank 0 of two found under a strategy, and one process alone."""
    root = tmp_path_factory.mktemp("ia3")
    biased().save_pretrained(root / "base")  # type: ignore[operator]
    torch.save(_run(root, "alone", Single()), root / "alone.0.pt")
    rank_processes.start(_rank, 2, str(root))
    return lambda name: torch.load(root / f"{name}.0.pt")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_learn_what_one_learns(told: Callable[[str], dict[str, Any]], strategy: str) -> None:
    two, alone = told(strategy), told("alone")
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    weights = [{n: t for n, t in each["tensors"].items() if n.startswith("weights")} for each in (two, alone)]
    assert largest_difference(*weights) < 5e-6
