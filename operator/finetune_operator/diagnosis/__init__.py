"""Why something failed, or does not start. Pure functions of what was observed.

root_cause        which pod failed first, and why
startup_blockers  what keeps a gang from starting
node_avoidance    nodes on which attempts fail again and again
unreachable_pods  which pods of an earlier attempt are waited for
api_rejections    what a rejected request means: never, not yet, or the name is taken
"""
