"""LoRA: low-rank updates; dora and qlora have its settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from .traits import MethodSettings, Rate, Traits


class Lora(MethodSettings):
    rank: int = Field(16, ge=1, le=1024, description="Rank of the update matrices.")
    alpha: Annotated[float, Field(gt=0, le=65536)] | None = Field(
        None, description="Scaling: updates are multiplied by alpha/rank. Default: twice the rank; 16 with rsLora."
    )
    rs_lora: bool = Field(
        False,
        description="Use rank-stabilized LoRA: updates are multiplied by alpha/√rank instead. Useful for ranks of 64 "
        "and more, which otherwise learn hardly more than smaller ones.",
    )
    targets: Literal["all-linear", "attention", "mlp"] = Field(
        "all-linear", description="Linear layers of the decoder blocks that get an adapter. The output head never does."
    )
    layers: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="Number of last decoder layers that get an adapter. The layers below run forward only, which saves "
        "memory and time. Default: all.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input.")

    @property
    def effective_alpha(self) -> float:
        """Alpha with its default applied. 16 is from the rsLoRA paper (2312.03732): at rank 64 it gives the same scale
        as an alpha of twice the rank without rsLoRA."""
        return self.alpha or (16 if self.rs_lora else 2 * self.rank)

    def filled(self, *, hidden_size: int) -> Self:  # noqa: ARG002
        return self.model_copy(update={"alpha": self.effective_alpha})


LORA = Traits(
    name="lora",
    summary="low-rank adapters on a frozen base model",
    settings=Lora,
    trains="added",
    rate=Rate(over_full=10.0),
    library="peft",
    switches_off=True,
    shards=("fsdp", "deepspeed"),
    new_rows=True,
    mergeable=True,
    low_rank=True,
    scalable=True,
    thrift=1,
    start=1,
)
