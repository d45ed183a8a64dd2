"""The plan against the memory that a real run took."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from finetune_api.methods import Method
from finetune_trainer.planning.memory import estimate
from finetune_trainer.planning.model import read_shape
from tests.support.tiny_model import tiny_model

TOKENS = 4096

PROGRAM = """
import sys
from pathlib import Path
import peft, psutil
import numpy as np
import torch
torch.set_num_threads(1)
from finetune_api.methods import Method
from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.methods.base import Base
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.model import LanguageModel, load_network
cpu = torch.device("cpu")
def steps(folder, kind, tokens, row):
    network, stored = load_network(folder, dtype=torch.float32, strategy=Single(), device=cpu)
    attached = method_of(Method(type=kind)).attach(network, seed=1, base=Base("tiny", stored))
    weights = Single().weights(network, attached.trainable, weight_decay=0.0)
    network.train()
    model = LanguageModel(network, cpu, None, probe(network, cpu))
    shape = (tokens // row, row)
    batch = MicroBatch(
        tokens=np.full(shape, 5), positions=np.tile(np.arange(row) % (row // 2), (shape[0], 1)),
        segments=np.zeros(shape, np.int64), targets=np.full(shape, 7), documents=np.zeros(1, np.int64),
    )
    for _ in range(2):
        weights.backward(model.nats(batch), last=True)
        weights.step(1e-3, divisor=tokens, max_norm=1.0)
small, folder, kind, tokens = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
steps(small, kind, 64, 32)  # loads every library
before = psutil.Process().memory_info().rss
steps(folder, kind, tokens, 256)
# VmHWM and not ru_maxrss, which a child inherits from whoever started it
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_memory_grows_by_what_was_planned(tmp_path: Path, kind: str) -> None:
    """Within 30 %. The interpreter was there before. malloc gives large blocks back at once here, so that the result is
    the same each time; left to itself it grows by 1.13 (full) and 1.25 (lora) of what is planned with fragments."""
    folder = tiny_model(tmp_path / "model", hidden=256, layers=4)
    small = tiny_model(tmp_path / "small")
    need = estimate(
        read_shape(folder),
        Method(type=kind),
        precision="float32",
        device="cpu",
        tokens=TOKENS,
        row=256,  # type: ignore[arg-type]
    )
    command = [sys.executable, "-c", PROGRAM, str(small), str(folder), kind, str(TOKENS)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"},
    )

    assert int(done.stdout.splitlines()[-1]) == pytest.approx(need.peak, rel=0.3)
