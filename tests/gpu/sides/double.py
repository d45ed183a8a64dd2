"""In place of a rival in the rehearsal: it reads what a rival would read, and answers what a rival would answer."""

from __future__ import annotations

import math

from tests.gpu.arithmetic import parameters
from tests.gpu.sides.task import Task, Timed


def side(task: Task) -> Timed:
    timed = Timed(task)
    timed.step(0)
    for step, row in enumerate(task.filled()[: task.steps], 1):
        assert len(row) == task.load.row
        timed.losses.append(math.log(task.load.config["vocab_size"]))
        timed.step(step)
    timed.trainable = parameters(task.load.config)
    timed.setting, timed.versions = "a double", "none"
    return timed
