"""Steps from one status to the next that several policies take. Pure.

restart   another attempt, or the end
size      how many pods an attempt has
gang      the gang scheduler of the next attempt
queue     a job that waits in a queue
results   what a run measured, and its guards
ladder    what a ladder decided, as events
blocked   a gang that does not start, and why
"""
