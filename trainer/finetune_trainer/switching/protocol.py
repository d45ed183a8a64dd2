"""The test of several adapters on one base model, whose outcome is `status.artifact.switchTest`.

    1. each adapter alone on the base: its logits are the reference
    2. all together, loaded in reverse order, then again in order; after each load the base model and those loaded
       before must still give their references
    3. damaged copies: each is refused, and after each everything gives its reference
    4. many switches in random order, the base model among them: each gives its reference, and afterwards there is not a
       byte of tensors more in the process than before
    5. merging, which is only timed, because it leaves the base model rounded

Logits are compared for equality on CPUs in float32: nothing but the active adapter takes part in a pass, so even the
rounding is the same. In 16 bits and on GPUs a difference of `TOLERANCE` passes.
"""

from __future__ import annotations

import gc
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.switching import SWITCHES, Latency, SwitchTest

from .damaged import copies
from .files import Adapter, ServedBase
from .pool import Pool

TOLERANCE = 1e-3
"""Of a logit in 16 bits, or on a GPU."""

ROWS, LENGTH = 4, 16
"""Of the prompts: random tokens, which every tokenizer has."""


@dataclass
class _Times:
    """Seconds."""

    load: list[float] = field(default_factory=list)
    switch: list[float] = field(default_factory=list)
    merge: list[float] = field(default_factory=list)


class _Failed(Exception):
    """The message says which promise was broken."""


@dataclass
class _Test:
    network: nn.Module
    base: ServedBase
    adapters: Sequence[Adapter]
    largest_rank: int
    tokens: Tensor
    alive: Callable[[], None]
    make_pool: Callable[[nn.Module, ServedBase, int], Pool]
    references: dict[str | None, Tensor] = field(default_factory=dict)
    """Logits of each adapter alone by its name; None: of the base model."""
    largest: float = 0.0
    times: _Times = field(default_factory=_Times)
    refused: int = 0
    switched: int = 0

    def pool(self) -> Pool:
        return self.make_pool(self.network, self.base, self.largest_rank)

    def alone(self) -> None:
        self.references[None] = self.pool().logits(self.tokens)
        for adapter in self.adapters:
            pool = self.pool()
            pool.load(adapter)
            pool.switch(adapter.name)
            found = self.references[adapter.name] = pool.logits(self.tokens)
            pool.close()
            if not torch.isfinite(found).all():
                message = f"adapter {adapter.name} gives logits that are not finite"
                raise FinetuneError(Reason.ModelUnsupported, message, "Train it again with a lower learning rate.")
            self._same(pool, None, f"after adapter {adapter.name} was taken out")
            self.alive()

    def together(self, adapters: Sequence[Adapter]) -> Pool:
        """With all of them loaded one by one."""
        pool = self.pool()
        for at, adapter in enumerate(adapters):
            self._timed(self.times.load, partial(pool.load, adapter))
            self._all(pool, adapters[: at + 1], f"after adapter {adapter.name} was loaded")
        return pool

    def refuses(self, pool: Pool, folder: Path) -> None:
        before = pool.parameters()
        for copy in copies(self.adapters[0], folder, largest_rank=self.largest_rank):
            with suppress(FinetuneError):
                pool.load(copy)
                raise _Failed(f"adapter {copy.name} was loaded")
            if pool.parameters() != before:
                raise _Failed(f"parts of adapter {copy.name} stayed in the network")
            self._all(pool, self.adapters, f"after adapter {copy.name} was refused")
            self.refused += 1

    def switches(self, pool: Pool, count: int, seed: int) -> None:
        chosen, names = random.Random(seed), [None, *(adapter.name for adapter in self.adapters)]
        before = tensor_bytes()
        for _ in range(count):
            name = chosen.choice(names)
            self._timed(self.times.switch, partial(pool.switch, name))
            self._compare(pool, name, f"at switch {self.switched + 1}")
            self.switched += 1
            self.alive()
        if (kept := tensor_bytes() - before) > 0:
            raise _Failed(f"{kept:,} bytes of tensors more than before {count} switches")

    def merges(self, pool: Pool) -> None:
        for adapter in self.adapters:
            started = self._now()
            with pool.merged(adapter.name):
                self.times.merge.append(self._now() - started)
            self.alive()

    def _all(self, pool: Pool, adapters: Sequence[Adapter], when: str) -> None:
        for name in (None, *(adapter.name for adapter in adapters)):
            self._same(pool, name, when)
        self.alive()

    def _same(self, pool: Pool, name: str | None, when: str) -> None:
        pool.switch(name)
        self._compare(pool, name, when)

    def _compare(self, pool: Pool, name: str | None, when: str) -> None:
        found, reference = pool.logits(self.tokens), self.references[name]
        difference = float((found.float() - reference.float()).abs().max())
        self.largest = max(self.largest, difference)
        exact = found.device.type == "cpu" and found.dtype is torch.float32
        if not difference <= (0.0 if exact else TOLERANCE):
            whose = "the base model" if name is None else f"adapter {name}"
            raise _Failed(f"{when}, {whose} gives other logits than alone, by up to {difference:.3g}")

    def _timed(self, times: list[float], work: Callable[[], None]) -> None:
        started = self._now()
        work()
        times.append(self._now() - started)

    def _now(self) -> float:
        if self.tokens.device.type == "cuda":
            torch.cuda.synchronize(self.tokens.device)
        return time.perf_counter()

    def outcome(self, failed: str) -> SwitchTest:
        return SwitchTest(
            verdict="failed" if failed else "passed",
            reason=failed[:600],
            adapters=len(self.adapters),
            switches=self.switched,
            largest_difference=self.largest,
            refused=self.refused,
            load=_latency(self.times.load),
            switch=_latency(self.times.switch),
            merge=_latency(self.times.merge),
        )


