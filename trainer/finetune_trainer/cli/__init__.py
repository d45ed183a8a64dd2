"""The command `finetune`, also installed as `kubectl-finetune`: one module per command, with light imports.

main    arguments and errors        text    failures, tables and numbers as text
run     a job on this machine       live    its progress, on terminals and in logs
plan    memory, time and cost       jobs    finds jobs, locally or on a cluster
init    writes a manifest           conversion    reads configurations of other trainers
data    rows as the model will see them
examples    of each command, for its help
usage   suggestions for what was typed wrongly
shell   completion for shells, and the schema of a manifest for editors
outputs what commands print with -o json, as models; ladder_outputs: those of a ladder; checked: those of validate,
        verify and promote
analyze   its options: analysis measures before training (as text and JSON: analysis_text), against what tuning changed
workload  the rows of local files, as a plan needs them
continued  the adapter that a job continues from, as a plan needs it

lifecycle submit, stop, resume, retry, clone, delete: jobs of a cluster
artifacts commands that use an artifact     serving    what a server reads to serve one
chat      base and tuned model side by side     switching   adapters of several artifacts in one network
watch     follows a job               watch_view    what it shows

paths   relative paths              top     the running jobs of a cluster
ladder  what a ladder may cost on this machine      ladder_plan    a ladder as finetune plan shows it
remedy_plan    the runs that guards.maxAttempts allows, as finetune plan shows them

validate, status, logs, report, compare, promote, verify: one command each. The command `agent` is in the package
`agent`.
"""
