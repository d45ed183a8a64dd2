"""Operator and agent answer on IPv4 and on IPv6, whichever the cluster has."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from finetune_api import sockets
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.sockets import bound
from finetune_operator.health import serve
from finetune_operator.metrics import Counters
from finetune_trainer.agent.serve import serving
from finetune_trainer.rundir import RunDir
from tests.support.operator_objects import spec


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HOSTS = ["127.0.0.1", *(["[::1]"] if has_ipv6() else [])]


@pytest.mark.parametrize("host", HOSTS)
def test_the_operator_answers(host: str) -> None:
    async def play() -> str:
        runner = await serve(":0", registry=Counters().registry, healthy=str, ready=str)
        try:
            url = f"http://{host}:{runner.addresses[0][1]}/healthz"
            async with aiohttp.ClientSession() as session, session.get(url) as response:
                return await response.text()
        finally:
            await runner.cleanup()

    assert asyncio.run(play()) == "ok"


@pytest.mark.parametrize("host", HOSTS)
def test_the_agent_answers(host: str, tmp_path: Path) -> None:
    plan = RunPlan(job=JobIdentity(namespace="ml", name="a", uid="u"), spec=spec())
    with (
        serving("", 0, plan=plan, run_dir=RunDir(tmp_path), phase=lambda: "waiting") as port,
        urllib.request.urlopen(f"http://{host}:{port}/healthz", timeout=60) as answer,
    ):
        assert answer.read() == b"ok\n"


def test_a_machine_without_ipv6_is_listened_to_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_server

    def create(address: Any, **options: Any) -> socket.socket:
        if options.get("family") is socket.AF_INET6:
            raise OSError(99, "Cannot assign requested address")
        return real(address, **options)

    monkeypatch.setattr(sockets.socket, "create_server", create)
    with bound("", 0) as listener:
        assert listener.family is socket.AF_INET


def test_a_port_that_is_taken_is_an_error() -> None:
    with bound("", 0) as listener, pytest.raises(OSError, match="in use"):
        bound("", listener.getsockname()[1])
