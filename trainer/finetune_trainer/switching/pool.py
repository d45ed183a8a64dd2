"""Adapters in one network, through PEFT. What cannot be loaded leaves the network as it was."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.methods.lean import lean_peft

from .files import Adapter, ServedBase, check


@dataclass
class Pool:
    """One network with any number of adapters, of which one or none applies."""

    network: nn.Module
    """The untouched base model, in evaluation mode. `close` leaves it so."""
    base: ServedBase
    largest_rank: int
    _model: Any = None
    """PEFT's model around the network, once it has an adapter."""
    _keys: dict[str, str] = field(default_factory=dict)
    """Name of an adapter to PEFT's: names of modules, which have no dots."""
    _loads: int = 0

    def load(self, adapter: Adapter) -> None:
        """Adds it without switching to it. FinetuneError if it does not fit; then nothing has changed."""
        check(adapter, self.base, largest_rank=self.largest_rank)
        if adapter.name in self._keys:
            raise ValueError(f"there is an adapter {adapter.name} already")
        self._loads += 1
        key = f"adapter{self._loads}"
        with lean_peft(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations between PEFT and transformers
            try:
                missing = self._read(adapter, key)
            except Exception as error:  # PEFT reports with whatever its parts raise
                self._forget(key)
                raise _not_loaded(adapter, f"{type(error).__name__}: {error}"[:300]) from error
        if missing:
            self._forget(key)
            raise _not_loaded(adapter, f"{len(missing)} weights are missing, for instance {missing[0]}")
        self._keys[adapter.name] = key

    def _read(self, adapter: Adapter, key: str) -> list[str]:
        """Names of weights that the adapter's files lack."""
        from peft import PeftConfig, PeftModel

        if self._model is None:
            config = PeftConfig.from_pretrained(adapter.folder)
            config.inference_mode = True
            self._model = PeftModel(cast(Any, self.network), config, adapter_name=key)
            self._model.eval()
        loaded = self._model.load_adapter(adapter.folder, key, torch_device=str(self._device))
        self._model.eval()
        self.switch(None)
        return list(loaded.missing_keys)

    def _forget(self, key: str) -> None:
        """Removes what a load has added so far."""
        if self._model is None or key not in self._model.peft_config:
            return
        if len(self._model.peft_config) == 1:
            self._unload()
        else:
            self._model.delete_adapter(key)

    def switch(self, name: str | None) -> None:
        """None: to the base model."""
        if self._model is None:
            return
        if name is not None:
            self._model.set_adapter(self._keys[name], inference_mode=True)
            self._model.base_model.enable_adapter_layers()
        else:
            self._model.base_model.disable_adapter_layers()

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """tokens: (rows, length) → (rows, length, vocabulary), of the adapter that applies."""
        return cast(Tensor, self.network(input_ids=tokens, use_cache=False).logits)

    @contextmanager
    def merged(self, name: str) -> Iterator[None]:
        """Inside, the adapter is a part of the base's weights. What it leaves is the base up to rounding."""
        self.switch(name)
        self._model.merge_adapter(adapter_names=[self._keys[name]])
        try:
            yield
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # layers without this adapter had nothing merged
                self._model.unmerge_adapter()
            self.switch(None)

    def parameters(self) -> int:
        """Number of all elements, of base and adapters."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def close(self) -> None:
        """Takes all adapters out of the network."""
        if self._model is not None:
            self._unload()
        self._keys.clear()

    def _unload(self) -> None:
        self._model.unload()
        self._model = None

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device


def shapes_of(network: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of a base model, by its name; GPT-2's layers are stored transposed."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 2 or isinstance(module, nn.Embedding):
            continue
        rows, columns = weight.shape
        found[name] = (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)
    return found


def _not_loaded(adapter: Adapter, why: str) -> FinetuneError:
    message = f"adapter {adapter.name} cannot be loaded: {why}"
    return FinetuneError(Reason.DataUnreadable, message, "Export the adapter again, with the release that serves it.")
