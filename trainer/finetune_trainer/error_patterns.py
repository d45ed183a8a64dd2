"""What gloo, NCCL, torch and the allocators say, in lower case, when the cause is elsewhere or memory is short."""

LOST_PEER = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "connection was likely closed",
    "broken pipe",
    "timed out waiting",
    "socket timeout",
    "application timeout",
    "nccl communicator was aborted",
    "ncclremoteerror",
    "remote process exited",
    "connectfullmesh failed",
    "the client socket has",
    "failed to recv",
)
"""Another process of the gang has ended."""

NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc")
