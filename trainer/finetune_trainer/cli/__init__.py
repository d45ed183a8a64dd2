"""`finetune`, installed as `kubectl-finetune` too: one file a command, and nothing heavy at import.

main    arguments and errors        text    failures, tables and numbers as text
run     a job on this machine       live    its progress, on terminals and in logs
validate, status, logs, report, verify, agent: as they say
"""
