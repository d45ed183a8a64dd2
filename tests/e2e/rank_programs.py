"""What a rank may do, as small real programs: each starts under torchrun with `--plan` and `--run-dir`.

python -m rank_programs (under the agent, by --program): BEHAVIOUR_<rank> in the environment says how it ends
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_trainer.agent.verdict import say
from finetune_trainer.rundir import RunDir, now


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan")
    parser.add_argument("--run-dir", type=Path)
    run_dir = RunDir(parser.parse_args().run_dir)
    rank = int(os.environ["RANK"])
    run_dir.beat(rank, "training", 1)
    print(f"rank {rank} speaks", flush=True)
    return BEHAVIOURS[os.environ.get(f"BEHAVIOUR_{rank}", "succeed")](run_dir, rank)


def succeed(run_dir: RunDir, rank: int) -> int:
    if rank == 0:
        run_dir.write_result(TerminationMessage(message="trained"))
    return ExitCode.OK


def raise_an_exception(_run_dir: RunDir, _rank: int) -> int:
    raise RuntimeError("the loss went for a walk")


def say_data_is_bad(run_dir: RunDir, rank: int) -> int:
    words = say(Reason.DataUnreadable, "row 7 is no JSON", time=now())
    run_dir.write_error(rank, words)
    return words.exit_code


def lose_a_peer(run_dir: RunDir, rank: int) -> int:
    """Rank 1 of node 1, which has at least begun."""
    while not (run_dir.path.parent / "node-1" / "heartbeat" / "1").exists():
        time.sleep(0.05)
    words = say(Reason.PeerLost, "connection closed by peer", time=now())
    run_dir.write_error(rank, words)
    return words.exit_code


def raise_recorded(_run_dir: RunDir, _rank: int) -> int:
    from torch.distributed.elastic.multiprocessing.errors import record

    def fail() -> None:
        raise RuntimeError("written by torchelastic")

    record(fail)()
    return 0


def kill_oneself(_run_dir: RunDir, _rank: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def train_until_stopped(run_dir: RunDir, rank: int) -> int:
    while not run_dir.stop_requested:
        time.sleep(0.05)
    words = say(Reason.Interrupted, "checkpoint of step 1 written", time=now())
    run_dir.write_error(rank, words)
    return words.exit_code


def never_stop(run_dir: RunDir, rank: int) -> int:
    """Silent once all ranks are here."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while len(run_dir.heartbeats()) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.05)
        run_dir.beat(rank, "training", 1)
    time.sleep(600)
    return 0


BEHAVIOURS = {
    function.__name__: function
    for function in (
        succeed, raise_an_exception, raise_recorded, say_data_is_bad, lose_a_peer, kill_oneself,
        train_until_stopped, never_stop,
    )
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