def switch_test(
    network: nn.Module,
    base: ServedBase,
    adapters: Sequence[Adapter],
    *,
    largest_rank: int,
    switches: int = SWITCHES,
    seed: int = 1,
    alive: Callable[[], None] = lambda: None,
    make_pool: Callable[[nn.Module, ServedBase, int], Pool] = Pool,
) -> SwitchTest:
    """`network`: the untouched base model in evaluation mode; afterwards its weights are rounded. `alive` is called
    every now and then. FinetuneError for an adapter that cannot be used at all."""
    test = _Test(network, base, adapters, largest_rank, prompts(network, seed), alive, make_pool)
    try:
        test.alone()
        test.together(adapters[::-1]).close()
        pool = test.together(adapters)
        with tempfile.TemporaryDirectory(prefix="finetune-damaged-") as temporary:
            test.refuses(pool, Path(temporary))
        test.switches(pool, switches, seed)
        test.merges(pool)
        pool.close()
    except _Failed as failed:
        return test.outcome(str(failed))
    return test.outcome("")


def prompts(network: nn.Module, seed: int) -> Tensor:
    """(ROWS, LENGTH) tokens, on the network's device."""
    embeddings: nn.Module = network.get_input_embeddings()  # type: ignore[operator]
    weight = embeddings.weight
    assert isinstance(weight, Tensor)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(weight.shape[0], (ROWS, LENGTH), generator=generator).to(weight.device)


def tensor_bytes() -> int:
    """Of all tensors in this process, each storage once, and of the caching allocator on GPUs."""
    gc.collect()
    storages: dict[int, int] = {}
    for each in gc.get_objects():
        if issubclass(type(each), Tensor) and each.layout is torch.strided and each.device.type != "meta":
            storage = each.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    on_gpus: int = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return sum(storages.values()) + on_gpus


def _latency(seconds: Sequence[float]) -> Latency | None:
    if not seconds:
        return None
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return float(f"{1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.3g}")

    return Latency(median=at(0.5), p95=at(0.95))
