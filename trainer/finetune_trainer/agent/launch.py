"""torchrun in a process of its own: `python -m finetune_trainer.agent.launch --plan FILE --run-dir DIR --node N`.

It uses torchrun with a static rendezvous and without restarts: all pods restart together in a new attempt. In
addition, each rank's output goes into `logs/<rank>.out` and `logs/<rank>.err` (global rank 0 is shown
as well), the way each rank ended goes into launch.json, and on one machine the store listens on loopback alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from finetune_api.continuing import STACKED
from finetune_api.plan import RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.children import die_with_parent
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.agent.script import program
from finetune_trainer.agent.waiting import is_loopback
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.prefetch import prefetch_weights

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.api import LogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

STARTUP_SECONDS = 30 * 60
"""Time for all nodes to join: the slowest may still be pulling its image or downloading the model."""

BEAT_SECONDS = 15
TAIL_CHARACTERS = 3000
TRACE_CHARACTERS = 16000
"""Characters of a rank's standard error, in which the cause may precede pages of C++ frames."""
SCRIPT_SHUTDOWN = 30
"""Seconds for the other ranks when a script's rank has failed, as torchrun gives them."""
BACKEND = "finetune-static"


def main(argv: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="finetune_trainer.agent.launch")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--program", default="finetune_trainer.train.main", help="module to run in each rank")
    options = parser.parse_args(argv)
    plan = RunPlan.model_validate_json(options.plan.read_bytes())
    trainer = [sys.executable, "-u", "-m", options.program]
    ours = [*trainer, "--plan", str(options.plan), "--run-dir", str(options.run_dir)]
    command = program(plan.spec.command) if plan.spec.command else ours
    if plan.spec.command is None:
        prefetch_weights(_weights(plan.spec))  # while torch is imported, here and in the ranks
    launch = launch_ranks(plan, node=options.node, run_dir=RunDir(options.run_dir), command=command)
    launch.write(options.run_dir)
    return 1 if launch.ranks or launch.error else 0


def _weights(spec: FineTuneJobSpec) -> str:
    """Where the weights most likely are that the ranks load."""
    whole = spec.continue_from if spec.method.type not in STACKED else None
    return whole or spec.model.uri


def launch_ranks(plan: RunPlan, *, node: int, run_dir: RunDir, command: list[str]) -> Launch:
    """Runs the command as every rank of this node until all have ended."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    # What it would say is in launch.json, and the agent says it in better words.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    rendezvous_handler_registry.register(BACKEND, _rendezvous)
    config = LaunchConfig(
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        nproc_per_node=plan.processes_per_node,
        run_id=rendezvous_of(plan),
        rdzv_backend=BACKEND,
        rdzv_endpoint=f"{plan.master_address}:{plan.master_port}",
        rdzv_configs={"rank": node, "timeout": STARTUP_SECONDS},
        max_restarts=0,
        local_addr=plan.master_address if is_loopback(plan.master_address) else None,
        logs_specs=_logs(run_dir, first_rank=node * plan.processes_per_node, alive=plan.spec.command is not None),
        log_line_prefix_template="rank ${rank}: ",
        # A rank that fails takes its neighbours with it; ours have nothing to save by then.
        shutdown_timeout=min(SCRIPT_SHUTDOWN, plan.grace_seconds) if plan.spec.command else 5,
    )
    try:
        launch_agent(config, command[0], command[1:])
    except ChildFailedError as error:
        return Launch(ranks=tuple(_end(rank, failure, run_dir) for rank, failure in sorted(error.failures.items())))
    except Exception as error:
        return Launch(error=f"{type(error).__name__}: {error}")
    return Launch()


def rendezvous_of(plan: RunPlan) -> str:
    """Of one run: a node that is slow, and finds the port open for a later turn of its ladder, does not join that."""
    return f"{plan.job.uid}-{plan.attempt}-{plan.turn or 0}"


def _end(rank: int, failure: ProcessFailure, run_dir: RunDir) -> RankEnd:
    return RankEnd(
        rank=rank,
        exit_code=failure.exitcode,
        time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        error=_error_text(Path(failure.error_file)),
        log_tail=_tail(run_dir.path / "logs" / f"{rank}.err"),
    )


def _error_text(path: Path) -> str:
    """The message of a file that `torch.distributed.elastic…record` writes, whose shape depends on the error."""
    try:
        message = json.loads(path.read_bytes())["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return str(message.get("message", message) if isinstance(message, dict) else message)[-TAIL_CHARACTERS:]


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-TRACE_CHARACTERS:]
    except OSError:
        return ""


def _logs(run_dir: RunDir, *, first_rank: int, alive: bool) -> LogsSpecs:
    """One pair of files a rank, without torchrun's five levels of folders. `alive`: beat for ranks that do not."""
    from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs

    folder = run_dir.path / "logs"

    class FlatLogs(LogsSpecs):  # type: ignore[misc]  # torch.distributed.elastic is untyped here
        def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
            folder.mkdir(parents=True, exist_ok=True)
            if alive:
                _beat_for(run_dir, range(first_rank, first_rank + len(envs)))
            ranks = {local: first_rank + local for local in envs}
            out = {local: str(folder / f"{rank}.out") for local, rank in ranks.items()}
            err = {local: str(folder / f"{rank}.err") for local, rank in ranks.items()}
            errors = {local: str(folder / f"{rank}.error.json") for local, rank in ranks.items()}
            for local, path in errors.items():
                Path(path).unlink(missing_ok=True)
                envs[local]["TORCHELASTIC_ERROR_FILE"] = path
            shown = {local: path for local, path in out.items() if ranks[local] == 0}
            shown_errors = {local: path for local, path in err.items() if ranks[local] == 0}
            return LogsDest(out, err, shown, shown_errors, errors)

        @property
        def root_log_dir(self) -> str:
            return str(folder)

    return FlatLogs()


def _beat_for(run_dir: RunDir, ranks: range) -> None:
    """Heartbeats of a script's ranks: torchrun ends with the first of them that does, so all live as long as we do."""

    def beat() -> None:
        while True:
            for rank in ranks:
                run_dir.beat(rank, "running", 0)
            time.sleep(BEAT_SECONDS)

    Thread(target=beat, name="beat", daemon=True).start()


def _rendezvous(parameters: Any) -> Any:
    """torch's static rendezvous; on loopback its store gets a listener that the outside cannot reach."""
    import socket
    from datetime import timedelta

    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exported where built with distributed
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import create_rdzv_handler

    handler = create_rdzv_handler(parameters)
    handler.get_backend = lambda: BACKEND
    if handler.rank == 0 and is_loopback(handler.master_addr):
        listener = socket.create_server((handler.master_addr, handler.master_port))
        handler._store = TCPStore(
            handler.master_addr,
            handler.master_port,
            handler.world_size,
            is_master=True,
            timeout=timedelta(seconds=STARTUP_SECONDS),
            multi_tenant=True,
            master_listen_fd=listener.detach(),
        )
    return handler


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a failed gang's nodes need not wait until torch is taken apart
