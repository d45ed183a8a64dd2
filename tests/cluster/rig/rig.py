"""`Rig`: what tests hold in their hands. It knows where things are and starts and stops single components; starting
and ending the whole is `lifecycle.py`."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from . import api, control_plane, node, pki
from .audit import AuditLog
from .process import Processes, run
from .s3 import S3, minio
from .state import NotOursError, Paths, RigError, State

Manifest = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rig:
    """A cluster for tests: our own (`state` and `processes` are there) or, `external`, the one that KUBECONFIG
    names."""

    paths: Paths
    kubeconfig: Path  # of an administrator
    state: State | None = None
    processes: Processes | None = None

    @staticmethod
    def own(paths: Paths, state: State) -> Rig:
        processes = Processes(state=paths.state)
        return Rig(paths=paths, kubeconfig=paths.kubeconfig("admin"), state=state, processes=processes)

    @staticmethod
    def outside(paths: Paths) -> Rig:
        """The cluster of FINETUNE_TEST_CLUSTER=external: nothing of it is started or stopped."""
        return Rig(paths=paths, kubeconfig=Path(os.environ["KUBECONFIG"]))

    @property
    def external(self) -> bool:
        return self.state is None

    @property
    def server(self) -> str:
        """The API server's address for programs on this machine."""
        if self.state:
            return control_plane.server(self.state)
        return self.kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")

    @property
    def has_node(self) -> bool:
        return self.external or self._own.pid("kubelet") is not None

    # kubectl

    def kubectl(
        self, *words: str | Path, stdin: str | None = None, check: bool = True, kubeconfig: Path | None = None
    ) -> str:
        """Runs kubectl as the administrator, or as the owner of `kubeconfig`; returns what it printed."""
        cache = () if self.external else ("--cache-dir", self.paths.state / "kubectl")
        where = ("--kubeconfig", kubeconfig or self.kubeconfig, *cache)
        return run(*self._kubectl(), *where, *words, stdin=stdin, check=check)

    def ask(self, method: str, path: str, body: Manifest | None = None) -> str:
        """The API server's answer to a request of an administrator. Costs a hundredth of what `kubectl` costs."""
        if self.state:
            where = {"server": self.server, "token": self.state.tokens["admin"]}
            return api.request(method, path, body, **where, authority=self.paths.pki / "ca.crt")
        command = {"GET": "get", "POST": "create", "DELETE": "delete"}[method]
        stdin = None if body is None else json.dumps(body)
        try:
            return self.kubectl(command, "--raw", path, *(() if stdin is None else ("-f", "-")), stdin=stdin)
        except RigError as error:
            raise api.ApiError(str(error), 404 if "(NotFound)" in str(error) else 0) from None

    def read(self, path: str, **query: str) -> Manifest:
        """The object, or the list with `items`, at a path of the API: what `get` gets, for tests that look often."""
        found: Manifest = json.loads(self.ask("GET", f"{path}?{urlencode(query)}" if query else path))
        return found

    def log(self, pod: str, namespace: str, **query: str) -> str:
        """What the pod has printed; nothing while its container does not run."""
        try:
            return self.ask("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log?{urlencode(query)}")
        except api.ApiError:
            return ""

    def get(self, *words: str) -> Manifest:
        """`kubectl get WORDS -o json`, parsed: an object, or a list with `items`."""
        found: Manifest = json.loads(self.kubectl("get", *words, "-o", "json"))
        return found

    def apply(self, manifests: Manifest | Sequence[Manifest] | Path, *, namespace: str | None = None) -> None:
        """Server-side apply of objects, or of a file or folder of them."""
        where = ("-n", namespace) if namespace else ()
        if isinstance(manifests, Path):
            self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", manifests)
            return
        items = [manifests] if isinstance(manifests, dict) else list(manifests)
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", stdin=text)

    def install_crd(self, file: Path) -> None:
        """Applies a file with a CustomResourceDefinition and returns when the API server serves it."""
        self.apply(file)
        self.wait_established("-f", str(file))

    def wait_established(self, *which: str) -> None:
        """`which` as kubectl names CustomResourceDefinitions: returns when the API server serves all of them."""

        def served() -> bool:
            # `kubectl wait` fails on a definition that has no conditions yet
            found = json.loads(self.kubectl("get", *which, "-o", "json"))
            conditions = [each.get("status", {}).get("conditions") or [] for each in found.get("items", [found])]
            return all(any((c["type"], c["status"]) == ("Established", "True") for c in own) for own in conditions)

        self.wait_until(served, what=f"the API server serves {' '.join(which)}")

    def wait_allowed(self, verb: str, resource: str, *, namespace: str, account: str) -> None:
        """Returns when a right that was given is in force, which it is some time after.

        `resource`: PLURAL.GROUP, served or not. `account`: NAMESPACE:NAME."""
        plural, _, group = resource.partition(".")
        asked = {"namespace": namespace, "verb": verb, "group": group, "resource": plural}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": f"system:serviceaccount:{account}", "resourceAttributes": asked},
        }

        def in_force() -> bool:
            answer = json.loads(self.ask("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review))
            return bool(answer["status"]["allowed"])

        self.wait_until(in_force, what=f"{account} may {verb} {resource}")

    # namespaces and users

    def create_namespace(self, prefix: str, *, labels: dict[str, str]) -> str:
        """A fresh namespace whose service account is there already, as pods need it."""
        name = f"{prefix[:50].rstrip('-')}-{secrets.token_hex(3)}"
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        self.ask("POST", "/api/v1/namespaces", made)
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts"

        def ready() -> bool:
            return any(account["metadata"]["name"] == "default" for account in self.read(accounts)["items"])

        self.wait_until(ready, what=f"the default service account of {name}")
        return name

    def delete_namespace(self, name: str) -> None:
        """Begins to delete it; controllers do the rest."""
        with _ignoring_absence():
            self.ask("DELETE", f"/api/v1/namespaces/{name}")

    def service_account_kubeconfig(self, namespace: str, name: str, *, server: str | None = None) -> Path:
        """Makes the namespace and the service account if need be and returns a kubeconfig with a token of a day.

        `server` replaces the API server's address, for instance by that of a proxy that makes faults.
        """
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}, account])
        token = self.kubectl("create", "token", name, "-n", namespace, "--duration=24h").strip()
        path = self.paths.kubeconfig(f"{namespace}-{name}-{secrets.token_hex(2)}")
        cluster = json.loads(self.kubectl("config", "view", "--minify", "--flatten", "-o", "json"))["clusters"][0]
        return pki.write_kubeconfig(
            path,
            server=server or self.server,
            authority=base64.b64decode(cluster["cluster"].get("certificate-authority-data", "")),
            user=f"{namespace}-{name}",
            token=token,
            namespace=namespace,
        )

    def import_image(self, archive: Path, *, repository: str) -> None:
        """Gives the node an image of an OCI archive: REPOSITORY:TAG, with the tag that the archive has."""
        self._own  # noqa: B018  (an external cluster's nodes are not ours)
        node.import_image(self.paths, archive, repository=repository)

    # one component

    def stop(self, component: str, *, kill: bool = False) -> None:
        """Stops one component by name (`etcd`, `apiserver`, `controller-manager`, `minio`, ...): SIGTERM, or
        SIGKILL."""
        self._own.program(component)  # says which there are, when the name is wrong
        self._own.stop(component, kill=kill)

    def start(self, component: str) -> None:
        """Starts a stopped component just as it ran before and returns when it answers."""
        self._own.start_again(component)
        self._revive(component)

    @contextlib.contextmanager
    def outage(self, component: str, *, kill: bool = False) -> Iterator[None]:
        """`with rig.outage("minio"): ...` The component is down inside the block and answers again after it."""
        self.stop(component, kill=kill)
        try:
            yield
        finally:
            self.start(component)

    @contextlib.contextmanager
    def flags(self, component: str, *flags: str) -> Iterator[None]:
        """`with rig.flags("apiserver", "--feature-gates=...")`: the component runs with these besides its own."""
        program = self._own.program(component)
        self.stop(component)
        self._own.start(dataclasses.replace(program, argv=(*program.argv, *flags)), wait=180)
        self._revive(component)
        try:
            yield
        finally:
            self.stop(component)
            self._own.start(program, wait=180)
            self._revive(component)

    def _revive(self, component: str) -> None:
        """A controller manager that starts while the API server is away for more than ten seconds gives up."""
        manager = "controller-manager"
        if component == "apiserver" and manager in self._own.known() and self._own.pid(manager) is None:
            self._own.start_again(manager)

    def pid(self, component: str) -> int | None:
        return self._own.pid(component)

    def log_tail(self, component: str, lines: int = 30) -> str:
        return self._own.log_tail(component, lines)

    # what else there is

    @property
    def s3(self) -> S3:
        """The S3 server, started if it does not run; of an external cluster, what FINETUNE_TEST_S3_* say."""
        if self.state is None:
            names = ("FINETUNE_TEST_S3_ENDPOINT", "FINETUNE_TEST_S3_KEY", "FINETUNE_TEST_S3_SECRET")
            if not all(os.environ.get(name) for name in names):
                raise NotOursError(f"an external cluster's S3 server is named by {', '.join(names)}")
            endpoint, key, secret = (os.environ[name] for name in names)
            return S3(endpoint=endpoint, key=key, secret=secret)
        address = pki.BRIDGE_ADDRESS if self.has_node else "127.0.0.1"
        program = minio(self.paths, self.state, address=address)
        if self._own.pid("minio") and self._own.program("minio").argv != program.argv:
            self._own.stop("minio")  # the node came up since: move to the address that pods can reach
        self._own.start(program, wait=180)
        return S3(
            endpoint=f"http://{address}:{self.state.ports['minio']}", key=self.state.s3_key, secret=self.state.s3_secret
        )

    @property
    def audit(self) -> AuditLog:
        """The API server's audit log."""
        self._own  # noqa: B018  (an external cluster's log is out of reach: say so)

        def poke(name: str) -> None:
            with _ignoring_absence():
                self.ask("GET", f"/api/v1/namespaces/{name}")

        return AuditLog(path=self.paths.audit_log, poke=poke)

    def wait_until(self, ready: Callable[[], bool], *, what: str, seconds: float = 180.0) -> None:
        """Polls until `ready()`; the failure says what did not happen."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise RigError(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.1)

    @property
    def _own(self) -> Processes:
        if self.processes is None:
            raise NotOursError("this is an external cluster: its components are not ours to stop, start or read")
        return self.processes

    def _kubectl(self) -> tuple[str, ...]:
        if (self.paths.bin / "kube").exists():
            return (str(self.paths.bin / "kube"), "kubectl")
        return (shutil.which("kubectl") or "kubectl",)


@contextlib.contextmanager
def _ignoring_absence() -> Iterator[None]:
    try:
        yield
    except api.ApiError as error:
        if error.code != 404:
            raise
