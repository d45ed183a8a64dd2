"""An operator that starts among jobs that are there: when has it looked at all of them, with how much memory?"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from tests.cluster.rig import Rig

from .api import MERGE, Api
from .burst import AT_ONCE, PATIENCE, Fleet, create_all
from .sides import Ours
from .usage import Meter

LAST = "zzz-the-last"
NOW = "2026-01-01T00:00:00Z"
ENDED = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": NOW}
FINISHED = {"phase": "Succeeded", "attempt": 1, "observedGeneration": 1, "completionTime": NOW, "conditions": [ENDED]}


async def existing(api: Api, rig: Rig, side: Ours, *, count: int, running: int) -> dict[str, Any]:
    """`running` of `count` jobs run when the operator is started again, the others have ended. A job that was created
    while it was down, and that comes last in every list, gets its Job when all the others have been looked at."""
    namespace = rig.create_namespace("existing", labels={})
    side.start()
    try:
        fleet = Fleet(side, namespace, frozenset(f"b{number:05d}" for number in range(running)))
        async with api.watching(**fleet.watches()) as waiter:
            await create_all(api, fleet)
            await waiter.until(lambda: len(fleet.running) == running, what="all run", seconds=PATIENCE)
            side.stop()
            await _finished(api, side, namespace, count - running)
            path, body = side.manifests(LAST)[-1]
            await api.call("POST", path.format(namespace=namespace), body)
            begin = time.monotonic()
            side.begin()
            meter = Meter(side.pids(), dict.fromkeys(side.pids(), 0.0))
            await waiter.until(lambda: LAST in fleet.job_seen, what="the first pass", seconds=PATIENCE)
            took = fleet.job_seen[LAST] - begin
            row = {"side": side.name, "jobs": count, "running": running, "first_pass_s": round(took, 2)}
            row |= {"first_pass_cpu_s": meter.cpu(), "first_pass_peak_mib": meter.peak()}
    finally:
        side.stop()
        rig.delete_namespace(namespace)
    return row


async def _finished(api: Api, side: Ours, namespace: str, count: int) -> None:
    """Jobs that ended long ago, and whose Jobs are gone."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with gate:
            name = f"e{number:05d}"
            path, body = side.manifests(name)[-1]
            path = path.format(namespace=namespace)
            await api.call("POST", path, body)
            await api.call("PATCH", f"{path}/{name}/status", {"status": FINISHED}, MERGE)

    await asyncio.gather(*map(one, range(count)))
