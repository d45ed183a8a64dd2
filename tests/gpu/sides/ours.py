"""Ours: a whole run from a manifest, in one process, as torchrun starts it."""

from __future__ import annotations

from tests.gpu.sides.task import Task, Timed, versions
from tests.gpu.workshop import Drive


def side(task: Task) -> Timed:
    timed = Timed(task)
    drive = Drive(task.load, task.folder, task.device, task.steps, timed.step, compiled=task.compiled)
    drive.go()
    timed.losses, timed.trainable, timed.computed = drive.losses, drive.trainable, drive.computed
    timed.setting = "training.compile" if task.compiled else "defaults"
    timed.versions = versions("torch", "transformers", "peft")
    return timed
