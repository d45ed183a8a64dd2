"""Optional kernels on the GPU of this machine: whether each proves right, and its time for the reference's.

    python -m tests.benchmarks.trainer.bench_kernels

Shapes are those of public models, in bfloat16 with a frozen head: a micro-batch of two rows of about 4000 tokens,
packed from documents of 64 to 4096. Every kernel that could be had is tried, also those that a run would not come to.
Without a GPU there is nothing to measure, and it says so.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from finetune_trainer.data.pack import plan
from finetune_trainer.kernels import attention, correctness, loss, timing
from finetune_trainer.train.kernel_selection import machine
from finetune_trainer.train.loss import trained_cross_entropy

SHAPES = {
    "Llama-3.2-1B": (correctness.Heads(32, 8, 64), 2048, 128256),
    "Llama-3.1-8B": (correctness.Heads(32, 8, 128), 4096, 128256),
    "Qwen3-8B": (correctness.Heads(32, 8, 128), 4096, 151936),
}
DTYPE = torch.bfloat16


def positions() -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """(2, 3780)"""
    lengths = np.minimum(4096, np.exp(np.random.default_rng(1).uniform(np.log(64), np.log(4096), 64))).astype(np.int64)
    group = plan(lengths, max_tokens=8192, sequence_length=4096, packing=True)[0]
    rows = [np.concatenate([np.arange(lengths[place]) for place in places]) for places in group]
    width = max(map(len, rows))
    return np.array([np.concatenate([row, np.arange(width - len(row))]) for row in rows])


def main() -> None:
    argparse.ArgumentParser(description="Proves and races every kernel that training.kernels offers.").parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing to measure")
        return
    device = torch.device("cuda", 0)
    here, seconds, rows = machine(device), timing.clock(device), positions()
    print(f"{torch.cuda.get_device_name(device)}, capability {here.capability}, {dict(here.installed)}")
    for model, (heads, dim, vocabulary) in SHAPES.items():
        for name, kernel in attention.KERNELS.items():
            fault = correctness.attention_fault(kernel, heads, dtype=DTYPE, device=device)
            ratio = None if fault else timing.attention_ratio(
                kernel, heads, rows, dtype=DTYPE, device=device, seconds=seconds
            )  # fmt: skip
            print(f"{model}: attention by {name}: {fault or f'right, {ratio:.2f} of the time of sdpa under a mask'}")
        for name, summed in loss.KERNELS.items():
            fault = correctness.loss_fault(
                summed, dim=dim, vocabulary=vocabulary, trains_head=False, dtype=DTYPE, stored=DTYPE, device=device
            )
            ratio = None if fault else timing.loss_ratio(
                summed, trained_cross_entropy, tokens=rows.size, dim=dim, vocabulary=vocabulary, trains_head=False,
                dtype=DTYPE, stored=DTYPE, device=device, seconds=seconds,
            )  # fmt: skip
            print(f"{model}: loss by {name}: {fault or f'right, {ratio:.2f} of the time of our fused loss'}")


if __name__ == "__main__":
    main()
