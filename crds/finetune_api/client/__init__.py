"""A Python API for the FineTuneJobs of a cluster, which the `finetune` command uses too.

    from finetune_api.client import FineTuneJobs

    jobs = FineTuneJobs(namespace="team-a")
    jobs.submit("job.yaml")
    for job in jobs.watch("tickets"):
        print(job)

`AsyncFineTuneJobs` has the same methods as coroutines. Both run `kubectl`, which finds the cluster, logs in and follows
the kubeconfig's context, so that this package needs no Kubernetes library. Errors are `FinetuneError`s with a reason, a
message and a hint; a manifest that is not valid raises `ManifestError`, which lists every problem.

jobs      FineTuneJobs and AsyncFineTuneJobs
job       Job, Jobs, Event and Outcome: what their methods return
verbs     what each method asks and decides, independent of how kubectl is run
copies    manifests of jobs that are created again or cloned
kubectl   runs kubectl, in this thread or in an event loop
"""

from __future__ import annotations

from finetune_api.failures import FinetuneError
from finetune_api.manifest import ManifestError

from .job import Event, Job, Jobs, Outcome
from .jobs import AsyncFineTuneJobs, FineTuneJobs

__all__ = [
    "AsyncFineTuneJobs",
    "Event",
    "FineTuneJobs",
    "FinetuneError",
    "Job",
    "Jobs",
    "ManifestError",
    "Outcome",
]
