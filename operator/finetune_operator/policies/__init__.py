"""The policies, one file each, none of which imports another. `decide` lists them in order.

A policy is a pure function of what was observed and the time. None means: not its case.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from finetune_operator.decision import Decision
from finetune_operator.state.observe import Observed

from . import (
    admin,
    deadline,
    elastic,
    failure,
    finish,
    group_object,
    newer_version,
    next_rung,
    queueing,
    running,
    start,
    suspend,
)

Policy = Callable[[Observed, datetime], Decision | None]

STORY: tuple[Policy, ...] = (
    deadline.expired,
    finish.already,
    next_rung.reached,
    finish.succeeded,
    failure.invalid,
    suspend.suspended,
    deadline.overdue,
    queueing.held,
    elastic.admitted_in_part,
    failure.failed,
    queueing.admitted,
    elastic.short,
    deadline.not_started,
    deadline.silent,
    newer_version.by_its_spec,
    admin.violated,
    start.started,
    group_object.ungrouped,
    elastic.grown,
    running.running,
)
