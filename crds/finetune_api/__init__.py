"""The contract that operator and trainer share.

names      labels, annotations, environment, ports, paths and metric names, each in one place
failures   failure classes, reasons, exit codes, FinetuneError, the last words of a pod
base       the frozen model and the rule that every part of a manifest is made of
uris       the URI schemes that models, data and outputs may use
durations  `10m`, `24h`, `7d`
spec       FineTuneJob.spec; its parts are data, methods, strategy and pod
status     FineTuneJob.status        job       the two together
fields     kinds of fields           rules     what types cannot say
manifest   YAML in, a typed job or readable problems out
plan       what one attempt's pods are told
budget     what may follow a failed attempt
schema     the CustomResourceDefinition, generated from the models; lint checks its structure
reference  docs/manifest.md, from the same models

Nothing here imports torch, kopf or kubernetes.
"""
