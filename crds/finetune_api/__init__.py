"""The contract that operator and trainer share.

names      labels, annotations, environment, ports and paths, each in one place
reasons    names of failure classes, exit codes and reasons
classes    properties of each failure class and of its reasons, one record each
restarts   budgets of restarts, one record each
failures   all of these, FinetuneError, the termination message of a pod
base       base classes of the manifest: the frozen model, and the validation rule
uris       the URI schemes that models, data and outputs may use
durations  `10m`, `24h`, `7d`
spec       FineTuneJob.spec; its parts are data, methods, strategy and pod
status     FineTuneJob.status        job       the two together
measurements  both models on held-out rows, and the verdicts of the guards: status.evaluation
generation what models answer to held-out prompts; generated_text: the same in figures, for the status
verdicts   the words in which a result is judged; calibration: that of both models, and the scale of an adapter
evaluation how models are measured   guards    what keeps an artifact from being published
diagnostics  what is measured inside the model, layer by layer
regularization  what keeps a model from forgetting while it learns
vocabulary new tokens, or training of the embeddings of present ones
ladder     method.type auto: its settings and status     switching  several adapters on one base model
rung_pods  rungs of a ladder whose pods have nodes and resources of their own
continuing  what a job may start from, with continueFrom
results    an evaluation in as few bytes as it takes, for a termination message
fields     field types               rules     validation rules that types cannot express
listmaps   lists that are maps or sets, whose order does not matter
suggest    "did you mean" suggestions
accelerators  number of processes for a pod's devices
admin_policy  what an administrator allows jobs to ask for, and what their pods get by default
advice     warnings about valid manifests that are probably not intended
yaml_text  YAML of files that people write: read safely, and bounded
manifest   YAML in, a typed job or readable problems out
series     every metric of operator and agents, one record each
plan       the plan of one attempt, passed to its pods
pages      a small HTTP server that limits connections per client
logs       log lines as JSON, the same keys in operator and agent
sizes      limits on the total size of texts
progress_text  progress as text
client     a Python API of the jobs of a cluster, which the command uses too
text       sanitizing of untrusted text for status, log and terminal
sockets    listening on IPv4 and IPv6
budget     whether and how a failed attempt is restarted
schema     the CustomResourceDefinition, generated from the models; lint checks its structure
reference  docs/manifest.md and docs/metrics.md, from the models and records; reason_page: docs/reasons.md

This package does not import torch, kopf or kubernetes.
"""
