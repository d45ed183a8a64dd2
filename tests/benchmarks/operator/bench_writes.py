"""What one write costs the API server: ms of its CPU, for each way to make the writes of a FineTuneJob's life.

    python -m tests.benchmarks.operator.bench_writes [--writes 300] [--only status create ...]

The ways of a row take turns, some dozens of writes each, on one API server; no controller runs, nobody watches.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import itertools
import random
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.decision import Event
from finetune_operator.events import event_object
from finetune_operator.objects import attempt_job, service
from finetune_operator.state.observe import Defaults
from finetune_operator.state.parsing import view_job
from finetune_operator.state.views import JobView
from tests.cluster.rig import Rig, build, lifecycle
from tests.cluster.rig.state import Paths

from .api import MERGE, Api, Raw
from .sides import Bare, finetunejob
from .table import print_table
from .usage import cpu_seconds

CRD = Path(__file__).parents[3] / "crds" / "finetunejobs.finetune.dev.yaml"
APPLY, JSON_PATCH = "application/apply-patch+yaml", "application/json-patch+json"
MANAGER = f"fieldManager={names.FIELD_MANAGER}"
TURN = 30
"""Writes of one side before it is another's turn."""
AT_ONCE = 4
NOW = "2026-01-01T00:00:00Z"
SPEC = finetunejob("b")["spec"]

Write = Callable[[Raw], Awaitable[Raw]]
"""One write of the object, as the API server last answered it or as it is to be made; its answer."""


@dataclass
class Way:
    """One way to do it: what is written on, and how."""

    name: str
    write: Write
    objects: Iterator[Raw]
    made: list[Raw] = field(default_factory=list)


def statuses() -> Iterator[Raw]:
    """What the operator writes in a life without trouble: started, running, ended."""
    started = condition("Running", "False", "GangCreated", "Attempt 1 with 2 pods starts")
    running = condition("Running", "True", "GangRunning", "Attempt 1: all 2 pods run")
    finished = condition("Running", "False", "Finished", "All pods have ended")
    message = "Attempt 1 succeeded; node 0 reported no artifact"
    first = {"phase": "Pending", "observedGeneration": 1, "attempt": 1, "nodes": 2, "startTime": NOW}
    first |= {"restarts": {"counted": 0, "free": 0}, "conditions": [started]}
    second = {**first, "phase": "Running", "conditions": [running]}
    complete = condition("Complete", "True", "Succeeded", message)
    third = {**first, "phase": "Succeeded", "completionTime": NOW, "conditions": [finished, complete]}
    return itertools.cycle((first, second, third))


def condition(type: str, status: str, reason: str, message: str) -> Raw:
    told = {"type": type, "status": status, "reason": reason, "message": message}
    return {**told, "lastTransitionTime": NOW, "observedGeneration": 1}


def variant(group: str, *, rules: bool, spec: bool = True) -> Raw:
    """A copy of the CRD in another group, without its rules, or without anything said of spec."""
    crd: Raw = yaml.safe_load(CRD.read_text())
    crd["metadata"]["name"] = f"{names.PLURAL}.{group}"
    crd["spec"]["group"] = group
    crd["spec"]["names"] = {k: v for k, v in crd["spec"]["names"].items() if k not in ("shortNames", "categories")}
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    if not rules:
        _strip(schema)
    if not spec:
        schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return crd


def _strip(node: Any) -> None:
    if isinstance(node, dict):
        node.pop("x-kubernetes-validations", None)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _strip(child)


