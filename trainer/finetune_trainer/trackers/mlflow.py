"""MLflow, where MLFLOW_TRACKING_URI is set: any URI that MLflow knows, and its own variables for credentials.

A run is found again by the tag `finetune.uid`, so that all attempts of a job are one run of MLflow. Its description has
the manifest; the artifact stays where it is, and the tag `finetune.artifact` has its URI. Of the experiments, that in
MLFLOW_EXPERIMENT_NAME is used, and made if it does not exist.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .base import Ending, Kind, TrackedRun
from .points import Outcome, Point

EXPERIMENT = "finetune"
UID = "finetune.uid"
ATTEMPT = "finetune.attempt"

_MOST_METRICS = 1000
"""In one request: MLflow refuses more."""
_MOST_CHARACTERS = 5000
"""Of a tag, in MLflow's older stores."""
_STATUS = {Ending.failed: "FAILED", Ending.interrupted: "KILLED"}


class MLflow:
    """A run of MLflow, through its client: the fluent API keeps its state in globals of the process."""

    def __init__(self, run: TrackedRun, environ: Mapping[str, str]) -> None:
        self._run, self._environ = run, environ
        self._client: Any = None
        self._id = ""
        self._logged = -1
        """The last step that an earlier attempt has logged."""
        self._times: dict[int, int] = {}
        """Of the steps that are being logged, in milliseconds."""

    def start(self) -> str:
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # with the password that is in it
        from mlflow.tracking import MlflowClient

        uri = self._environ["MLFLOW_TRACKING_URI"]
        client = MlflowClient(tracking_uri=uri)
        name = self._environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        experiment = _experiment(client, name)
        same = f"tags.`{UID}` = '{self._run.job.uid}'"
        found = client.search_runs([experiment], filter_string=same, max_results=1)
        self._id = found[0].info.run_id if found else self._created(client, experiment)
        if found:
            history = client.get_metric_history(self._id, "train/loss")
            self._logged = max((metric.step for metric in history), default=-1)
            client.update_run(self._id, status="RUNNING")
        client.set_tag(self._id, ATTEMPT, str(self._run.attempt))
        self._client = client
        return f"experiment {name}, run {self._id}"

    def _created(self, client: Any, experiment: str) -> str:
        from mlflow.entities import Param

        run = self._run
        tags = {
            UID: run.job.uid,
            "finetune.job": f"{run.job.namespace}/{run.job.name}",
            "finetune.output": run.output,
            "mlflow.note.content": f"```yaml\n{_short(run.manifest)}```",
        }
        made = str(client.create_run(experiment, run_name=run.name, tags=tags).info.run_id)
        client.log_batch(made, params=[Param(name, str(value)) for name, value in run.settings.items()])
        return made

    def log(self, points: Sequence[Point]) -> None:
        """Called again with the same points, it sends the same times: to MLflow's databases that is the same value."""
        now = _now()
        new = [point for point in points if point.step > self._logged]
        self._send([(self._times.setdefault(point.step, now), point) for point in new])
        self._times.clear()

    def finish(self, outcome: Outcome) -> None:
        self._send([(_now(), Point(outcome.step, outcome.values))])
        for name, word in outcome.words.items():
            self._client.set_tag(self._id, f"finetune.{name.replace('/', '.')}", word[:_MOST_CHARACTERS])
        self._client.set_terminated(self._id, "FAILED" if outcome.words.get("refused") else "FINISHED")

    def leave(self, ending: Ending) -> None:
        self._client.set_terminated(self._id, _STATUS[ending])

    def _send(self, timed: Sequence[tuple[int, Point]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, at, point.step) for at, point in timed for name, value in point.values.items()]
        for start in range(0, len(metrics), _MOST_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + _MOST_METRICS])


def _now() -> int:
    """Milliseconds, as MLflow counts."""
    return int(time.time() * 1000)


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _short(manifest: str) -> str:
    most = _MOST_CHARACTERS - 100
    return manifest if len(manifest) <= most else f"{manifest[:most]}\n# cut; run.json in the artifact has all of it\n"


MLFLOW = Kind(
    title="MLflow",
    asked_by=lambda environ: "MLFLOW_TRACKING_URI" if environ.get("MLFLOW_TRACKING_URI") else "",
    open=MLflow,
    module="mlflow",
    package="mlflow-skinny",
)
