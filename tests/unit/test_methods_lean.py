"""What a rank imports: no package of a method, or of a device, that is not its own."""

from __future__ import annotations

import subprocess
import sys

TOLD = """
import sys, torch, warnings
import finetune_trainer.train.run
from finetune_trainer.train.without_triton import disable_triton
disable_triton(torch.device("cuda"))
print("triton" in sys.modules)
disable_triton(torch.device("cpu"))
print("peft" in sys.modules, "transformers" in sys.modules)
from tests.support.training import BASE, network
from finetune_api.methods import Lora, Method
from finetune_trainer.methods.registry import method_of
for kind in ("lora", "dora", "prompt", "ptuning", "prefix"):
    method_of(Method(type=kind)).attach(network(), seed=1, base=BASE)
print("peft" in sys.modules, "bitsandbytes" in sys.modules)
method_of(Method(type="qlora", qlora=Lora(rank=4))).attach(network(hidden_size=64), seed=1, base=BASE)
print("bitsandbytes" in sys.modules, sys.modules["triton"])
"""


def test_bitsandbytes_is_for_four_bits_alone_peft_for_methods_that_use_it_and_triton_for_gpus() -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "False False", "True False", "True None"]