@dataclass
class Bench:
    api: Api
    namespace: str
    pid: int
    writes: int

    async def run(self, title: str, ways: Sequence[Way]) -> list[tuple[str, ...]]:
        """A line for each way: its name, ms of CPU and KB allocated a write, bytes of what the server answered."""
        spent: dict[str, float] = defaultdict(float)
        allocated: dict[str, float] = defaultdict(float)
        sizes: dict[str, int] = {}
        for way in ways:  # the first writes of a kind compile what its rules say
            await self._turn(way, 3)
        own = -await self._allocated() + await self._allocated()
        turns, order = -(-self.writes // TURN), random.Random(0)
        for _ in range(turns):
            for way in order.sample(ways, len(ways)):
                bytes_before, before = await self._allocated(), cpu_seconds(self.pid)
                sizes[way.name] = await self._turn(way, TURN)
                spent[way.name] += cpu_seconds(self.pid) - before
                allocated[way.name] += await self._allocated() - bytes_before - own
        count = turns * TURN
        return [
            (
                title,
                way.name,
                f"{1000 * spent[way.name] / count:.2f}",
                f"{allocated[way.name] / count / 1024:.0f}",
                str(sizes[way.name]),
            )
            for way in ways
        ]

    async def _allocated(self) -> float:
        """Bytes since the API server began: what its collector of garbage has to do follows from it."""
        async with self.api.session.get(f"{self.api.server}/metrics") as answer:
            text = await answer.text()
        line = next(line for line in text.splitlines() if line.startswith("go_memstats_alloc_bytes_total "))
        return float(line.split()[1])

    async def _turn(self, way: Way, count: int) -> int:
        gate, length = asyncio.Semaphore(AT_ONCE), 0

        async def one(raw: Raw) -> None:
            nonlocal length
            async with gate:
                length = len(str(await way.write(raw)))

        await asyncio.gather(*(one(next(way.objects)) for _ in range(count)))
        return length

    # what is written

    def path(self, group: str, plural: str, name: str = "", query: str = "") -> str:
        root = f"/apis/{group}" if "/" in group else f"/api/{group}"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "") + query

    def creates(
        self,
        name: str,
        group: str,
        plural: str,
        body: Callable[[str], Raw],
        *,
        apply: bool = False,
        query: str = MANAGER,
    ) -> Way:
        async def post(raw: Raw) -> Raw:
            return await self.api.call("POST", self.path(group, plural, query=f"?{query}"), raw)

        async def patch(raw: Raw) -> Raw:
            path = self.path(group, plural, raw["metadata"]["name"], f"?{query}&force=true")
            return await self.api.call("PATCH", path, raw, APPLY)

        unique = (f"b{secrets.token_hex(4)}" for _ in itertools.count())
        return Way(name, patch if apply else post, (body(each) for each in unique))

    def pod_life(self, name: str, job: Raw, *, less: Callable[[Raw], object] = len) -> Way:
        """All writes of one pod of a Job as controllers, scheduler and kubelet make them, as one."""
        template = copy.deepcopy(job["spec"]["template"])
        less(template)
        finalizer = "batch.kubernetes.io/job-tracking"

        async def live(holder: Raw) -> Raw:
            pod = holder["pod"]
            path = self.path("v1", "pods", pod["metadata"]["name"])
            made = await self.api.call("POST", self.path("v1", "pods"), pod)
            target = {"apiVersion": "v1", "kind": "Binding", "target": {"kind": "Node", "name": "fake"}}
            await self.api.call("POST", f"{path}/binding", {**target, "metadata": {"name": pod["metadata"]["name"]}})
            container = pod["spec"]["containers"][0]
            known = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
            running = {**known, "ready": True, "state": {"running": {"startedAt": NOW}}}
            ended = {"exitCode": 0, "reason": "Completed", "startedAt": NOW, "finishedAt": NOW}
            ready = [{"type": t, "status": "True", "lastTransitionTime": NOW} for t in ("Ready", "ContainersReady")]
            runs = {"phase": "Running", "podIP": "192.0.2.1", "conditions": ready, "containerStatuses": [running]}
            done = {
                "phase": "Succeeded",
                "containerStatuses": [{**known, "ready": False, "state": {"terminated": ended}}],
            }
            await self.api.call("PATCH", f"{path}/status?fieldManager=kubelet", {"status": runs}, MERGE)
            await self.api.call("PATCH", f"{path}/status?fieldManager=kubelet", {"status": done}, MERGE)
            gone = {"metadata": {"uid": made["metadata"]["uid"], "finalizers": None}}
            return await self.api.call("PATCH", f"{path}?fieldManager=controller", gone, MERGE)

        def pods() -> Iterator[Raw]:
            while True:
                meta = {**template.get("metadata", {}), "name": f"b{secrets.token_hex(4)}", "finalizers": [finalizer]}
                yield {"pod": {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}}

        return Way(name, live, pods())

    async def status_way(self, name: str, how: str, *, group: str = names.GROUP, more: Raw | None = None) -> Way:
        """Statuses in turn, onto jobs of its own, each written only by the one whose turn it is."""
        jobs = []
        for _ in range(TURN):
            body = custom(group, f"s{secrets.token_hex(4)}")
            made = await self.api.call("POST", self.path(f"{group}/{names.VERSION}", names.PLURAL), body)
            jobs.append({"raw": made, "next": statuses()})

        async def write(holder: Raw) -> Raw:
            status = {**next(holder["next"]), **(more or {})}
            holder["raw"] = await self._status(holder["raw"], status, how)
            return holder["raw"]

        return Way(name, write, itertools.cycle(jobs))

    async def _status(self, raw: Raw, status: Raw, how: str) -> Raw:
        meta = raw["metadata"]
        path = self.path(raw["apiVersion"], names.PLURAL, meta["name"], f"/status?{MANAGER}")
        which = {key: meta[key] for key in ("name", "namespace", "uid", "resourceVersion")}
        head = {"apiVersion": raw["apiVersion"], "kind": raw["kind"]}
        if how == "apply":
            return await self.api.call(
                "PATCH", f"{path}&force=true", {**head, "metadata": which, "status": status}, APPLY
            )
        if how == "merge patch":
            gone = dict.fromkeys(raw.get("status", {}).keys() - status.keys())
            held = {key: which[key] for key in ("uid", "resourceVersion")}
            return await self.api.call("PATCH", path, {"metadata": held, "status": {**gone, **status}}, MERGE)
        if how == "JSON patch":
            steps: Any = [
                {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
                {"op": "add", "path": "/status", "value": status},
            ]
            return await self.api.call("PATCH", path, steps, JSON_PATCH)
        if how == "PUT, no spec":
            return await self.api.call("PUT", path, {**head, "metadata": which, "spec": {}, "status": status})
        return await self.api.call("PUT", path, {**raw, "status": status})


def custom(group: str, name: str) -> Raw:
    meta = {"name": name}
    return {"apiVersion": f"{group}/{names.VERSION}", "kind": names.KIND, "metadata": meta, "spec": copy.deepcopy(SPEC)}


async def measure(rig: Rig, writes: int, only: Sequence[str]) -> None:
    namespace = rig.create_namespace("writes", labels={})
    groups = {"no rules": "norules.bench", "no schema of spec": "nospec.bench"}
    rig.install_crd(CRD)
    made = [variant(groups["no rules"], rules=False), variant(groups["no schema of spec"], rules=False, spec=False)]
    for crd in made:
        file = rig.paths.state / f"{crd['spec']['group']}.json"
        file.write_text(yaml.safe_dump(crd))
        rig.install_crd(file)
    pid = rig.pid("apiserver")
    assert pid is not None
    lines: list[tuple[str, ...]] = []
    with rig.outage("controller-manager"):
        async with Api.of(rig) as api:
            bench = Bench(api, namespace, pid, writes)
            before = cpu_seconds(pid)
            await asyncio.sleep(5)
            print(f"idle: {1000 * (cpu_seconds(pid) - before) / 5:.0f} ms a second\n", flush=True)
            for title, ways in rows(bench, groups).items():
                if not only or title in only:
                    lines += await bench.run(title, [await way() for way in ways])
                    print(*lines[-len(ways) :], sep="\n", flush=True)
            await api.call("DELETE", bench.path("batch/v1", "jobs", query="?propagationPolicy=Background"))
    print_table(("write", "way", "API server's CPU, ms", "KB allocated", "bytes answered"), lines)


def rows(bench: Bench, groups: dict[str, str]) -> dict[str, list[Callable[[], Awaitable[Way]]]]:
    view = _view(bench.namespace)
    spec = FineTuneJobSpec.model_validate(SPEC, strict=False)
    bare_service, bare_job = (body for _, body in Bare().manifests("b"))

    def job(name: str) -> Raw:
        return {**attempt_job(view, spec, attempt=1, defaults=Defaults(image="none")), **_named(view, name, spec)}

    async def ready(way: Way) -> Way:
        return way

    return {
        "status": [
            *(
                partial(bench.status_way, how, how)
                for how in ("apply", "merge patch", "JSON patch", "PUT", "PUT, no spec")
            ),
        ],
        "status, CRD": [
            *(partial(bench.status_way, f"apply, {what}", "apply", group=group) for what, group in groups.items()),
            *(
                partial(bench.status_way, f"merge patch, {what}", "merge patch", group=group)
                for what, group in groups.items()
            ),
        ],
        "job": [
            partial(ready, bench.creates("POST", "batch/v1", "jobs", job)),
            partial(ready, bench.creates("apply", "batch/v1", "jobs", job, apply=True)),
            partial(ready, bench.creates("POST, bare", "batch/v1", "jobs", lambda name: _renamed(bare_job, name))),
        ],
        "service": [
            partial(ready, bench.creates("POST", "v1", "services", lambda name: _renamed(service(view), name))),
            partial(
                ready, bench.creates("apply", "v1", "services", lambda name: _renamed(service(view), name), apply=True)
            ),
            partial(ready, bench.creates("POST, bare", "v1", "services", lambda name: _renamed(bare_service, name))),
        ],
        "finetunejob": [
            partial(
                ready,
                bench.creates(
                    f"POST, {what}", f"{group}/{names.VERSION}", names.PLURAL, lambda name, g=group: custom(g, name)
                ),
            )
            for what, group in {"as it is": names.GROUP, **groups}.items()
        ],
        "pod": [
            partial(ready, bench.pod_life("ours", job("b"))),
            partial(ready, bench.pod_life("without plan", job("b"), less=lambda t: t["metadata"].pop("annotations"))),
            partial(ready, bench.pod_life("without env", job("b"), less=lambda t: _container(t).pop("env"))),
            partial(ready, bench.pod_life("without volumes", job("b"), less=_no_volumes)),
            partial(ready, bench.pod_life("bare", bare_job)),
        ],
        "event": [
            partial(ready, bench.creates("POST", "v1", "events", lambda name: _event(view, name))),
        ],
    }


def _container(template: Raw) -> Raw:
    container: Raw = template["spec"]["containers"][0]
    return container


def _no_volumes(template: Raw) -> None:
    del template["spec"]["volumes"]
    del _container(template)["volumeMounts"]


def _named(view: JobView, name: str, spec: FineTuneJobSpec) -> Raw:
    made = attempt_job(view, spec, attempt=1, defaults=Defaults(image="none"))
    return {"metadata": {**made["metadata"], "name": name}}


def _renamed(body: Raw, name: str) -> Raw:
    return {**body, "metadata": {**body["metadata"], "name": name}}


def _event(view: JobView, name: str) -> Raw:
    event = Event(Reason.Succeeded, "Attempt 1 succeeded; node 0 reported no artifact")
    return _renamed(event_object(view, event, attempt=1, now=datetime.now(UTC)), name)


def _view(namespace: str) -> JobView:
    meta = {"namespace": namespace, "name": "b00001", "uid": "0" * 36, "resourceVersion": "1", "generation": 1}
    return view_job({"metadata": meta, "spec": SPEC})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--writes", type=int, default=300, help="of each way")
    parser.add_argument("--only", nargs="*", default=[], metavar="ROW")
    options = parser.parse_args()
    paths = Paths()
    rig = lifecycle.join(paths, say=build.say_on_stderr)
    try:
        asyncio.run(measure(rig, options.writes, options.only))
    finally:
        lifecycle.leave(paths)


if __name__ == "__main__":
    main()
