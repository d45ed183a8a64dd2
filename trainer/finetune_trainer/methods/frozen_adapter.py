"""What is read of the files of an earlier adapter, and why nothing can be trained on top of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finetune_trainer.store.headers import MalformedHeader, file_header

from .servable import against_lora

CONFIG, WEIGHTS = FILES = ("adapter_config.json", "adapter_model.safetensors")


class FrozenAdapter(BaseModel):
    """Numbers and names of adapter_config.json; all else that is there is ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    use_rslora: bool = False
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)]
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] | None = None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """ValidationError for a file that is not JSON, and for values of other types."""
        return cls.model_validate_json((folder / CONFIG).read_bytes())


def unfit(folder: Path) -> Iterator[str]:
    """Why nothing can be trained on top of the adapter in a folder, in words."""
    try:
        found = FrozenAdapter.read(folder)
        tensors = file_header(folder / WEIGHTS).tensors
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        yield ": ".join((CONFIG, *map(str, first["loc"]), first["msg"]))
        return
    except MalformedHeader as error:
        yield str(error)
        return
    yield from against_lora(json.loads((folder / CONFIG).read_bytes()), sorted(tensors))
    for name, tensor in tensors.items():
        # (r, in) and (out, r): by its rank memory is taken, before a matrix is looked at.
        if len(tensor.shape) != 2 or tensor.shape[0 if "lora_A" in name else 1] != found.r:
            yield f"{CONFIG} says rank {found.r}, and {name} is {tensor.shape}"
            return
