"""Number of processes for a pod's devices, if `processesPerNode` is auto.

A resource named `…/gpu` counts whole GPUs: one process each. For slices of GPUs (MIG, `gpu.shared`), other accelerators
and devices of a resource claim the number is not known: two slices may belong to one GPU, and a claim may hold any
number of devices. A single slice gets one process; otherwise the user has to set the number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .sizes import KEY

WHOLE = "/gpu"
"""Suffix of the resource names of whole GPUs."""

OTHERS = r"/mig-|/gpu[.-]|^gpu[.]intel[.]com/|^habana[.]ai/|^google[.]com/tpu|^aws[.]amazon[.]com/neuron"
"""Pattern of the resource names of GPU slices and of other accelerators."""


def count(limits: Mapping[str, Any]) -> int:
    """Returns the number of processes for these limits, at least one. Raises ValueError for amounts that are not
    integers."""
    amounts = [int(str(amount)) for name, amount in limits.items() if name.endswith(WHOLE)]
    slices = [str(amount) for name, amount in limits.items() if not name.endswith(WHOLE) and re.search(OTHERS, name)]
    return max(1, sum(amounts) + sum(int(amount) for amount in slices if amount.isdecimal()))


def devices(limits: Mapping[str, Any]) -> dict[str, int]:
    """Returns the accelerators among these limits, by resource: whole GPUs, slices and others."""
    named = {name: str(amount) for name, amount in limits.items() if name.endswith(WHOLE) or re.search(OTHERS, name)}
    return {name: int(amount) for name, amount in named.items() if amount.isdecimal() and int(amount) > 0}


def unclear(spec: Mapping[str, Any]) -> bool:
    """Whether `processesPerNode: auto` cannot be resolved for a manifest's spec."""
    if spec.get("processesPerNode", "auto") != "auto":
        return False
    if (spec.get("pod") or {}).get("resourceClaims"):
        return True
    limits = (spec.get("resources") or {}).get("limits") or {}
    return any(re.search(OTHERS, name) and str(amount) != "1" for name, amount in limits.items())


# Longer names are refused by another rule; matching one of a megabyte would cost more than the API server grants.
CEL = (
    "(has(self.processesPerNode) && dyn(self.processesPerNode) != dyn('auto')) || "
    "((!has(self.pod) || !has(self.pod.resourceClaims) || self.pod.resourceClaims.size() == 0) && "
    "(!has(self.resources) || !has(self.resources.limits) || "
    f"self.resources.limits.all(name, name.size() > {KEY} || !name.matches('{OTHERS}') || "
    "(type(self.resources.limits[name]) == int ? self.resources.limits[name] == 1 : "
    "self.resources.limits[name] == '1'))))"
)

ASK = (
    "processesPerNode: auto counts whole GPUs (nvidia.com/gpu, amd.com/gpu). It cannot count the GPU slices, other "
    "accelerators or resourceClaims of this pod: set processesPerNode to a number"
)
