"""The page: well-formed, complete, escaped, and alone in the world."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
import yaml

from finetune_api import manifest as manifests
from finetune_api.plan import JobIdentity
from finetune_api.status import Evaluation, ResolvedPlan, SliceScores, Splits
from finetune_trainer.report.html import duration, manifest, render
from finetune_trainer.report.record import AttemptRecord, CurvePoint, Provenance, RunRecord, decode
from tests.unit.report_helpers import DIGEST, EVALUATION, record, scores, spec

EVIL = "<script>alert('x')</script>&\"<b>"


def parsed(page: str) -> ET.Element:
    """The page is XHTML in all but name, so any parser of XML judges whether it is well-formed."""
    return ET.fromstring(page.removeprefix("<!DOCTYPE html>"))


def text(element: ET.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def test_everything_that_was_measured_is_there() -> None:
    page = text(parsed(render(record())))
    for value in [
        "cardiology", "team", "lora on hf://org/tiny", "12fd25f7", DIGEST, "uid-1", "torch 2.13.0", "CPU",
        "62.3 %", "88.3 %", "+26.0 points", "1.187", "0.212", "0.912", "0.924", "books", "dvd", "music", "general text",
        "rank 8, alpha 16, all-linear", "ddp, 2 processes", "2e-4, cosine, warm-up 3 %", "40 of 40", "16 rows a step",
        "4.88 million", "3.63 % of 135 million", "18 min 43 s", "all steps done", "step 20, chosen by",
        "lost node 1", "20 – 40", "12 training rows were truncated.", "2026-11-24 20:37:01 UTC", "servable as",
    ]:  # fmt: skip
        assert value in page, value


def test_the_verdict_is_the_first_thing_after_the_name() -> None:
    page = parsed(render(record()))
    header = page.find("body/main/section/../header")
    assert header is not None
    verdict = header.find("div")
    assert verdict is not None
    assert verdict.get("class") == "verdict better"
    assert text(verdict).startswith("On the test rows the tuned model is better: accuracy 62.3 % → 88.3 %")


@pytest.mark.parametrize(
    ("tuned", "chip"),
    [(0.924, "▲ +0.012 ✗"), (0.9, "▼ −0.012 ✓"), (0.912, "= 0.000 ≈"), (0.91199, "= 0.000 ≈")],
)
def test_arrows_say_where_a_number_went(tuned: float, chip: str) -> None:
    evaluation = Evaluation(base=Splits(general=scores(3, bits=0.912)), tuned=Splits(general=scores(3, bits=tuned)))
    page = parsed(render(record(evaluation=evaluation)))
    row = next(r for r in page.iter("tr") if text(r).startswith("general text"))
    assert chip in text(row)


@pytest.mark.parametrize(("name", "style"), [("books", "better"), ("dvd", "same"), ("music", "worse")])
def test_changes_are_marked_good_or_bad_in_more_than_colour(name: str, style: str) -> None:
    row = next(r for r in parsed(render(record())).iter("tr") if text(r).startswith(name))
    chip = next(s for s in row.iter("span"))
    assert chip.get("class") == f"chip {style}"
    assert {"better": "✓", "same": "≈", "worse": "✗"}[style] in text(chip)
    assert chip.get("title")


def test_there_is_a_plot_for_each_curve() -> None:
    labels = [svg.get("aria-label", "").partition(":")[0] for svg in parsed(render(record())).iter("svg")]
    assert labels == ["Loss", "Loss", "Validation accuracy", "Learning rate", "Gradient norm", "Throughput"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = render(record())
    root = parsed(page)
    assert not {e.tag for e in root.iter()} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not [a for e in root.iter() for a in e.attrib if a in ("src", "href", "srcset", "action", "style")]
    assert not [a for e in root.iter() for a in e.attrib if a.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", page)


def evil() -> RunRecord:
    return record(
        job=JobIdentity(namespace=EVIL, name=EVIL, uid=EVIL),
        spec=spec(pod={"annotations": {"note": EVIL}}),
        plan=ResolvedPlan(method=EVIL, strategy=EVIL, precision=EVIL),
        evaluation=Evaluation(slices=(SliceScores(name=EVIL, base=scores(1.0), tuned=scores(0.5)),)),
        attempts=(AttemptRecord(attempt=1, outcome=EVIL, start_time=EVIL),),
        provenance=Provenance(
            base_model=EVIL, revision=EVIL, data={EVIL: EVIL}, versions={EVIL: EVIL}, hardware=EVIL, image=EVIL
        ),
        notes=(EVIL,),
        stop_reason=EVIL,
        servable=EVIL,
    )


def test_whatever_a_user_wrote_is_shown_and_not_run() -> None:
    page = render(evil())
    root = parsed(page)
    assert not list(root.iter("script"))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert") >= 15


@pytest.mark.parametrize(
    "changes",
    [
        {"evaluation": Evaluation()},
        {"curve": (), "validation": ()},
        {"curve": (CurvePoint(step=1, loss=None),), "validation": ()},
        {"curve": (CurvePoint(step=1, loss=float("nan"), gradient_norm=float("inf")),)},
        {"attempts": (), "notes": (), "provenance": Provenance(), "plan": ResolvedPlan()},
        {"evaluation": EVALUATION.model_copy(update={"base": Evaluation().base})},
    ],
)
def test_runs_that_lack_something_have_a_page_too(changes: dict[str, object]) -> None:
    page = text(parsed(render(record(**changes))))
    assert "cardiology" in page
    assert " nan" not in page
    assert "None" not in page


def test_the_manifest_can_be_applied_again() -> None:
    shown = manifest(record(job=JobIdentity(namespace="team", name="cardiology", uid="")))
    assert yaml.safe_load(shown)["spec"]["training"] == {"epochs": 2, "batchSize": 16}
    assert "retry" not in shown
    job = manifests.load(shown)
    assert job.spec == record().spec
    assert (job.metadata.namespace, job.metadata.name) == ("team", "cardiology")


def test_values_of_the_environment_are_hidden_everywhere() -> None:
    environment = [
        {"name": "TOKEN", "value": "CANARY"},
        {"name": "OTHER", "secretKeyRef": {"name": "s", "key": "k"}},
    ]
    run = record(spec=spec(pod={"env": environment}))
    assert "CANARY" not in render(run) + run.encode() + repr(run)
    assert "TOKEN" in render(run)
    assert run.spec.pod.env[1].secret_key_ref is not None


def test_the_record_is_the_same_after_a_round_trip() -> None:
    assert decode(record().encode()) == record()
    assert render(decode(record().encode())) == render(record())


def test_losses_that_are_no_numbers_are_null_in_the_record() -> None:
    run = record(curve=(CurvePoint(step=1, loss=float("nan")),))
    assert decode(run.encode()).curve == (CurvePoint(step=1),)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0.4 s"), (12.3, "12 s"), (59.96, "60 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (90061, "25 h 1 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words
