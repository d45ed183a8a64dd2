"""What a rank imports: no package of a method that is not its own."""

from __future__ import annotations

import subprocess
import sys

TOLD = """
import sys, warnings
import finetune_trainer.train.run
print("peft" in sys.modules, "transformers" in sys.modules)
from tests.train_helpers import BASE, network
from finetune_api.methods import Lora, Method
from finetune_trainer.methods.registry import method_of
for kind in ("lora", "dora", "prompt", "ptuning", "prefix"):
    method_of(Method(type=kind)).attach(network(), seed=1, base=BASE)
print("peft" in sys.modules, "bitsandbytes" in sys.modules)
method_of(Method(type="qlora", qlora=Lora(rank=4))).attach(network(hidden_size=64), seed=1, base=BASE)
print("bitsandbytes" in sys.modules)
"""


def test_bitsandbytes_is_imported_for_four_bits_alone_and_peft_for_methods_that_use_it() -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False False", "True False", "True"]
