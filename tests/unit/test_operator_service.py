"""The composed operator, with kopf and all its watches, against an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_operator.kube.connection import connect
from finetune_operator.kube.leader import GIVEN_BACK, Election
from finetune_operator.service import Options, Service
from tests.support.http_api import HttpApi, finetune_job
from tests.support.operator_objects import DEFAULTS, SPEC

ELECTION = Election(namespace="ml", name="l", identity="i", lease=600, renew=400, retry=0.2)
LEASE = {
    "metadata": {"namespace": "ml", "name": "l"},
    "spec": {"holderIdentity": "", "leaseDurationSeconds": GIVEN_BACK},
}


async def until(true: Callable[[], bool], running: asyncio.Task[None]) -> None:
    async with asyncio.timeout(60):
        while not true():
            assert not running.done(), "the operator has ended"
            await asyncio.sleep(0.02)


async def life(folder: Path, election: Election | None) -> None:
    api, stop = HttpApi(), asyncio.Event()
    api.put("finetunejobs", finetune_job("a", SPEC))
    api.put("leases", LEASE)
    async with api.kubeconfig(folder) as kubeconfig:
        options = Options(workers=2, defaults=DEFAULTS, election=election)
        service = Service(await connect(str(kubeconfig)), options)
        assert not service.acting
        running = asyncio.create_task(service.run(stop))
        await until(lambda: "a-1" in api.objects["jobs"], running)
        assert service.acting
        api.put("finetunejobs", finetune_job("b", SPEC))  # seen by the watch
        await until(lambda: "b-1" in api.objects["jobs"], running)
        statuses = [raw["status"] for raw in api.objects["finetunejobs"].values()]
        assert [(status["phase"], status["attempt"]) for status in statuses] == [("Pending", 1)] * 2
        assert set(api.objects["services"]) == {"a", "b"}
        stop.set()
        async with asyncio.timeout(60):
            await running
    assert not service.acting


@pytest.mark.parametrize("election", [None, ELECTION], ids=["alone", "elected"])
def test_it_creates_what_jobs_need_and_stops_when_asked(election: Election | None, tmp_path: Path) -> None:
    asyncio.run(life(tmp_path, election))
