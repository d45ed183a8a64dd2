"""The ladder of `method.type: auto`: start with a cheap method, and step up only on evidence.

    rungs       the methods of the ladder, and which of them are baselines
    rules       which rungs are planned for which data, as a table with a reason for each row
    ledger      the budget: reserve an upper estimate, settle the measured cost
    decision    whether a rung is better than the best so far: a paired test and the minimum gain
    climb       what to do next, given the rungs done so far: run a rung, or stop, and why
    race        the learning rates of a rung: successive halving from their own checkpoints
    derived     the manifest of a rung, and of the run that publishes the best one
    evidence    what the committed artifact of a rung shows, from its records
    remedies    guards.maxAttempts: which runs follow one that violates a guard, and their manifests
    story       the ladder as status, log and report show it

These are functions of frozen data, without torch; evidence also reads the store. The agent executes the rungs
(agent/rungs.py).
"""
