"""How many ranks answer, and where the weights are, changes no answer."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.methods import Lora, Method
from finetune_api.strategy import Strategy as Settings
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.base import Place, Strategy
from finetune_trainer.parallel.registry import join, spread
from finetune_trainer.train.model import load_network
from finetune_trainer.train.written import answers
from finetune_trainer.transfer.generated.evidence import MODES
from tests.support import rank_processes
from tests.support.training import BASE, CPU, VOCAB, disturb, model, network

NEW = 5
METHODS = {"full": Method(type="full"), "lora": Method(type="lora", lora=Lora(rank=4))}


def answered(base: Path, strategy: Strategy) -> dict[str, Any]:
    """By method and mode. 33 prompts: three batches for two ranks, so that one has nothing to do at the end."""
    dice = np.random.default_rng(7)
    prompts = [dice.integers(2, VOCAB, length).astype(np.int32) for length in range(2, 35)]
    found = {}
    for name, method in METHODS.items():
        frozen = not method.trains_the_model
        net, _ = load_network(base, dtype=torch.float32, strategy=strategy, device=CPU, frozen=frozen)
        attached = method_of(method).attach(net, seed=1, base=BASE)
        if frozen:
            disturb(attached, by=0.5)
        weights = strategy.weights(net, attached.trainable, weight_decay=0.0)
        weights.restore(None, steps=0)
        for mode in MODES:
            given = answers(
                model(net, strategy), prompts, mode=mode, new=NEW, stops=frozenset({1}), pad=1, seed=1, most_tokens=999
            )
            found[f"{name} {mode}"] = asdict(given)
    return found


def one_rank(number: int, world_size: int, port: int, base: str) -> None:
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    place = Place(rank=number, local_rank=number, world_size=world_size, local_world_size=world_size)
    os.environ.update({"RANK": str(number), "WORLD_SIZE": str(world_size)})
    gang = join(place, CPU)
    for kind in ("ddp", "fsdp"):
        strategy = spread(gang, kind, device=CPU, settings=Settings(type=kind))  # type: ignore[arg-type]
        Path(base, f"{kind}-{number}.json").write_text(json.dumps(answered(Path(base), strategy)))
    gang.barrier()
    gang.close()


@pytest.mark.timeout(300)
def test_two_ranks_answer_as_one_does_with_whole_weights_and_with_shards(tmp_path: Path) -> None:
    net = network(tie_word_embeddings=False)
    with torch.no_grad():
        net.get_output_embeddings().weight[1] *= 3  # type: ignore[operator]
    net.save_pretrained(tmp_path)
    rank_processes.start(one_rank, 2, str(tmp_path))
    alone = json.loads(json.dumps(answered(tmp_path, join(Place(), CPU))))
    told = {
        kind: [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in (0, 1)]
        for kind in ("ddp", "fsdp")
    }
    assert {True, False} <= {stopped for each in alone.values() for stopped in each["stopped"]}
    assert told["ddp"] == [alone, alone]
    assert told["fsdp"] == [alone, alone]
