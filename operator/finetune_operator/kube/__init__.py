"""The API server: everything that knows how to reach it, and nothing that knows what a FineTuneJob is for.

connection    kubeconfig or service account             client       requests with typed errors, bounded retries
kopf_watch    the watch of FineTuneJobs, by kopf        reflector    list and watch of Jobs and pods
leader        which of several replicas acts            workqueue    which job to look at next
server_clock  the API server's time, by its answers     json_depth   JSON with too many levels
resources     the kinds that are read or written
"""
