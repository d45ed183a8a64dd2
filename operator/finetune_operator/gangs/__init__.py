"""Gang schedulers, one file each. `pod.schedulerName` chooses one; a group object must be offered by the cluster
(see state.cluster_features).

    gang           what a gang scheduler is              native         Kubernetes' own PodGroup
    volcano        Volcano                               coscheduling   the plugin of scheduler-plugins
    yunikorn       Apache YuniKorn, without an object    kai            NVIDIA KAI Scheduler

The annotation of an attempt's Job says for which it was created. Without one, pods are scheduled one by one, and the
startup deadline releases the nodes of half a gang.
"""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec

from .coscheduling import COSCHEDULING
from .gang import DEFAULT_SCHEDULER, Gang, GroupObject, Members
from .kai import KAI
from .native import NATIVE
from .volcano import VOLCANO
from .yunikorn import YUNIKORN

GANGS = {gang.name: gang for gang in (NATIVE, VOLCANO, COSCHEDULING, YUNIKORN, KAI)}

__all__ = ["GANGS", "Gang", "GroupObject", "Members", "known_to"]


def known_to(spec: FineTuneJobSpec) -> Gang | None:
    """The gang scheduler that the job's scheduler is; None for one that we do not know."""
    scheduler = spec.pod.scheduler_name or DEFAULT_SCHEDULER
    return next((gang for gang in GANGS.values() if scheduler in gang.schedulers), None)
