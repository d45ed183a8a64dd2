"""Full fine-tuning."""

from __future__ import annotations

from .traits import Rate, Traits

FULL = Traits(
    name="full",
    summary="train all weights",
    settings=None,
    trains="model",
    rate=Rate(over_full=1.0),
    library="transformers",
    shards=("fsdp", "deepspeed"),
    new_rows=True,
    thrift=0,
    start_with="many tokens",
)
