"""The kinds of objects that the operator reads or writes, and where the API server keeps them."""

from __future__ import annotations

from typing import Any, NamedTuple

from finetune_api import names

Key = tuple[str, str]
"""Namespace and name of a FineTuneJob: what the queue holds and what everything else is found by."""

Raw = dict[str, Any]
"""An object as the API server sends it."""


class Resource(NamedTuple):
    group: str
    """Empty for the core group."""
    version: str
    plural: str
    kind: str
    selector: str = ""
    """Label selector of the operator's own objects."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        """`/apis/batch/v1/namespaces/ml/jobs/cardiology-1`; without a namespace: of all namespaces."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root, f"namespaces/{namespace}" if namespace else "", self.plural, name, subresource]
        return "/".join(part for part in parts if part)


FINETUNEJOBS = Resource(names.GROUP, names.VERSION, names.PLURAL, names.KIND)
JOBS = Resource("batch", "v1", "jobs", "Job", names.LABEL_JOB)
PODS = Resource("", "v1", "pods", "Pod", names.LABEL_JOB)
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", "SelfSubjectAccessReview")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD_GROUP = "PodGroup"
"""Kind of the group objects of all ways to schedule gangs."""

CHILDREN = (JOBS, PODS)
WATCHED = (FINETUNEJOBS, *CHILDREN)
