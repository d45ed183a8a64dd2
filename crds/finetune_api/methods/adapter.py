"""Bottleneck adapters."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from .traits import MethodSettings, Rate, Traits


class Adapter(MethodSettings):
    bottleneck: int = Field(64, ge=1, le=65536, description="Width between the adapter's two projections.")
    placement: Literal["houlsby", "pfeiffer"] = Field(
        "houlsby", description="houlsby: after attention and after feed-forward. pfeiffer: after feed-forward only."
    )
    activation: Literal["relu", "gelu", "silu"] = Field(
        "gelu", description="Activation function between the two projections."
    )


ADAPTER = Traits(
    name="adapter",
    summary="bottleneck layers in a frozen model",
    settings=Adapter,
    trains="added",
    # Houlsby et al. 2019 choose from 3e-5, 3e-4 and 3e-3; the fit gives 2.9e-4 to 1.3e-3
    rate=Rate(over_full=10.0),
    library="finetune-operator",
    switches_off=True,
    shards=("fsdp", "deepspeed"),
    new_rows=True,
    thrift=0,
)
