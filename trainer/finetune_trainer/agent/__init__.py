"""The agent of a training pod, between Kubernetes (or a terminal) and torchrun. It does not import torch itself.

main       `finetune agent`: plan → preflight → wait for the master → torchrun → termination message → exit code
preflight  a separate process that checks everything that would fail later, before the pods wait for each other
weights    checks that the model's weights are complete
waiting    waits for the master's TCP port
launch     a separate process that runs torchrun, and leaves a `Launch` in the run directory
launched   the result that `launch` leaves
script     custom scripts instead of the built-in trainer
rungs      method.type auto: runs the rungs of a ladder, and publishes the best
race       the learning rates of a rung, one leg after the other
folds      cross-fitting of a rung: its runs without a part of the training rows
climb      a ladder in pods, on node 0, which decides
lead       what node 0 announces to the other nodes of a ladder
follow     a ladder on the other nodes, which run what node 0 decides
turns      the records in the store by which they agree
remedies   guards.maxAttempts: trains again while a guard is violated
callback   receives progress from such scripts, as sent by Hugging Face's KubeflowCallback
watch      from torchrun's start to its end: stop requests, heartbeats, hangs
verdict    evidence → termination message; pure
children   the process tree: reaping and killing
stopping   stop requests by signal
keep       stores the end of a failed attempt's log next to the artifact
serve      /metrics, /progress, /healthz
servers    stopping such a server
local      runs all agents of a job on one machine
home       the files of local runs
"""
