"""The operator: it watches FineTuneJobs, decides what each needs next, and writes that to the API server.

    watch → queue → observe → decide → apply

leader       which of several replicas acts
main         arguments and the life of the process      watch      kopf: events of the API server, and nothing else
service      the parts, wired together                  queue      which job to look at next
connection   kubeconfig or service account              client     requests with typed errors and bounded retries
cache        what the watches said, newest wins         views      raw objects to typed views
observe      all that a decision may use                decide     PURE: the ordered story, one policy a file
policies/    finish, suspend, failure, queueing, …      evidence   who failed first, and why
objects      the Job and the Service of an attempt      status     conditions and phases
apply        status first, then children, then events   events     what people read in `kubectl describe`
offers       what else the cluster has                  gangs/     ways to schedule a gang, one a file
holds        why a queue holds a Job                    refusals   why a Job has no pods
preparations why a pod does not run on its node         turns      which of these asks next
troubles     why a gang does not start                  avoidance  nodes that fail attempts
silence      pods of earlier attempts: who waits        reflect    list and watch of Jobs and pods
resources    the kinds that are read or written         decision   what a policy answers
progress     asks node 0 how far it is                  metrics    /metrics from the cache at scrape time
health       /healthz and /readyz

A new policy is one file and one line in `policies.STORY`. Nothing here imports torch.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("finetune-operator")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0"
