"""The contract that operator and trainer share.

names      labels, annotations, environment, ports, paths and metric names, each in one place
failures   failure classes, reasons, exit codes, FinetuneError, the last words of a pod
base       the frozen model and the rule that every part of a manifest is made of
uris       the URI schemes that models, data and outputs may use
durations  `10m`, `24h`, `7d`
spec       FineTuneJob.spec          status    FineTuneJob.status
manifest   YAML in, a typed job or readable problems out
plan       what one attempt's pods are told
schema     the CustomResourceDefinition, generated from the models; lint checks its structure

Nothing here imports torch, kopf or kubernetes.
"""
