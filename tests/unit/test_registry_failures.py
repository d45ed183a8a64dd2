"""Every class of failure and every budget is known wherever it has to be: one walk over `finetune_api.classes`."""

from __future__ import annotations

import os
import re

import pytest

from finetune_api import schema
from finetune_api.budget import Again, Enough, next_attempt
from finetune_api.classes import CLASSES, Echo, Reporter, default_reason
from finetune_api.failures import FailureClass, Reason, class_of, exit_code_of
from finetune_api.restarts import BUDGETS, COUNTED, FREE, Budget
from finetune_api.status import FineTuneJobStatus, ResolvedPlan, Restarts
from finetune_operator.diagnosis.root_cause import evidence_of
from finetune_trainer.agent.verdict import died
from finetune_trainer.cli.main import EPILOG
from finetune_trainer.cli.text import status_text
from tests.support.documents import ROOT
from tests.support.operator_objects import ended, pod
from tools import alerts

RUNBOOKS = (ROOT / "docs" / "runbooks.md").read_text()
REFERENCE = (ROOT / "docs" / "manifest.md").read_text()
OURS = range(80, 96)
"""Exit codes beyond sysexits.h, and below those that shells give."""
SYSEXITS = {getattr(os, name) for name in dir(os) if name.startswith("EX_")} - {os.EX_OK}

each_class = pytest.mark.parametrize("name", FailureClass)
each_budget = pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.field)


def test_each_class_has_its_record() -> None:
    assert list(CLASSES) == list(FailureClass)


def test_no_exit_code_or_reason_belongs_to_two_classes() -> None:
    codes = [traits.exit_code for traits in CLASSES.values()]
    reasons = [reason for traits in CLASSES.values() for reason in traits.causes]
    assert len(codes) == len(set(codes))
    assert len(reasons) == len(set(reasons))


@each_class
def test_its_exit_code_is_one_of_sysexits_or_of_ours(name: FailureClass) -> None:
    assert CLASSES[name].exit_code in SYSEXITS | {*OURS}


@each_class
def test_its_exit_code_is_explained_by_the_command(name: FailureClass) -> None:
    assert f"{CLASSES[name].exit_code} {CLASSES[name].meaning}" in " ".join(EPILOG.split())


@each_class
def test_its_default_reason_is_its_own_and_one_that_a_pod_can_know(name: FailureClass) -> None:
    traits = CLASSES[name]
    assert traits.causes[traits.default].reported_by is Reporter.AGENT
    assert exit_code_of(traits.default) == traits.exit_code
    assert default_reason(traits.exit_code) is traits.default


@each_class
def test_operator_and_agent_read_its_exit_code_as_its_default_reason(name: FailureClass) -> None:
    code, reason = CLASSES[name].exit_code, CLASSES[name].default
    testimony = evidence_of(pod(0, "Failed", ended=ended(code)))
    assert testimony is not None
    assert (testimony.failure.reason, testimony.failure.failure_class) == (reason, name)
    assert died("rank 0", code, time="", oom_kills=0).reason is reason


@each_class
def test_all_its_reasons_have_a_hint_that_is_a_sentence(name: FailureClass) -> None:
    for reason, cause in CLASSES[name].causes.items():
        assert re.fullmatch(r"[A-Z].+\.", cause.hint), reason


@each_class
def test_its_runbook_begins_with_what_its_record_says_and_names_its_reasons(name: FailureClass) -> None:
    section = RUNBOOKS.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert section, f"docs/runbooks.md has no section {name}"
    for reason, cause in CLASSES[name].causes.items():
        assert f"`{reason}`" in (RUNBOOKS if cause.reported_by is Reporter.COMMAND else section), reason


@each_class
def test_the_reference_has_a_row_for_each_of_its_reasons(name: FailureClass) -> None:
    traits = CLASSES[name]
    for reason, cause in traits.causes.items():
        rows = re.findall(rf"^\| {reason} \| {name} \| {traits.exit_code} \| (.+?) \|", REFERENCE, re.MULTILINE)
        paid = traits.budget.retried if traits.budget else "no"
        retried = "waits until startup deadline" if cause.waited_for else paid
        retried = "waits without a time limit" if cause.held else retried
        expected = [] if cause.reported_by is Reporter.COMMAND else [retried]
        assert rows == expected, reason


@each_class
def test_the_schema_has_its_name(name: FailureClass) -> None:
    assert f"\n                    - {name}\n" in schema.crd_yaml()


def test_the_page_of_scripts_names_the_statuses_that_they_may_end_with() -> None:
    page = (ROOT / "docs" / "scripts.md").read_text()
    ((codes, never),) = re.findall(
        r"^\| status ([\d, or]+) \|.*; ([\d, and]+) are never retried \|$", page, re.MULTILINE
    )
    by_script = {traits.exit_code: traits.retried for traits in CLASSES.values() if traits.by_script}
    assert {int(code) for code in re.findall(r"\d+", codes)} == set(by_script)
    assert {int(code) for code in re.findall(r"\d+", never)} == {
        code for code, retried in by_script.items() if not retried
    }


RULES = alerts.load()


def asked_by(alert: str) -> set[FailureClass]:
    """The classes whose failures an alert asks for by name."""
    expr = RULES[alert]["rule"]["expr"]
    classes = {word for text in re.findall(r'class=~?"([^"]+)"', expr) for word in text.split("|")}
    reasons = {word for text in re.findall(r'reason=~?"([^"]+)"', expr) for word in text.split("|")}
    return {FailureClass(each) for each in classes} | {class_of(Reason(each)) for each in reasons}


@each_class
def test_an_alert_fires_for_it_unless_its_restarts_are_free(name: FailureClass) -> None:
    traits = CLASSES[name]
    assert (traits.alert is None) is (traits.budget is FREE)
    if traits.alert is not None:
        assert traits.alert in RULES
        assert not asked_by(traits.alert) or name in asked_by(traits.alert)


@each_class
def test_only_what_ends_an_attempt_on_its_own_is_blamed_on_a_node(name: FailureClass) -> None:
    traits = CLASSES[name]
    assert not (traits.blames_node and (traits.echo is not Echo.NONE or traits.budget in (None, FREE)))


@each_class
def test_another_attempt_is_paid_by_its_budget(name: FailureClass) -> None:
    verdict = next_attempt(
        name, Restarts(), max_restarts=1, plan=ResolvedPlan(micro_batch_tokens=64), micro_batch_tokens=None
    )
    budget = CLASSES[name].budget
    if budget is None:
        assert verdict == Enough()
    else:
        assert isinstance(verdict, Again)
        assert {each.field: verdict.restarts.paid_by(each) for each in BUDGETS if verdict.restarts.paid_by(each)} == {
            budget.field: 1
        }


@each_budget
def test_the_status_counts_it_and_the_total_has_it(budget: Budget) -> None:
    assert set(Restarts.model_fields) == {each.field for each in BUDGETS}
    assert Restarts.model_validate({budget.field: 3}).total == 3


@each_budget
def test_the_command_names_its_restarts(budget: Budget) -> None:
    shown = status_text("a", FineTuneJobStatus(attempt=4, restarts=Restarts.model_validate({budget.field: 3})))
    assert f"3 {budget.told}" in shown


@each_budget
def test_it_ends_somewhere_unless_it_is_free(budget: Budget) -> None:
    assert budget.free or budget.halves or budget is COUNTED or budget.most is not None
    assert (budget.most is None) is not bool(budget.enough)
