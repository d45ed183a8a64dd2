"""`finetune run FILE`: runs a job on this machine, as the operator does on a cluster, and shows its progress.

Failed attempts are restarted by the same rules (`finetune_api.budget`). The run's ID in the output folder is derived
from its spec, so an unchanged manifest resumes the run, and a changed one starts a new run.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_api import names
from finetune_api.budget import Enough, next_attempt, recent, written
from finetune_api.failures import ExitCode, FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.ladder import Price
from finetune_api.manifest import ManifestError
from finetune_api.plan import Publishes, Trial
from finetune_api.status import Condition, FailureClass, FineTuneJobStatus, LastFailure, Phase, Restarts
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.local import Gang, local_plan, run_uid
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.cli.ladder import foresee
from finetune_trainer.cli.live import View, view_of
from finetune_trainer.cli.plan import read_prices
from finetune_trainer.cli.text import (
    aligned,
    artifact_rows,
    evaluation_table,
    failure_block,
    guard_lines,
    ladder_text,
    problems_text,
)
from finetune_trainer.cli.validate import read_manifest
from finetune_trainer.planning.devices import THIS_MACHINE
from finetune_trainer.report.compare import compare
from finetune_trainer.rundir import TrainerReport, now
from finetune_trainer.store.locks import locked

POLL_SECONDS = 0.2
SAVE_SECONDS = 1.0
RETRY_SECONDS = 1.0

_AFTER_A_STOP = (Reason.Interrupted, Reason.PeerLost, Reason.PodFailed)
"""Reasons with which agents may end after a stop request. PodFailed: the agent had no signal handler yet."""


def run_file(file: str, *, home: Home, fresh: bool, prices: Path | None = None, gpu: str | None = None) -> int:
    """Runs the job in a manifest and returns the exit status. prices: a price table; gpu: which of its entries is this
    machine's."""
    price = read_prices(prices).of(gpu or THIS_MACHINE) if prices else None
    try:
        job = read_manifest(file)
    except ManifestError as error:
        print(problems_text(file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    with _alone(home, job.metadata.name):
        job, resumed = _prepare(job, home=home, fresh=fresh)
        if job.status.phase is Phase.Succeeded:
            print(f"{job.metadata.name} is already complete; use --fresh to start again\n\n{_outcome(job)}")
            return ExitCode.OK
        stop = Stop()
        stop.install()
        with view_of(job.metadata.name) as view:
            begins = "resuming" if resumed else "starting"
            view.say(f"{begins} run {job.metadata.uid}; logs in {home.run(job.metadata.name)}")
            if job.spec.method.is_auto:
                try:
                    run = _climbed(job, home=home, stop=stop, view=view, price=price)
                except ManifestError as error:
                    print(problems_text(file, error.problems), file=sys.stderr)
                    return ExitCode.CONFIG
            else:
                run = Run(job=job, home=home, stop=stop, view=view).to_the_end()
        return run.tell()


def _climbed(job: FineTuneJob, *, home: Home, stop: Stop, view: View, price: Price | None) -> Run:
    """A ladder, as the run that ended it."""

    logs = home

    def run_one(
        rung_job: FineTuneJob,
        *,
        rung: str | None = None,
        publishes: Publishes | None = None,
        trial: Trial | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> tuple[FineTuneJob, TerminationMessage]:
        where = home
        if rung is not None:
            where = Home(home.run(job.metadata.name) / "rungs" / rung)
            view.say(f"logs of the rung in {where.run(job.metadata.name)}")
        one = Run(
            job=rung_job,
            home=where,
            stop=stop,
            view=view,
            rung=rung,
            publishes=publishes,
            trial=trial,
            tick=tick,
            cache=home.cache,
        ).to_the_end()
        nonlocal logs
        assert one.words is not None
        logs = where
        if one.words.failure_class is not None:
            one.noted(one.words)
        return one.job, one.words

    ladder = LadderRun(
        job=job, foresee=lambda: foresee(job, home), run_one=run_one, say=view.say, save=home.save, price=price
    )  # fmt: skip
    ended, words = ladder.to_the_end()
    return Run(job=ended, home=home, stop=stop, view=view, words=words, logs=logs)


def _prepare(job: FineTuneJob, *, home: Home, fresh: bool) -> tuple[FineTuneJob, bool]:
    """Returns the job with its ID, and whether it resumes an earlier run with the same ID."""
    before = home.load(job.metadata.name)
    uid = run_uid(job)
    same = before is not None and before.metadata.uid.partition(".")[0] == uid
    if before is not None and same and not fresh:
        kept = before.status.model_copy(update={"restarts": None})
        if kept.phase is not Phase.Succeeded:
            kept = FineTuneJobStatus(
                attempt=kept.attempt, start_time=kept.start_time, micro_batch_tokens=kept.micro_batch_tokens,
                skipped_step=kept.skipped_step,
            )  # fmt: skip
        return job.model_copy(update={"metadata": before.metadata, "status": kept}), True
    if fresh:
        uid = f"{uid}.{int(time.time()):x}"  # its checkpoints must not be found
        if before is not None and before.status.artifact is not None:
            job = _with_overwrite(job)
    metadata = job.metadata.model_copy(update={"uid": uid, "creation_timestamp": now()})
    return job.model_copy(update={"metadata": metadata, "status": FineTuneJobStatus()}), False


def _with_overwrite(job: FineTuneJob) -> FineTuneJob:
    output = job.spec.output.model_copy(update={"overwrite": True})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"given_output": output})})


