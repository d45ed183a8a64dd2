"""What stands between Kubernetes (or a terminal) and torchrun. Never imports torch in its own process.

main       `finetune agent`: plan → preflight → wait for the master → torchrun → last words → exit code
preflight  a process of its own that looks for everything that would fail later, before the gang waits
waiting    for the master's TCP port
launch     a process of its own that is torchrun; leaves a `Launch` in the run directory
launched   what `launch` leaves
script     a program of the user's own instead of our trainer
callback   where such a program tells how far it is, as Hugging Face's KubeflowCallback does
watch      from torchrun's start to its end: stop requests, heartbeats, hangs
verdict    evidence → last words; pure
children   the process tree: reaping, and an end for all of it
stopping   requests to stop, as signals bring them
keep       the end of a failed attempt's log goes beside the artifact
serve      /metrics, /progress, /healthz
servers    how such a server ends
local      all agents of a job on one machine
home       where such runs keep what they know
"""
