"""DoRA: LoRA that trains a weight's magnitude apart from its direction."""

from __future__ import annotations

from .lora import Lora
from .traits import Rate, Traits

DORA = Traits(
    name="dora",
    summary="LoRA that trains magnitude and direction separately",
    settings=Lora,
    trains="added",
    rate=Rate(over_full=10.0),  # PEFT's published comparison takes LoRA's rate for it
    library="peft",
    switches_off=True,
    shards=("fsdp",),
    new_rows=True,
    mergeable=True,
    low_rank=True,
    not_compiled="PEFT's layers break it into a hundred pieces",
    thrift=0,
)
