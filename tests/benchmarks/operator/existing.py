"""An operator that starts among jobs that are there: when has it looked at all of them, with how much memory?"""

from __future__ import annotations

import time
from typing import Any

from tests.cluster.rig import Rig

from .api import Api
from .burst import PATIENCE, Fleet, create_all
from .sides import Ours
from .usage import Meter

LAST = "zzz-the-last"


async def existing(api: Api, rig: Rig, side: Ours, *, count: int) -> dict[str, Any]:
    """`count` jobs run when the operator is started again. A job that was created while it was down, and that comes
    last in every list, gets its Job when all the others have been looked at."""
    namespace = rig.create_namespace("existing", labels={})
    side.start()
    try:
        fleet = Fleet(side, namespace, frozenset(f"b{number:05d}" for number in range(count)))
        async with api.watching(**fleet.watches()) as waiter:
            begin = time.monotonic()
            meter = Meter.of(side.pids())
            await create_all(api, fleet)
            await waiter.until(lambda: len(fleet.running) == count, what="all run", seconds=4 * PATIENCE)
            row: dict[str, Any] = {
                "side": side.name,
                "jobs": count,
                "all_running_s": round(time.monotonic() - begin, 1),
            }
            row["until_running_cpu_s"], row["until_running_peak_mib"] = meter.cpu(), meter.peak()
            side.stop()
            fleet.names |= {LAST}
            path, body = side.manifests(LAST)[-1]
            await api.call("POST", path.format(namespace=namespace), body)
            begin = time.monotonic()
            side.begin()
            meter = Meter(side.pids(), dict.fromkeys(side.pids(), 0.0))
            await waiter.until(lambda: LAST in fleet.job_seen, what="the first pass", seconds=PATIENCE)
            row["first_pass_s"] = round(fleet.job_seen[LAST] - begin, 2)
            row["first_pass_cpu_s"], row["first_pass_peak_mib"] = meter.cpu(), meter.peak()
    finally:
        side.stop()
        rig.delete_namespace(namespace)
    return row
