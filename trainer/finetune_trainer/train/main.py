"""One rank of a run, as torchrun starts it: `python -m finetune_trainer.train.main --plan FILE --run-dir DIR`.

Whatever happens ends in a file for the agent (result.json, or errors/<rank>.json) and in the exit code of its class.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.plan import RunPlan
from finetune_trainer.error_patterns import LOST_PEER, NO_MEMORY
from finetune_trainer.rundir import RunDir, now

from .process_exit import exit_process


def main(argv: list[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    parser = argparse.ArgumentParser(prog="finetune_trainer.train.main")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it advertises another package
    # Ctrl-C reaches every process of a terminal; it is the agent that asks us to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run_dir, rank = RunDir(options.run_dir), int(environ.get("RANK", "0"))
    run_dir.beat(rank, "loading", 0)
    plan = RunPlan.model_validate_json(options.plan.read_bytes())
    try:
        from .run import run

        run(plan, run_dir, environ)
    except BaseException as error:
        failure = explain(error)
        if failure.reason is not Reason.Interrupted:
            traceback.print_exc()
        run_dir.write_error(rank, words(failure, rank=rank, step=_step(run_dir, rank)))
        return failure.exit_code
    return 0


def explain(error: BaseException) -> FinetuneError:
    """Any exception as a failure that has a class."""
    if isinstance(error, FinetuneError):
        return error
    text = f"{type(error).__name__}: {error}"
    lowered = text.lower()
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _any(NO_MEMORY, lowered):
        return FinetuneError(Reason.OutOfMemory, text[:600])
    if isinstance(error, RuntimeError | ConnectionError) and _any(LOST_PEER, lowered):
        return FinetuneError(Reason.PeerLost, f"another process of the gang is gone ({text[:300]})")
    where = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in where[-4:]]
    return FinetuneError(Reason.UnexpectedError, f"{text[:600]} at {' > '.join(lines)}")


def words(failure: FinetuneError, *, rank: int, step: int) -> TerminationMessage:
    return TerminationMessage(
        failure_class=failure.failure_class,
        reason=failure.reason,
        message=failure.message,
        hint=failure.hint,
        exit_code=failure.exit_code,
        rank=rank,
        time=now(),
        step=step,
    )


def _any(phrases: tuple[str, ...], text: str) -> bool:
    return any(phrase in text for phrase in phrases)


def _step(run_dir: RunDir, rank: int) -> int:
    beat = run_dir.heartbeats().get(rank)
    return beat.step if beat else 0


if __name__ == "__main__":
    exit_process(main())
