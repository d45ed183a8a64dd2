"""Fixtures on a real Kubernetes, for the integration and the cluster folder alike: one rig a session, whoever asks.

A folder's conftest.py makes them known with two lines:

    def pytest_configure(config):
        config.pluginmanager.import_plugin("tests.support.cluster_fixtures")

    control_plane         session   `Rig`: a real API server, etcd and controllers; nothing runs pods. Needs no root
    cluster               session   the same `Rig` with a node: pods run, DNS, Services, S3. Needs root
    namespace             function  a fresh namespace whose pods nobody touches: the test writes their status
    restricted_namespace  function  a fresh namespace (Pod Security `restricted`) whose pods run
    s3                    function  `S3`: endpoint, keys, `bucket()`, `store(bucket)`
    kueue                 session   `Kueue`: a real one beside the control plane, for namespaces that it manages
    helm, helm3           session   `Helm` without a cluster: what a chart renders with Helm 4, and with Helm 3
    promtool              function  nothing; promtool is there, for tests of rules
    operator_image        session   `Image`: the operator's, built from the Dockerfile; or a sentence why there is none
    alertmanager          function  the same for Alertmanager: its configuration in
    prometheus            function  a factory: `prometheus({"scrape_configs": [...]})` gives a real server to query

Programs are built before the first test (minutes, once), so no test's time limit counts it.
FINETUNE_TEST_CLUSTER=external with KUBECONFIG takes a cluster of yours instead; tests that stop components or read
the audit log are then skipped by name.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import S3, Alertmanager, Helm, Kueue, NotOursError, Prometheus, Rig, build, lifecycle, machine
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.cluster.rig.state import Paths
from tools import image_build

NEEDS = {  # fixture -> what the machine may lack for it, and what it builds
    "control_plane": (machine.missing_for_control_plane, build.CONTROL_PLANE),
    "cluster": (machine.missing_for_node, build.CONTROL_PLANE + build.NODE + build.S3),
    "s3": (machine.missing_for_s3, build.S3),
    "kueue": (machine.missing_for_kueue, build.KUEUE),
    "helm": (machine.missing_for_helm, build.HELM),
    "helm3": (machine.missing_for_helm3, build.HELM3),
    "prometheus": (machine.missing_for_monitoring, build.MONITORING),
    "alertmanager": (machine.missing_for_monitoring, build.MONITORING),
    "promtool": (machine.missing_for_monitoring, build.MONITORING),
}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds what the collected tests need, outside of any test's time limit."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    paths = Paths()
    for name, (lacking, programs) in NEEDS.items():
        if name in wanted and not lacking(paths) and build.missing(programs, paths):
            build.build(programs, paths, say=_say)
    if "operator_image" in wanted:
        _built_operator()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """A test that asks an external cluster for what only a rig of our own can do is skipped, and says so."""
    try:
        return (yield)
    except NotOursError as error:
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[object]:
    """The same for fixtures."""
    try:
        return (yield)
    except NotOursError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """A real API server, etcd and controller manager, on loopback; stopped with the session if the session started
    it."""
    paths = Paths()
    if os.environ.get("FINETUNE_TEST_CLUSTER") == "external":
        yield Rig.outside(Paths(state=tmp_path_factory.mktemp("rig")))
        return
    _skip_without("control_plane")
    rig = lifecycle.join(paths, say=_say)
    try:
        yield rig
    finally:
        lifecycle.leave(paths)


@pytest.fixture(scope="session")
def cluster(control_plane: Rig) -> Rig:
    """The same rig with a node, on which pods run."""
    if not control_plane.external:
        _skip_without("cluster")
        lifecycle.add_node(control_plane, say=_say)
    return control_plane


@pytest.fixture
def namespace(control_plane: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace whose pods are the test's to move: no scheduler and no kubelet touches them."""
    name = control_plane.create_namespace(_slug(request), labels={FAKE_PODS_LABEL: "fake"})
    yield name
    control_plane.delete_namespace(name)


@pytest.fixture
def restricted_namespace(cluster: Rig, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace under Pod Security's strictest level, on the node."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    name = cluster.create_namespace(_slug(request), labels=labels)
    yield name
    cluster.delete_namespace(name)


@pytest.fixture
def s3(control_plane: Rig) -> S3:
    """An S3 server. A test that also uses `cluster` names it first, so that pods reach the same endpoint."""
    if not control_plane.external:
        _skip_without("s3")
    return control_plane.s3


@pytest.fixture(scope="session")
def kueue(control_plane: Rig) -> Iterator[Kueue]:
    """A real Kueue. Its webhooks stand before Jobs of namespaces that it was told to manage, and before no others."""
    if control_plane.external:
        raise NotOursError("Kueue is started beside a rig of our own")
    _skip_without("kueue")
    kueue = Kueue.ensure(control_plane)
    yield kueue
    kueue.stop()


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """The real Helm, without a cluster."""
    _skip_without("helm")
    return Helm.at(tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def helm3(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm 3, without a cluster."""
    _skip_without("helm3")
    return Helm.at(tmp_path_factory.mktemp("helm3"), program="helm3")


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Prometheus]]:
    """Starts real Prometheus servers by their configuration, and stops them after the test."""
    _skip_without("prometheus")
    started: list[Prometheus] = []

    def start(config: dict[str, Any]) -> Prometheus:
        server = Prometheus.start(config, folder=tmp_path / f"prometheus-{len(started)}", paths=Paths())
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def alertmanager(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], Alertmanager]]:
    """Starts a real Alertmanager by its configuration, and stops it after the test."""
    _skip_without("alertmanager")
    started: list[Alertmanager] = []

    def start(config: dict[str, Any]) -> Alertmanager:
        started.append(Alertmanager.start(config, folder=tmp_path / f"alertmanager-{len(started)}", paths=Paths()))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def operator_image() -> image_build.Image | str:
    """The operator's image; or why it cannot be built on this machine."""
    return _built_operator()


@pytest.fixture
def promtool() -> None:
    """promtool is there: it checks rules and runs their tests, without a server."""
    _skip_without("promtool")


def _built_operator() -> image_build.Image | str:
    if lacking := image_build.missing():
        return "; ".join(lacking)
    try:
        return image_build.build("operator", say=_say)
    except image_build.UnreachableError as error:
        return str(error)


def _skip_without(fixture: str) -> None:
    lacking, _ = NEEDS[fixture]
    if missing := lacking(Paths()):
        pytest.skip(f"{fixture}: {'; '.join(missing)}")


def _slug(request: pytest.FixtureRequest) -> str:
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-")


def _say(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)