@contextmanager
def _alone(home: Home, name: str) -> Iterator[None]:
    """Allows one `finetune run` at a time per name: two would write into the same folders."""
    folder = home.run(name)
    with ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock", wait=False))
        except BlockingIOError as error:
            message = f"{name} is already running in {folder}"
            raise FinetuneError(Reason.InvalidSpec, message, "Wait until it ends, or use another name.") from error
        yield


@dataclass(kw_only=True)
class Run:
    """One `finetune run`, with all its attempts."""

    job: FineTuneJob
    home: Home
    stop: Stop
    view: View
    words: TerminationMessage | None = None
    rung: str | None = None
    """Of a ladder."""
    publishes: Publishes | None = None
    """The rung whose weights this run publishes."""
    trial: Trial | None = None
    """Of a rung with several learning rates."""
    tick: Callable[[], None] = lambda: None
    """Called while it runs, several times a second."""
    cache: Path | None = None
    """Default: the home's."""
    logs: Home | None = None
    """Where the logs of a failure are. Default: the home."""

    def to_the_end(self) -> Run:
        restarts, times, retry = Restarts(), tuple[str, ...](), self.job.spec.retry
        first = (self.job.status.attempt or 0) + 1
        while True:
            attempt = first + restarts.total
            self._status(
                phase=Phase.Starting, attempt=attempt, restarts=restarts,
                start_time=self.job.status.start_time or now(), nodes=self.job.spec.max_nodes,
            )  # fmt: skip
            self.words = words = self._attempt(attempt)
            if words.failure_class is None or self.stop.requested:
                return self
            moment = datetime.now(UTC)
            times = recent(times, restarts.counted, window=retry.window, now=moment)
            verdict = next_attempt(
                words.failure_class, restarts, max_restarts=retry.max_restarts, spent=len(times), window=retry.window,
                plan=words.plan or self.job.status.plan, micro_batch_tokens=self.job.status.micro_batch_tokens,
            )  # fmt: skip
            if isinstance(verdict, Enough):
                return self
            if verdict.restarts.counted > restarts.counted:
                times = (*times, written(moment))
            restarts, skips = verdict.restarts, self.job.spec.training.skip_bad_batch
            self._status(
                phase=Phase.Restarting, last_failure=_failure(words, attempt),
                micro_batch_tokens=verdict.micro_batch_tokens,
                skipped_step=words.step if skips and verdict.skips else self.job.status.skipped_step,
            )  # fmt: skip
            self.view.say(f"attempt {attempt} failed: {words.reason}: {words.message}")
            count = f"restart {len(times)} of {retry.max_restarts}"
            self.view.say(f"restarting ({verdict.change or count})")
            time.sleep(RETRY_SECONDS)

    def _attempt(self, attempt: int) -> TerminationMessage:
        plan = local_plan(
            self.job,
            uid=self.job.metadata.uid,
            attempt=attempt,
            rung=self.rung,
            publishes=self.publishes,
            trial=self.trial,
        )
        environ = {names.ENV_CACHE: str(self.cache or self.home.cache)} | dict(os.environ)
        gang = Gang(plan=plan, home=self.home, environ=environ)
        gang.start()
        told = forced = False
        saved_at = 0.0
        while (words := gang.poll()) is None:
            if self.stop.first_time_seen():
                self.view.say("saving a checkpoint and stopping; press Ctrl-C again to stop immediately")
                gang.stop()
            if self.stop.at_once and not forced:
                gang.kill()
                forced = True
            report = gang.run_dir(0).report()
            if report is not None:
                if not told:
                    self._status(phase=Phase.Running)
                    told = True
                self.view.show(report, ranks=_ranks(gang))
                if time.monotonic() - saved_at >= SAVE_SECONDS:
                    saved_at = time.monotonic()
                    self._report(report)
            self.tick()
            time.sleep(POLL_SECONDS)
        if (report := gang.run_dir(0).report()) is not None:
            self.view.show(report, ranks=_ranks(gang))
            self._report(report)
        return words

    def _report(self, report: TrainerReport) -> None:
        self._status(progress=report.progress, plan=report.plan, evaluation=report.evaluation)

    def _status(self, **changes: object) -> None:
        status = self.job.status.model_copy(update=changes)
        self.job = self.job.model_copy(update={"status": status})
        self.home.save(self.job)

    def tell(self) -> int:
        """Writes the final status, prints the result, and returns the exit status."""
        words = self.words
        assert words is not None
        attempt = self.job.status.attempt or 1
        if words.failure_class is None:
            self._finish(Phase.Succeeded, words)
            print(f"\n{_outcome(self.job)}")
            return ExitCode.OK
        if self.stop.requested and words.reason in _AFTER_A_STOP:
            self._status(phase=Phase.Suspended)
            print(f"{self.job.metadata.name}: stopped; run again to resume", file=sys.stderr)
            return ExitCode.INTERRUPTED
        self._finish(Phase.Failed, words)
        log = (self.logs or self.home).log(self.job.metadata.name, node=words.node, attempt=attempt)
        if words.candidate is not None or self.job.status.ladder is not None:
            print(f"\n{_outcome(self.job)}")
        print(
            f"\n{self.job.metadata.name} failed\n{failure_block(_failure(words, attempt), logs=str(log))}",
            file=sys.stderr,
        )
        return words.exit_code or ExitCode.INTERNAL

    def noted(self, words: TerminationMessage) -> None:
        """Writes a failure of a part of a ladder into the status."""
        self._status(last_failure=_failure(words, self.job.status.attempt or 1))

    def _finish(self, phase: Phase, words: TerminationMessage) -> None:
        kind = "Complete" if phase is Phase.Succeeded else "Failed"
        condition = Condition(
            type=kind, status="True", reason=str(words.reason or Reason.Succeeded), message=words.message,
            last_transition_time=now(),
        )  # fmt: skip
        known = {
            "plan": words.plan, "evaluation": words.evaluation, "artifact": words.artifact,
            "candidate": words.candidate,
        }  # fmt: skip
        failure = (
            _failure(words, self.job.status.attempt or 1) if phase is Phase.Failed else self.job.status.last_failure
        )
        self._status(
            phase=phase, conditions=(condition,), completion_time=now(), last_failure=failure,
            **{name: value for name, value in known.items() if value is not None},
        )  # fmt: skip


