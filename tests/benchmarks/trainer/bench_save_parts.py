"""What a checkpoint of sharded weights costs a step, and what each rank holds for it.

    python tests/benchmarks/trainer/bench_save_parts.py [--ranks 2] [--saves 5] [--layers 30]

Full fine-tuning under fsdp in the shape of SmolLM2-135M, AdamW, ranks of one thread over gloo, into a folder on the
disk. Blocked is the time from the request until a rank's next step may begin, with the save before it done; a save ends
when its manifest is there. Of all saves the least of each, of all ranks the most. Exits 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from build import SMOLLM2, random_model

BLOCKED_TARGET = 0.05
"""Of a save's duration."""
SHARE_TARGET = 1.05


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--layers", type=int, default=SMOLLM2["num_hidden_layers"])
    options = parser.parse_args()

    import torch
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_model(folder / "model", num_hidden_layers=options.layers)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = int(free.getsockname()[1])
        mp.start_processes(_rank, (options.ranks, port, temporary, options.saves), nprocs=options.ranks)
        ranks = [torch.load(folder / f"{rank}.pt") for rank in range(options.ranks)]
    blocked, saved = (max(rank[what] for rank in ranks) for what in ("blocked", "saved"))
    held, whole = max(rank["bytes"] for rank in ranks), 12 * ranks[0]["parameters"]
    share = held / (whole / options.ranks)
    print(f"blocked {blocked * 1000:.0f} ms of {saved:.2f} s: {blocked / saved:.4f} (target {BLOCKED_TARGET})")
    print(f"a rank holds {held / 1e6:.1f} MB of {whole / 1e6:.1f}: {share:.3f} of its share (target {SHARE_TARGET})")
    return 0 if blocked / saved <= BLOCKED_TARGET and share <= SHARE_TARGET else 1


def _rank(rank: int, ranks: int, port: int, folder: str, saves: int) -> None:
    import torch

    from finetune_api.plan import JobIdentity
    from finetune_trainer.parallel.base import Place
    from finetune_trainer.parallel.ddp import Ddp
    from finetune_trainer.parallel.fsdp import Fsdp
    from finetune_trainer.store.checkpoints import CheckpointStore
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.train.checkpointer import Checkpointer
    from finetune_trainer.train.model import load_network
    from finetune_trainer.train.state import State

    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    gang = Ddp.join(Place(rank, rank, ranks, ranks), torch.device("cpu"))
    strategy = Fsdp(gang.place, gang.device)
    network, _ = load_network(Path(folder) / "model", dtype=torch.float32, strategy=strategy, device=gang.device)
    trainable = dict(network.named_parameters())
    weights = strategy.weights(network, trainable, weight_decay=0.0)
    weights.step(1e-4, divisor=1.0, max_norm=1.0)
    store = CheckpointStore(
        open_folder(f"file://{folder}/output", prefix=""), JobIdentity(namespace="b", name="s", uid="0")
    )
    checkpointer = Checkpointer(strategy=strategy, store=store, keep=1, every_steps=1, every_seconds=None)
    told: dict[str, Any] = {"blocked": [], "saved": []}
    for step in range(1, saves + 1):
        weights.step(1e-4, divisor=1.0, max_norm=1.0)
        strategy.barrier()
        started = time.perf_counter()
        checkpointer.save(State(step=step), weights)
        told["blocked"].append(time.perf_counter() - started)
        checkpointer.wait()
        strategy.barrier()
        told["saved"].append(time.perf_counter() - started)
    told = {what: min(seconds) for what, seconds in told.items()}
    told["bytes"] = sum(tensor.nbytes for tensor in weights.tensors().values())
    told["parameters"] = sum(parameter.numel() for parameter in trainable.values())
    torch.save(told, f"{folder}/{rank}.pt")
    strategy.close()


if __name__ == "__main__":
    sys.exit(main())
