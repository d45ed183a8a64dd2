"""Ways to schedule a gang, one file each. `pod.schedulerName` chooses, and the cluster must offer it (see offers).

    native         Kubernetes' own PodGroup              volcano        by Volcano
    coscheduling   by the plugin of scheduler-plugins

An attempt's Job says which it was made for; its group belongs to it and goes with it. Without one, pods are scheduled
one by one, and the startup deadline gives the nodes of half a gang back.
"""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec

from .coscheduling import COSCHEDULING
from .gang import DEFAULT_SCHEDULER, Gang
from .native import NATIVE
from .volcano import VOLCANO

GANGS = {gang.name: gang for gang in (NATIVE, VOLCANO, COSCHEDULING)}

__all__ = ["GANGS", "Gang", "known_to"]


def known_to(spec: FineTuneJobSpec) -> Gang | None:
    """The way that the job's scheduler knows; None for a scheduler that we do not know."""
    scheduler = spec.pod.scheduler_name or DEFAULT_SCHEDULER
    return next((gang for gang in GANGS.values() if scheduler in gang.schedulers), None)
