"""Stores the end of a failed attempt's log, and the stack traces of a hang, next to the artifact before the pod ends.

Best effort, within seconds: an unreachable store must not keep the nodes busy, nor change the reported failure.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetune_api import names
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.plan import RunPlan

PATIENCE = 10.0
"""Seconds for all uploads of a node."""

_DUMP = re.compile(r"^Fatal Python error: Aborted$", re.MULTILINE)
"""Where faulthandler begins when the agent aborts a rank that hangs."""


def keep(
    plan: RunPlan, words: TerminationMessage, *, run_dir: Path, said: Sequence[str], environ: Mapping[str, str]
) -> str:
    """What became of it, in a line for the log; empty for an attempt that did not fail by itself."""
    if words.failure_class is None or words.reason is Reason.Interrupted or plan.spec.given_output is None:
        return ""
    problem: list[str] = []
    thread = threading.Thread(target=_put, args=(plan, words, run_dir, said, environ, problem), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        problem.append(f"the upload took more than {PATIENCE:.0f} s")
    if problem:
        return f"could not store the end of this log: {problem[0]}"
    return f"`finetune logs {plan.job.name} --attempt {plan.attempt}` will show the end of this log"


def _put(
    plan: RunPlan,
    words: TerminationMessage,
    run_dir: Path,
    said: Sequence[str],
    environ: Mapping[str, str],
    problem: list[str],
) -> None:
    from finetune_trainer.store import attempt_logs
    from finetune_trainer.store.opening import open_folder

    try:
        folder = open_folder(plan.spec.output.uri, prefix=names.PREFIX_OUTPUT, environ=environ)
        place = attempt_logs.place(plan.job.uid, plan.attempt)
        text = node_log(run_dir, said, limit=attempt_logs.LOG_BYTES)
        folder.put(f"{place}/{attempt_logs.log_name(words.node)}", text.encode())
        if words.reason is Reason.NoProgress:
            for rank, stacks in rank_stacks(run_dir).items():
                folder.put(f"{place}/{attempt_logs.stacks_name(rank)}", stacks.encode())
    except Exception as error:
        problem.append(str(error))


def node_log(run_dir: Path, said: Sequence[str], *, limit: int) -> str:
    """At most `limit` bytes: the agent's words, and the end of each rank's output, with equal shares."""
    parts = {"agent": "\n".join(said).encode()}
    for path in sorted((run_dir / "logs").glob("[0-9]*.*"), key=lambda p: (len(p.stem), p.name)):
        stream = {".out": "output", ".err": "errors"}.get(path.suffix)
        if stream is not None and (text := path.read_bytes()):
            parts[f"rank {path.stem}, {stream}"] = text
    share = limit // len(parts) - 100
    sections = (f"==> {name} <==\n{_end(text, share)}" for name, text in parts.items())
    return "\n".join(sections) + "\n"


def rank_stacks(run_dir: Path) -> dict[int, str]:
    """Of each rank that dumped its stacks when it was aborted."""
    found = {}
    for path in (run_dir / "logs").glob("[0-9]*.err"):
        text = path.read_text(errors="replace")
        if dumps := list(_DUMP.finditer(text)):
            found[int(path.stem)] = text[dumps[-1].start() :]
    return found


def _end(text: bytes, limit: int) -> str:
    if len(text) <= limit:
        return text.decode(errors="replace").rstrip("\n")
    return "[...]\n" + text[-limit:].partition(b"\n")[2].decode(errors="replace").rstrip("\n")
