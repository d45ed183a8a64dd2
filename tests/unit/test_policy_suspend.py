"""A job that is suspended, and resumed."""

from __future__ import annotations

from finetune_api.failures import Reason
from finetune_api.status import (
    Phase,
)
from finetune_operator.decide import decide
from tests.support.operator_objects import (
    NOW,
    child,
    failed_pod,
    job,
    seen,
    status,
)


def test_suspension_is_not_a_failure_and_resuming_is_free() -> None:
    view = job(status(Phase.Suspended, 2, counted=1))
    given = seen(view, children=(child(2, deleting=True),), pods=(failed_pod(0, Reason.Interrupted, attempt=2),))
    after = decide(given, NOW).status
    assert after.restarts is not None
    assert (after.attempt, after.restarts.counted, after.restarts.free, after.last_failure) == (3, 1, 1, None)
