"""Third-party kernels for a GPU, in place of the slower reference that is right everywhere.

    candidates   which could be used: a table over the device, the packages and the job
    attention    attention within the boundaries of packed documents, without a mask of all pairs
    loss         the head and its cross-entropy at once
    correctness  a candidate against the reference on this device, forwards and backwards
    timing       which of the two is faster on this device
    selected     the kernels that a run uses

None is trusted: one that raises, differs, or is not faster here is left out, and the run reports it and continues with
the reference.
"""
