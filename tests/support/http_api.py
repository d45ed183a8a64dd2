"""An API server in memory, over HTTP: as much of it as the composed operator needs. It validates nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from finetune_api import names
from finetune_operator.kube.resources import EVENTS, FINETUNEJOBS, JOBS, LEASES, PODS, SERVICES, Raw, Resource

KINDS = {kind.plural: kind for kind in (FINETUNEJOBS, JOBS, PODS, SERVICES, EVENTS, LEASES)}
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace")
DISCOVERED = {
    "/apis/finetune.dev/v1alpha1": (FINETUNEJOBS, True),
    "/apis/apiextensions.k8s.io/v1": (CRDS, False),
    "/api/v1": (NAMESPACES, False),
}
"""What kopf looks for before it watches: the kind itself, CRDs and namespaces."""


class HttpApi:
    """Objects by kind and name, in one namespace."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Raw]] = {plural: {} for plural in KINDS}
        self._watches: dict[str, list[asyncio.Queue[Raw]]] = {plural: [] for plural in KINDS}
        self._version = 10

    def put(self, plural: str, raw: Raw) -> Raw:
        """Creates or replaces an object; watches see it."""
        self._version += 1
        kind, known = "MODIFIED" if raw["metadata"]["name"] in self.objects[plural] else "ADDED", raw["metadata"]
        meta = {"uid": f"uid-{self._version}", "creationTimestamp": "2026-01-02T03:04:05Z"} | known
        made = raw | {"metadata": meta | {"resourceVersion": str(self._version)}}
        self.objects[plural][meta["name"]] = made
        for watch in self._watches[plural]:
            watch.put_nowait({"type": kind, "object": made})
        return made

    @asynccontextmanager
    async def kubeconfig(self, folder: Path) -> AsyncIterator[Path]:
        """Serves until the block ends; a kubeconfig that names it."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            config = {
                "clusters": [{"name": "c", "cluster": {"server": f"http://{host}:{port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            path = folder / "kubeconfig"
            path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config"} | config))
            yield path
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if (discovered := self._discovery(request.path)) is not None:
            return web.json_response(discovered)
        if request.path.endswith("/selfsubjectaccessreviews"):
            return web.json_response({"status": {"allowed": False}})
        parts = request.path.strip("/").split("/")
        plural = next((part for part in parts if part in KINDS), None)
        if plural is None:
            return _not_found(request.path)
        name = next(iter(parts[parts.index(plural) + 1 :]), "")
        if request.method == "GET":
            return await self._read(request, plural, name)
        body: Any = await request.json()
        if parts[-1] == "status":
            body = self.objects[plural][name] | {"status": body["status"]}
        return web.json_response(self.put(plural, body), status=201 if request.method == "POST" else 200)

    async def _read(self, request: web.Request, plural: str, name: str) -> web.StreamResponse:
        if name:
            found = self.objects[plural].get(name)
            return web.json_response(found) if found else _not_found(name)
        if "watch" in request.query:
            return await self._watch(request, plural)
        kind, version = KINDS[plural], {"resourceVersion": str(self._version)}
        head = {"kind": f"{kind.kind}List", "apiVersion": kind.api_version, "metadata": version}
        return web.json_response(head | {"items": list(self.objects[plural].values())})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        """Until the client goes away: what is newer than the version asked for, and what comes."""
        response, queue = web.StreamResponse(), asyncio.Queue[Raw]()
        self._watches[plural].append(queue)
        for raw in self.objects[plural].values():
            if int(raw["metadata"]["resourceVersion"]) > int(request.query.get("resourceVersion", 0)):
                queue.put_nowait({"type": "ADDED", "object": raw})
        await response.prepare(request)
        while True:
            await response.write(json.dumps(await queue.get()).encode() + b"\n")

    def _discovery(self, path: str) -> Raw | None:
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [resource for resource, _ in DISCOVERED.values() if resource.group]
            return {"kind": "APIGroupList", "groups": [_group(resource) for resource in groups]}
        if path not in DISCOVERED:
            return None
        resource, namespaced = DISCOVERED[path]
        verbs = ["get", "list", "watch", "patch", "update"]
        served = {"name": resource.plural, "singularName": resource.kind.lower(), "namespaced": namespaced}
        return {
            "kind": "APIResourceList",
            "groupVersion": resource.api_version,
            "resources": [served | {"kind": resource.kind, "verbs": verbs}],
        }


def _group(resource: Resource) -> Raw:
    version = {"groupVersion": resource.api_version, "version": resource.version}
    return {"name": resource.group, "versions": [version], "preferredVersion": version}


def _not_found(what: str) -> web.Response:
    return web.json_response({"kind": "Status", "reason": "NotFound", "message": what, "code": 404}, status=404)


def finetune_job(name: str, spec: Raw) -> Raw:
    meta = {"namespace": "ml", "name": name, "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "spec": spec}
