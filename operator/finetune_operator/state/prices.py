"""What the administrator says that a GPU costs: --gpu-prices, in the chart `prices`.

    {"currency": "EUR", "perGpuHour": [{"price": 2.5, "resource": "nvidia.com/gpu", "nodeSelector": {"gpu": "h100"}},
                                       {"price": 1.2}]}

The first entry that fits a job's resource and its `pod.nodeSelector` applies. The operator has no permission to read
nodes, so it compares with the labels that the job asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from finetune_api import accelerators
from finetune_api.ladder import Price, unpriced
from finetune_api.rung_pods import all_pods
from finetune_api.spec import FineTuneJobSpec


class _Part(BaseModel):
    """An unknown key is refused: a misspelled one would make everything cost the same."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", alias_generator=to_camel)


class Entry(_Part):
    """The price of an hour of one device."""

    price: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
    resource: str = ""
    """Empty: any."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the job's nodeSelector must have."""

    def fits(self, resource: str, labels: Mapping[str, str]) -> bool:
        return self.resource in ("", resource) and self.node_selector.items() <= labels.items()


class _Table(_Part):
    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{1,16}$")]
    per_gpu_hour: tuple[Entry, ...]


@dataclass(frozen=True)
class Prices:
    """Without entries nothing has a price."""

    currency: str = ""
    entries: tuple[Entry, ...] = field(default=())

    @classmethod
    def parse(cls, text: str) -> Prices:
        """ValueError, in one line, if `text` is not such JSON. Empty text: no prices."""
        if not text.strip():
            return cls()
        try:
            table = _Table.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'JSON'}: {first['msg']}") from None
        return cls(table.currency, table.per_gpu_hour)

    def per_hour(self, devices: Mapping[str, int], labels: Mapping[str, str]) -> float | None:
        """The price of an hour of all these devices; None if one of them has none."""
        total = 0.0
        for resource, count in devices.items():
            price = next((each.price for each in self.entries if each.fits(resource, labels)), None)
            if price is None:
                return None
            total += price * count
        return total


def devices_of(spec: FineTuneJobSpec) -> dict[str, int]:
    """Accelerators of one pod, by resource. Devices of a claim are counted by the processes that use them."""
    found = accelerators.devices(spec.resources.to_json().get("limits") or {})
    return found or ({"": spec.processes} if spec.pod.resource_claims else {})


def price_problem(prices: Prices, spec: FineTuneJobSpec) -> str:
    """Why a ladder's budget of money cannot be kept, and what to do; empty if it can, or there is none."""
    budget, of_rungs = spec.ladder.budget, [price_of(prices, each) for each in all_pods(spec)]
    if (missing := unpriced(budget, of_rungs[0])) or budget is None or budget.money is None:
        return missing
    if all(price == of_rungs[0] for price in of_rungs):
        return ""
    return (
        "spec.ladder.budget.money: an hour of a process does not have the same price in the pods of all rungs "
        "(ladder.overrides): use budget.gpuHours, or the same devices for each process"
    )


def price_of(prices: Prices, spec: FineTuneJobSpec) -> Price | None:
    """Of an hour of one process. None where a device has no price, and without devices."""
    devices = devices_of(spec)
    hourly = prices.per_hour(devices, spec.pod.node_selector) if devices else None
    return None if hourly is None else Price(per_hour=hourly / spec.processes, currency=prices.currency)