def _failure(words: TerminationMessage, attempt: int) -> LastFailure:
    return LastFailure(
        failure_class=words.failure_class or FailureClass.Internal, reason=str(words.reason or Reason.UnexpectedError),
        message=words.message, hint=words.hint, attempt=attempt, rank=words.rank, node=str(words.node),
        exit_code=words.exit_code, time=words.time or None,
    )  # fmt: skip


def _ranks(gang: Gang) -> str:
    """Returns `2 of 2`: the number of ranks that have sent a heartbeat."""
    seen = {rank for node in range(gang.plan.nodes) for rank in gang.run_dir(node).heartbeats()}
    return f"{len(seen)} of {gang.plan.world_size}"


def _outcome(job: FineTuneJob) -> str:
    parts = []
    if job.status.ladder is not None:
        parts.append(ladder_text(job.status.ladder))
    if (found := job.status.evaluation) is not None:
        parts += [scores] if (scores := evaluation_table(compare(found.data), found.generation)) else []
    if guards := guard_lines(job.status.evaluation):
        parts.append(guards)
    if job.status.artifact is not None:
        parts.append(aligned(artifact_rows(job.status.artifact)))
    if job.spec.command is not None:
        parts.append(f"{job.metadata.name}: the command exited with status 0 in every process")
    return "\n\n".join(parts)
