"""/metrics for Prometheus, /progress for the operator, /healthz for people. Three answers to GET, nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore, Thread
from typing import ClassVar

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from finetune_api import names
from finetune_api.plan import ProgressReport, RunPlan
from finetune_trainer.agent.servers import end
from finetune_trainer.rundir import RunDir, TrainerReport

ALIVE_SECONDS = 300
"""A rank whose last heartbeat is older counts as gone."""

PHASES = ("preflight", "waiting", "loading", "evaluating", "training", "saving", "done", "failed")

_GAUGES: tuple[tuple[str, str, Callable[[TrainerReport], float | None]], ...] = (
    (names.TRAIN_STEP, "Optimizer steps done.", lambda r: r.progress.step),
    (names.TRAIN_TOTAL_STEPS, "Optimizer steps planned.", lambda r: r.progress.total_steps),
    (names.TRAIN_LOSS, "Training loss, nats per trained token.", lambda r: r.progress.loss),
    (names.TRAIN_EVAL_LOSS, "Validation loss, nats per trained token.", lambda r: r.progress.eval_loss),
    (names.TRAIN_LEARNING_RATE, "Learning rate of the last step.", lambda r: r.learning_rate),
    (names.TRAIN_GRAD_NORM, "Gradient norm of the last step, before clipping.", lambda r: r.gradient_norm),
    (names.TRAIN_TOKENS_PER_SECOND, "Tokens processed each second, all nodes.", lambda r: r.progress.tokens_per_second),
    (names.TRAIN_TRAINED_TOKENS, "Tokens that the loss was computed on so far.", lambda r: r.trained_tokens),
    (names.TRAIN_EPOCH, "Passes over the training rows.", lambda r: r.epoch),
    (names.TRAIN_LAST_STEP_TIMESTAMP, "Unix time of the last step.", lambda r: r.last_step_time),
    (names.TRAIN_LAST_CHECKPOINT_TIMESTAMP, "Unix time of the last checkpoint.", lambda r: r.last_checkpoint_time),
)


class RunCollector(Collector):
    """Reads the run directory at scrape time, so nothing is ever stale."""

    def __init__(self, *, plan: RunPlan, run_dir: RunDir, phase: Callable[[], str]) -> None:
        self.plan, self.run_dir, self.phase = plan, run_dir, phase

    def collect(self) -> Iterator[Metric]:
        keys = {"namespace": self.plan.job.namespace, "name": self.plan.job.name, "attempt": str(self.plan.attempt)}
        oldest = time.time() - ALIVE_SECONDS
        alive = sum(beat.time >= oldest for beat in self.run_dir.heartbeats().values())
        yield _gauge(names.AGENT_UP, "Ranks of this node with a recent heartbeat.", keys, alive)
        present = progress(self.plan, self.run_dir, self.phase()).phase
        family = GaugeMetricFamily(names.AGENT_PHASE, "1 for the present phase of this node.", labels=[*keys, "phase"])
        for phase in PHASES:
            family.add_metric([*keys.values(), phase], float(phase == present))
        yield family
        report = self.run_dir.report()
        if report is None:
            return
        for name, text, read in _GAUGES:
            if (value := read(report)) is not None:
                yield _gauge(name, text, keys, value)


def _gauge(name: str, text: str, keys: dict[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=list(keys))
    family.add_metric(list(keys.values()), value)
    return family


def progress(plan: RunPlan, run_dir: RunDir, phase: str) -> ProgressReport:
    """What rank 0 reported; before it could, and once it is gone, the agent's own phase."""
    report = run_dir.report()
    if report is None:
        return ProgressReport(attempt=plan.attempt, phase=phase)
    own = phase if phase in ("done", "failed") else report.phase
    return ProgressReport(
        attempt=plan.attempt,
        phase=own,
        progress=report.progress,
        plan=report.plan,
        evaluation=report.evaluation,
        artifact=report.artifact,
    )


@contextmanager
def serving(address: str, port: int, *, plan: RunPlan, run_dir: RunDir, phase: Callable[[], str]) -> Iterator[int]:
    """Answers in the background while the block runs; yields the port. OSError if the port is taken."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(plan=plan, run_dir=run_dir, phase=phase))

    class Answers(_Answers):
        pages: ClassVar[dict[str, Callable[[], tuple[str, bytes]]]] = {
            "/metrics": lambda: (CONTENT_TYPE_LATEST, generate_latest(registry)),
            "/progress": lambda: (
                "application/json",
                progress(plan, run_dir, phase()).model_dump_json(by_alias=True, exclude_none=True).encode(),
            ),
            "/healthz": lambda: ("text/plain; charset=utf-8", b"ok\n"),
        }

    server = _Server((address, port), Answers)
    thread = Thread(target=server.serve_forever, name="serve", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        end(server)


class _Server(ThreadingHTTPServer):
    """At most eight requests at a time: a flood waits in the kernel's queue instead of in our memory."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.places = BoundedSemaphore(8)
        super().__init__(address, handler)

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        self.places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()


class _Answers(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, Callable[[], tuple[str, bytes]]]] = {}
    timeout = 5
    server_version = "finetune-agent"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(404)
            return
        kind, body = page()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """A scrape every few seconds is nothing that a log should hold."""
