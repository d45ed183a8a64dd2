"""Chaos by a seed, on the real API server: two real replicas, each behind a network of its own, and puppet kubelets.

Watches lag, break and have to be listed anew, replicas freeze and lose their network, labels vanish, Jobs and pods are
deleted or copied, agents fall silent or lie. Whatever is done, these hold: no healthy attempt is ended, at most one
attempt of a job trains, what cannot go on says why, every job comes to its end with the restarts that it should have,
and writes and logs are bounded. The same in virtual time, and 200 times: tests/unit/test_operator_chaos.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from finetune_api import budget, names
from finetune_operator import cache_sync, reconciler
from finetune_operator import decide as decide_module
from finetune_operator.inquiries import progress_poller
from finetune_operator.policies import deadline, start
from tests.cluster.rig import Rig
from tests.cluster.rig.control_plane import FAKE_PODS_LABEL
from tests.integration.chaos import Chaos, Replica
from tests.integration.nodes import Nodes
from tests.integration.puppets import Agents
from tests.support.kube_client import Kube
from tests.support.operator_harness import lease_given_back
from tests.support.operator_rbac import allow

SEEDS = range(12)
AT_ONCE = 6
LINES, LINES_EACH_SECOND = 300, 10
"""Of both in the log."""

SOONER: list[tuple[Any, str, Any]] = [
    (progress_poller, "FIRST_LOOK", 0.3),
    (progress_poller, "INTERVAL", 0.5),
    (progress_poller, "LONGEST_INTERVAL", 1.0),
    (progress_poller, "NONSENSE_INTERVAL", 2.0),
    (deadline, "MARGIN", timedelta(seconds=1)),
    (decide_module, "LINGER", timedelta(seconds=1)),
    (cache_sync, "RESYNC_SECONDS", 4.0),
    (reconciler, "UNWATCHED", 1.0),
    (start, "pause_seconds", lambda *given, **named: min(1, budget.pause_seconds(*given, **named))),
]
"""What would take longer than the test: whoever is silent for two seconds could be ended for it."""


def play(rig: Rig, agents: Agents, seed: int) -> float:
    """The seconds that it took."""
    namespace = rig.create_namespace(f"chaos-{seed}", labels={FAKE_PODS_LABEL: "fake"})
    allow(rig, namespace)
    allow(rig, namespace, file="rbac-leader.yaml")
    with ExitStack() as stack:
        kube = stack.enter_context(closing(Kube(rig, namespace)))
        lease_given_back(kube)
        replicas = [stack.enter_context(closing(Replica(rig, kube, name, stack))) for name in "ab"]
        chaos = Chaos(kube, agents, replicas, seed)
        chaos.run()
        chaos.check()
    rig.delete_namespace(namespace)
    return chaos.seconds


class Lines(logging.Handler):
    """How many there are."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.levelno >= logging.INFO


@pytest.fixture(scope="module")
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("finetune_operator")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture(scope="module")
def played(
    control_plane: Rig, operator_kubeconfig: Path, lines: Lines, request: pytest.FixtureRequest
) -> Iterator[dict[int, Future[float]]]:
    """All seeds that were asked for, several at a time: each with a namespace, networks and replicas of its own."""
    agents, nodes = Agents(), Nodes(control_plane)
    tests = [item for item in request.session.items if isinstance(item, pytest.Function)]
    calls = [item.callspec.params for item in tests if item.module is request.module and hasattr(item, "callspec")]
    seeds = sorted({call["seed"] for call in calls if "seed" in call})
    with pytest.MonkeyPatch.context() as patch, nodes.there():
        for module, name, value in SOONER:
            patch.setattr(module, name, value)
        patch.setattr(names, "AGENT_PORT", agents.start())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield {seed: pool.submit(play, control_plane, agents, seed) for seed in seeds}
    agents.stop()


@pytest.mark.parametrize("seed", SEEDS)
def test_no_healthy_attempt_is_ended(played: dict[int, Future[float]], seed: int) -> None:
    played[seed].result()


def test_the_log_is_bounded(played: dict[int, Future[float]], lines: Lines) -> None:
    seconds = sum(future.result() for future in played.values())
    assert lines.count <= LINES * len(played) + LINES_EACH_SECOND * seconds
