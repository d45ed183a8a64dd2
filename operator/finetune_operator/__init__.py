"""The operator: it watches FineTuneJobs, decides what each needs next, and writes that to the API server.

    watches → cache → queue → observe → decide → apply

main, service      arguments and the life of the process; the parts, composed
cache_sync         events of watches and lists bring the cache up to date
dispatch, workers  which jobs are put into the queue; who takes them from it
reconciler         one look at one job: inquire, observe, decide, apply
decide             PURE: the ordered story of a job
decision, objects  what a policy answers; the Job and the Service of an attempt
network_policy     the NetworkPolicy of a job, where it is asked for
apply, events      carry a decision out
metrics, health    /metrics, from the cache at scrape time; the server of /metrics, /healthz and /readyz
exposition         the text of /metrics, faster than the library writes it
health_checks      what makes it unhealthy or not ready
unexpected_errors  our own errors, kept to their job
logs               the log, as text or JSON

policies/          what happens to a job, one file for each policy: finish, suspend, failure, queueing, …
transitions/       steps of a status that several policies take: restart, size, queue, …
inquiries/         what is asked beyond the watches: events, Kueue's Workloads, live objects, progress
diagnosis/         why something failed or does not start
state/             what is known: views of objects, the cache, observations, statuses
gangs/             gang schedulers, one a file
kube/              the API server: requests, watches, leader election, the work queue

A new policy is one file and one line in `policies.STORY`. Nothing here imports torch.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("finetune-operator")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0"
