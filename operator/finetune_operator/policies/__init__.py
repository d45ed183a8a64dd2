"""The story of a job, one policy a file: the first that has something to say decides.

A policy is a pure function of what was observed and the time. None means: not my case.
What keeps a gang that exists from running is in `waiting`, for `running` to tell.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from finetune_operator.decision import Decision
from finetune_operator.observe import Observed

from . import deadline, elastic, failure, finish, grouping, queueing, running, start, suspend

Policy = Callable[[Observed, datetime], Decision | None]

STORY: tuple[Policy, ...] = (
    deadline.expired,
    finish.already,
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
    start.started,
    grouping.ungrouped,
    elastic.grown,
    running.running,
)
