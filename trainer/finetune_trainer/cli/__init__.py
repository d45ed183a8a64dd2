"""`finetune`, installed as `kubectl-finetune` too: one file a command, and nothing heavy at import.

main    arguments and errors        text    failures, tables and numbers as text
run     a job on this machine       live    its progress, on terminals and in logs
plan    memory, time and cost       jobs    where a job is looked up

validate, status, logs, report, verify: as they say. `agent` is the room next door.
"""
