"""QLoRA: LoRA on a base in 4 bits."""

from __future__ import annotations

from .lora import Lora
from .traits import Rate, Traits

QLORA = Traits(
    name="qlora",
    summary="LoRA on a 4-bit base model",
    remark="The base is NF4 with double quantization.",
    settings=Lora,
    trains="added",
    # Dettmers et al. 2023 train at 2e-4 (7B, 13B), where the fit for LoRA says 2.9e-4 (8B)
    rate=Rate(over_full=10.0),
    library="peft",
    switches_off=True,
    shards=("fsdp",),
    new_rows=True,
    mergeable=True,
    low_rank=True,
    scalable=True,
    four_bits=True,
    not_compiled="its layers unpack weights in kernels that torch.compile cannot follow",
    thrift=2,
    start=2,
)
