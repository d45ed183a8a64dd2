"""What failed attempts leave in the output folder, for when their pods are gone.

.finetune/<uid>/attempts/<n>/node-<i>.log       the end of what a node's agent and ranks said
.finetune/<uid>/attempts/<n>/stacks-<rank>.txt  of a hang: where each thread of a rank was
"""

from __future__ import annotations

from finetune_trainer.store.folder import Folder

LOG_BYTES = 256 * 1024
"""Kept of a node's log."""


def place(uid: str, attempt: int) -> str:
    return f".finetune/{uid}/attempts/{attempt}"


def log_name(node: int) -> str:
    return f"node-{node}.log"


def stacks_name(rank: int) -> str:
    return f"stacks-{rank}.txt"


def kept(folder: Folder, *, uid: str, attempt: int, node: int | None = None) -> dict[str, str]:
    """Name → text of what is kept of an attempt, or of one node's log; stacks after logs."""
    wanted = [entry.path for entry in folder.list(place(uid, attempt))]
    if node is not None:
        wanted = [path for path in wanted if path.endswith(f"/{log_name(node)}")]
    wanted.sort(key=lambda path: (not path.endswith(".log"), len(path), path))
    return {path.rpartition("/")[2]: folder.read(path).decode(errors="replace") for path in wanted}
