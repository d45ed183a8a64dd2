"""Every metric is exported, documented and bounded as its record in `finetune_api.series` says: one walk over all."""

from __future__ import annotations

import json
import math
import re
from collections import Counter

import pytest
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from finetune_api.ladder import LadderStatus
from finetune_api.series import CLIMBING, JUDGED, SERIES, Scope, Series, Unit, of
from finetune_api.status import Progress
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import State
from finetune_operator.state.cache import Cache
from finetune_operator.state.pod_reports import MalformedReport, progress_report
from finetune_operator.state.status import finite
from finetune_trainer.rundir import TrainerReport
from tests.support import exported_series
from tests.support.documents import ROOT
from tests.support.operator_objects import SPEC, raw_job

PAGE = (ROOT / "docs" / "metrics.md").read_text()
MOST_OF_A_JOB = 40
"""Series: more would be a burden on somebody's Prometheus."""
GUARD = {"name": "minGain", "bound": 0.0, "value": 0.1, "verdict": "passed"}
SUFFIXES = {Unit.SECONDS: "_seconds", Unit.MOMENT: "_timestamp_seconds", Unit.BYTES: "_bytes", Unit.RATIO: "_ratio"}
IN_THE_RATIO = {"step", "total_steps", "percent"}
"""Fields of a job's progress that no series of the operator shows by themselves."""

each_series = pytest.mark.parametrize("series", SERIES, ids=lambda series: series.name)
each_field = pytest.mark.parametrize("name", Progress.model_fields)
each_number = pytest.mark.parametrize(
    "name", [name for name, field in Progress.model_fields.items() if "float" in str(field.annotation)]
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Metric]:
    """Each metric by its name, of operator and agent."""
    agent = exported_series.of_agent(tmp_path_factory.mktemp("run"))
    metrics = (*exported_series.of_operator(), *agent)
    return {f"{metric.name}_total" if metric.type == "counter" else metric.name: metric for metric in metrics}


def samples(metric: Metric, series: Series) -> list[Sample]:
    """Without what prometheus_client adds to a histogram or a counter."""
    own = {series.name, f"{series.name}_count"}
    return [sample for sample in metric.samples if sample.name in own]


def test_no_name_is_used_twice() -> None:
    names = [series.name for series in SERIES]
    assert len(names) == len(set(names))


@each_series
def test_its_name_tells_its_kind_and_unit(series: Series) -> None:
    assert re.fullmatch(r"finetune_[a-z_]+", series.name)
    assert series.name.endswith("_total") is (series.kind == "counter")
    assert series.name.endswith(SUFFIXES.get(series.unit, ""))


@each_series
def test_it_is_exported_with_its_labels_and_their_values(series: Series, exported: dict[str, Metric]) -> None:
    assert series.name in exported, "nobody exports it"
    found = samples(exported[series.name], series)
    assert found, "it has no value, whatever happens"
    of_each = Counter((sample.labels.get("namespace"), sample.labels.get("name")) for sample in found)
    assert max(of_each.values()) <= series.each or series.scope is Scope.OPERATOR
    for sample in found:
        assert set(sample.labels) == {*series.scope.labels, *series.labels}
        for label, values in series.labels.items():
            assert not values or sample.labels[label] in values


def test_nothing_else_is_exported(exported: dict[str, Metric]) -> None:
    assert set(exported) == {series.name for series in SERIES}


def test_a_job_and_a_pod_have_a_bounded_number_of_series() -> None:
    for scope in (Scope.JOB, Scope.AGENT):
        most = Counter[str]()
        for series in of(scope):
            most[series.period] += series.each
        always = most.pop("", 0)
        assert always + max(most.values(), default=0) <= MOST_OF_A_JOB


def test_no_job_has_series_of_two_periods(exported: dict[str, Metric]) -> None:
    jobs: dict[str, set[str]] = {}
    for series in of(Scope.JOB):
        for sample in samples(exported[series.name], series):
            jobs.setdefault(sample.labels["name"], set()).add(series.period)
    assert {period for found in jobs.values() for period in found} == {"", CLIMBING, JUDGED}
    assert all(len(found - {""}) <= 1 for found in jobs.values())


def test_a_ladder_shows_its_rung_and_the_larger_share_of_its_budget_until_it_stops() -> None:
    def shown(ladder: LadderStatus) -> list[tuple[str, tuple[str, ...], float]]:
        status = {"phase": "Running", "ladder": ladder.to_json(), "evaluation": {"guards": [GUARD]}}
        cache = Cache()
        cache.feed(FINETUNEJOBS, None, raw_job(status=status, spec=SPEC | {"method": {"type": "auto"}}))
        state = State(cache, WorkQueue(), exported_series.Ages())  # type: ignore[arg-type]
        found = [(of.name, labels[2:], value) for of, labels, value in state._of_jobs() if of.period]
        return sorted(found)

    rung, ratio = ("finetune_job_ladder_rung", ("lora",), 2), ("finetune_job_budget_spent_ratio", (), 0.5)
    assert shown(exported_series.CLIMBING) == [ratio, rung]
    unlimited = exported_series.CLIMBING.model_copy(update={"budget": None, "money_budget": None})
    assert shown(unlimited) == [rung]
    stopped = shown(exported_series.CLIMBING.model_copy(update={"stop_reason": "budget"}))
    assert {name for name, _, _ in stopped} == {f"finetune_job_guard_{what}" for what in ("value", "bound", "state")}


@each_series
def test_the_page_says_what_it_means_in_a_sentence(series: Series) -> None:
    assert re.fullmatch(r"\S.+\.", series.help)
    assert re.search(rf"^\| `{series.name}` \| {series.kind}.*\| {re.escape(series.text)} \|$", PAGE, re.MULTILINE)


@each_series
def test_the_field_that_it_shows_exists(series: Series) -> None:
    known = {*Progress.model_fields, "ratio"}
    if series.scope is Scope.AGENT:
        known |= set(TrainerReport.model_fields)
    assert series.shows in known | {""}


@each_field
def test_each_number_of_a_jobs_progress_is_a_series_of_the_operator(name: str) -> None:
    assert name in {series.shows for series in of(Scope.JOB)} | IN_THE_RATIO


@each_number
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_of_a_jobs_progress_that_is_not_finite_reaches_no_status(name: str, value: float) -> None:
    broken = exported_series.PROGRESS.model_copy(update={name: value})
    assert finite(broken) == exported_series.PROGRESS.model_copy(update={name: None})


@each_number
def test_a_number_of_a_pods_report_that_is_not_finite_is_refused(name: str) -> None:
    report = {"attempt": 1, "phase": "training", "progress": exported_series.PROGRESS.to_json()}
    text = json.dumps(report)
    value = json.dumps(getattr(exported_series.PROGRESS, name))
    alias = Progress.model_fields[name].alias or name
    read = progress_report(text.encode(), attempt=1, uid="u", nonce="").progress
    assert getattr(read, name) == getattr(exported_series.PROGRESS, name)
    for broken in ("NaN", "1e999"):
        changed = text.replace(f'"{alias}": {value}', f'"{alias}": {broken}')
        assert changed != text
        with pytest.raises(MalformedReport):
            progress_report(changed.encode(), attempt=1, uid="u", nonce="")


def test_every_number_of_the_progress_in_these_tests_is_told() -> None:
    assert all(value is not None for _, value in exported_series.PROGRESS)
