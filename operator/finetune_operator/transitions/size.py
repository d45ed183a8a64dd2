"""How many pods an attempt has, and how many more a capacity probe has found nodes for."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.state.observe import Observed

KEPT = timedelta(seconds=180)
"""For how long an idle pod keeps its place."""


def size(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> int:
    """Pods of the attempt whose number is in the status."""
    return min(max(status.nodes or spec.max_nodes, spec.min_nodes), spec.max_nodes)


def size_after(seen: Observed, spec: FineTuneJobSpec, now: datetime) -> int:
    """Pods of the attempt that follows the present one."""
    return min(size(spec, seen.status) + len(places_found(seen, now)), spec.max_nodes)


def places_found(seen: Observed, now: datetime) -> list[datetime]:
    """When pods of the present attempt's probe got a node, each. A place that is not kept any more is none."""
    own = names.probe_of(seen.job.uid, seen.attempt)
    found = (pod.scheduled for pod in seen.probe_pods if pod.probe == own and not pod.deleting)
    return [at for at in found if at is not None and now - at < KEPT]
