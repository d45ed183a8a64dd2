"""Between two runs: what one leaves behind must not be paid for by the next."""

from __future__ import annotations

import asyncio
import time

from tests.cluster.rig import Rig

from .api import Api
from .usage import Meter

PLANE = ("apiserver", "etcd", "controller-manager", "scheduler", "kwok")
LOOK = 2.0
"""Seconds over which the control plane's CPU is looked at."""
QUIET = 0.2
"""Cores that a control plane at rest takes, at most."""
PATIENCE = 300.0


def plane(rig: Rig) -> dict[str, int]:
    """The control plane's processes."""
    return {name: pid for name in PLANE if (pid := rig.pid(name))}


async def clear(api: Api, rig: Rig, namespace: str) -> None:
    """Deletes a namespace and waits until it is gone, its events too, and the control plane rests. TimeoutError."""
    rig.delete_namespace(namespace)
    end = time.monotonic() + PATIENCE
    while namespace in await _namespaces(api) or await _cores(rig) > QUIET:
        if time.monotonic() > end:
            raise TimeoutError(f"the control plane does not come to rest after {namespace}")
        await asyncio.sleep(0.5)


async def _namespaces(api: Api) -> set[str]:
    return {item["metadata"]["name"] for item in (await api.call("GET", "/api/v1/namespaces"))["items"]}


async def _cores(rig: Rig) -> float:
    meter = Meter.of(plane(rig))
    await asyncio.sleep(LOOK)
    return sum(meter.cpu().values()) / LOOK
