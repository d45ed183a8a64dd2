"""An API server in memory that holds thousands of jobs, and the agents of their pods: for what the operator itself
costs, where a real control plane of that size would cost hours.

It lists page by page, watches, takes statuses, and validates nothing. All agents are one server on all addresses of the
loopback network: each pod has an address of its own there, and its training makes a step each second."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import yaml
from aiohttp import web

from finetune_api import names
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Raw, Resource
from tests.support.http_api import HttpApi

KINDS: dict[str, Resource] = {kind.plural: kind for kind in (FINETUNEJOBS, JOBS, PODS)}
STEPS = 100_000


class Cluster:
    """What it holds, by plural and (namespace, name), and how often it was asked for what."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[tuple[str, str], Raw]] = {plural: {} for plural in KINDS}
        self.requests: Counter[str] = Counter()
        self.polls = 0
        self._agents: dict[str, dict[str, str]] = {}
        self._watches: dict[str, list[asyncio.Queue[Raw]]] = {plural: [] for plural in KINDS}
        self._versions = itertools.count(1000)
        self._version = next(self._versions)
        self._began = time.monotonic()
        self._discovery = HttpApi()

    def add(self, plural: str, raw: Raw) -> None:
        """A pod after its Job."""
        meta = raw["metadata"]
        self._version = next(self._versions)
        self.objects[plural][meta["namespace"], meta["name"]] = raw | {
            "metadata": meta | {"resourceVersion": str(self._version)}
        }
        if plural == PODS.plural:
            job = self.objects[JOBS.plural][meta["namespace"], meta["ownerReferences"][0]["name"]]["metadata"]
            nonce = job["annotations"][names.ANNOTATION_AGENT].partition(".")[2]
            self._agents[raw["status"]["podIP"]] = {"uid": meta["labels"][names.LABEL_UID], "nonce": nonce}

    @asynccontextmanager
    async def served(self, folder: Path) -> AsyncIterator[Path]:
        """A kubeconfig that names it."""
        async with _listening(self._answer, "127.0.0.1", 0) as port, _listening(self._agent, "", names.AGENT_PORT):
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            path = folder / "kubeconfig"
            path.write_text(yaml.safe_dump(config))
            yield path

    async def _agent(self, request: web.Request) -> web.Response:
        """Node 0 of some job: its address says of which."""
        assert request.transport is not None
        self.polls += 1
        address = request.transport.get_extra_info("sockname")[0]
        step = int(time.monotonic() - self._began)
        report = {
            "attempt": 1,
            "phase": "training",
            **self._agents[address],
            "progress": {
                "step": step, "totalSteps": STEPS, "epoch": step / STEPS, "loss": 1.0 + 1 / (1 + step),
                "learningRate": 1e-4, "tokensPerSecond": 12345.6, "etaSeconds": STEPS - step, "gradNorm": 0.5,
            },
        }  # fmt: skip
        return _json(report)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        discovered = self._discovery._discovery(request.path)
        if discovered is not None:
            return _json(discovered)
        parts = request.path.strip("/").split("/")
        plural = next((part for part in parts if part in KINDS), "")
        self.requests[f"{request.method} {plural or parts[-1]}"] += 1
        if request.path.endswith("/selfsubjectaccessreviews"):
            return _json({"status": {"allowed": False}})
        if not plural:
            return _json({"kind": "Status", "reason": "NotFound", "code": 404}, status=404)
        if request.method == "GET" and parts[-1] != plural:
            return _json(self.objects[plural][parts[-3], parts[-1]])
        if request.method == "GET":
            return await self._read(request, plural)
        if parts[-1] != "status" or plural != FINETUNEJOBS.plural:
            raise AssertionError(f"{request.method} {request.path}: jobs that run or have ended need nothing else")
        return self._status(parts[parts.index("namespaces") + 1], parts[-2], orjson.loads(await request.read()))

    def _status(self, namespace: str, name: str, body: Raw) -> web.Response:
        self.add(FINETUNEJOBS.plural, self.objects[FINETUNEJOBS.plural][namespace, name] | {"status": body["status"]})
        made = self.objects[FINETUNEJOBS.plural][namespace, name]
        for watch in self._watches[FINETUNEJOBS.plural]:
            watch.put_nowait({"type": "MODIFIED", "object": made})
        return _json(made)

    async def _read(self, request: web.Request, plural: str) -> web.StreamResponse:
        if "watch" in request.query:
            return await self._watch(request, plural)
        objects, first = list(self.objects[plural].values()), int(request.query.get("continue") or 0)
        size = int(request.query.get("limit") or len(objects))
        more = {"continue": str(first + size)} if first + size < len(objects) else {}
        kind = KINDS[plural]
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version}
        meta = {"resourceVersion": str(self._version), **more}
        return _json({**head, "metadata": meta, "items": objects[first : first + size]})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response, queue = web.StreamResponse(), asyncio.Queue[Raw]()
        self._watches[plural].append(queue)
        await response.prepare(request)
        while True:
            await response.write(orjson.dumps(await queue.get()) + b"\n")


def _json(value: Any, *, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


@asynccontextmanager
async def _listening(answer: Any, host: str, port: int) -> AsyncIterator[int]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host or "0.0.0.0", port, backlog=1024)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def address(number: int) -> str:
    """Of the loopback network, another for each number."""
    return f"127.{1 + number // 65536}.{number // 256 % 256}.{number % 256}"


def filled(objects: Iterable[tuple[str, Raw]]) -> Cluster:
    cluster = Cluster()
    for plural, raw in objects:
        cluster.add(plural, raw)
    return cluster
