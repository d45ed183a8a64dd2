"""The page: well-formed, complete, escaped, and alone in the world."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest
import yaml

from finetune_api import manifest as manifests
from finetune_api.calibration import Calibration, CalibrationScores, ScalePoint, ScaleSweep
from finetune_api.measurements import Evaluation, GuardResult, NegativeTransfer, Scores
from finetune_api.plan import JobIdentity
from finetune_api.status import ResolvedPlan
from finetune_api.verdicts import GuardVerdict
from finetune_trainer.methods.lora import Lora
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import duration, manifest, render
from finetune_trainer.report.record import (
    AttemptRecord,
    CurvePoint,
    Provenance,
    ReliabilityPoint,
    RunRecord,
    SliceAgainst,
    decode,
)
from finetune_trainer.store.sequence import HeldOut, Sequence, Task
from tests.support.full_report import full_record
from tests.support.small_report import DIGEST, EVALUATION, change, record, spec

MATRIX: tuple[tuple[float | None, ...], ...] = ((0.8, 0.3), (0.6, 0.7))
"""By accuracy, of two tasks in sequence."""


def in_sequence() -> RunRecord:
    def scores(accuracy: float | None) -> Scores | None:
        return None if accuracy is None else Scores(loss=1.0, accuracy=accuracy)

    test = HeldOut(uri="s3://corp/test.jsonl", format="completion", sequence_length=128)
    sequence = Sequence(
        tasks=tuple(Task(name=name, artifact=f"s3://corp/{name}", test=test) for name in ("invoices", "letters")),
        scores=tuple(tuple(map(scores, row)) for row in MATRIX),
        base=(None, scores(0.25)),
    )
    measured = EVALUATION.model_copy(update={"continual": sequence.judged()})
    return record(continual=sequence, evaluation=measured)


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
        "[+22.0, +30.0]", "a change of accuracy below 5.7 points would mostly go unseen",
        "rank 8, alpha 16, all-linear", "ddp, 2 processes", "2e-4, cosine, warm-up 3 %", "40 of 40", "16 rows per step",
        "4.88 million", "3.63 % of 135 million", "18 min 43 s", "all steps done", "step 20, best on",
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
    [(0.924, "▲ +0.012 ✗"), (0.9, "▼ −0.012 ✗"), (0.912, "= 0.000 ✗"), (0.91199, "= 0.000 ✗")],
)
def test_arrows_say_where_a_number_went(tuned: float, chip: str) -> None:
    measured = (change("general", 0.912, tuned, "worse", kind="general", metric="bitsPerByte"),)
    page = parsed(render(record(measurements=measured)))
    row = next(r for r in page.iter("tr") if text(r).startswith("general text"))
    assert text(list(row.iter("span"))[-1]) == chip


@pytest.mark.parametrize(("name", "style"), [("books", "better"), ("dvd", "same"), ("music", "worse")])
def test_changes_are_marked_good_or_bad_in_more_than_colour(name: str, style: str) -> None:
    row = next(r for r in parsed(render(record())).iter("tr") if text(r).startswith(name))
    chip = next(s for s in row.iter("span"))
    assert chip.get("class") == f"chip {style}"
    assert {"better": "✓", "same": "?", "worse": "✗"}[style] in text(chip)
    assert chip.get("title")


def test_there_is_a_plot_for_each_curve() -> None:
    labels = [svg.get("aria-label", "").partition(":")[0] for svg in parsed(render(record())).iter("svg")]
    changed = ["Change of points of accuracy"] * 2 + ["Change of bits per byte"] * 2
    assert labels == [*changed, "Loss", "Loss", "Validation accuracy", "Learning rate", "Gradient norm", "Throughput"]


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
        measurements=(change(EVIL, 0.5, 0.7, "better"),),
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
        {"evaluation": Evaluation(), "measurements": ()},
        {"measurements": ()},
        {"measurements": (change("test", 1.0, None, kind="test"), change("a", 1.0, 0.9, "inconclusive", half=None))},
        {"curve": (), "validation": ()},
        {"curve": (CurvePoint(step=1, loss=None),), "validation": ()},
        {"curve": (CurvePoint(step=1, loss=float("nan"), gradient_norm=float("inf")),)},
        {"attempts": (), "notes": (), "provenance": Provenance(), "plan": ResolvedPlan()},
        {"evaluation": Evaluation(data=EVALUATION.data[:1]), "measurements": ()},
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


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"rank": 64, "rsLora": True}, "rank 64, alpha 16, rsLoRA, all-linear"),
        ({"rank": 64}, "rank 64, alpha 128, all-linear"),
        ({"rank": 64, "rsLora": True, "alpha": 128}, "rank 64, alpha 128, rsLoRA, all-linear"),
    ],
)
def test_the_scale_of_an_adapter_is_the_one_that_trained(settings: dict[str, Any], shown: str) -> None:
    run = record(spec=spec(method={"type": "lora", "lora": settings}))
    assert shown in text(parsed(render(run)))
    low_rank = run.spec.method.low_rank
    assert low_rank is not None
    assert Lora(low_rank).alpha == low_rank.effective_alpha


def test_the_page_has_the_plan_that_ran_and_the_manifest_as_it_was_asked() -> None:
    """The model has 512 positions; the manifest asked for 1024."""
    asked = spec(data={"train": [{"uri": "s3://corp/train.jsonl"}], "sequenceLength": 1024})
    run = record(asked=asked)
    page = text(parsed(render(run)))
    assert "512 tokens, limited by the model, 1,024 requested" in page
    assert yaml.safe_load(manifest(run))["spec"]["data"]["sequenceLength"] == 1024
    assert decode(run.encode()) == run
    assert "configuration:" in model_card(run)
    assert "sequenceLength: 512" in model_card(run)


def test_values_of_the_environment_are_hidden_everywhere() -> None:
    environment = [
        {"name": "TOKEN", "value": "CANARY"},
        {"name": "OTHER", "secretKeyRef": {"name": "s", "key": "k"}},
    ]
    run = record(spec=spec(pod={"env": environment}), asked=spec(pod={"env": environment}))
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


def test_scales_and_calibration_are_drawn_and_said() -> None:
    scores = CalibrationScores(error=0.21, floor=0.04, brier=0.5, nll=0.9)
    calibration = Calibration(
        name="test", base=scores, tuned=scores.model_copy(update={"error": 0.05}), difference=-0.16, low=-0.2,
        high=-0.1, verdict="better", rows=400, temperature=1.7,
    )  # fmt: skip
    curve = tuple(ScalePoint(scale=at, gain=at, forgetting=at / 10) for at in (0.0, 0.5, 1.0))
    evaluation = EVALUATION.model_copy(
        update={"calibration": calibration, "scale": ScaleSweep(chosen=0.5, curve=curve)}
    )
    points = tuple(ReliabilityPoint(model="tuned", rows=20, confidence=c, accuracy=c) for c in (0.4, 0.9))
    page = render(record(evaluation=evaluation, reliability=points))
    for words in (
        "published at 0.5 of its trained scale",
        "0.2100",
        "A temperature of 1.7",
        "90 % at 0.9",
        "+0.05 at 0.5",
    ):
        assert words in page
    assert "Scale of the adapter" not in render(record())
    assert "Calibration" not in render(record())


def test_each_guard_is_a_row_with_bound_interval_verdict_and_rows_needed() -> None:
    page = parsed(render(full_record()))
    tables = [
        [[text(cell) for cell in row] for row in table.iter("tr")] for table in page.iter("table")
        if text(table).startswith("guard verdict")
    ]  # fmt: skip
    assert tables == [
        [
            ["guard", "verdict", "bound", "measured", "interval", "rows needed"],
            ["minGain", "passed", "at least 0.01", "+0.26", "[+0.22, +0.3]", ""],
            ["forgetting", "violated", "at most 0.05", "+0.21", "[+0.18, +0.24]", ""],
            ["slices", "inconclusive", "at most 0.05", "+0.04", "[−0.01, +0.09]", "12,000"],
            ["generation", "inconclusive", "at least 0.95", "not measured", "", ""],
        ]
    ]


@pytest.mark.parametrize(
    ("verdicts", "refused", "words"),
    [
        (("passed", "passed"), "", []),
        (("violated", "violated"), "", [
            "Published although it violates guards (minGain, slices): guards.onViolation is warn."
        ]),
        (("violated", "inconclusive"), "guards.minGain is violated", [
            "This artifact was kept back: guards.minGain is violated.", "Inconclusive guards: slices.",
        ]),
    ],
)  # fmt: skip
def test_guards_that_are_not_passed_follow_the_first_sentence(
    verdicts: tuple[GuardVerdict, GuardVerdict], refused: str, words: list[str]
) -> None:
    guards = tuple(
        GuardResult(name=name, bound=0.1, value=0.2, verdict=verdict)
        for name, verdict in zip(("minGain", "slices"), verdicts, strict=True)  # type: ignore[arg-type]
    )
    page = parsed(render(record(evaluation=EVALUATION.model_copy(update={"guards": guards}), refused=refused)))
    box = next(each for each in page.iter("div") if (each.get("class") or "").startswith("verdict"))
    told = [text(each) for each in box]
    assert told[0].startswith("On the test rows the tuned model is better")
    assert told[1 : 1 + len(words)] == words
    assert told[1 + len(words)].startswith("Of the slices")
    assert (box.get("class") == "verdict worse") is ("violated" in verdicts)


def test_names_with_dashes_keep_them_and_numbers_have_minus_signs() -> None:
    flag = NegativeTransfer(slice="a-1", reference="last-3", difference=-0.11, p_value=0.002)
    page = render(record(evaluation=EVALUATION.model_copy(update={"negative_transfer": (flag,)})))
    assert "Negative transfer on slice a-1: last-3 is better (difference −0.11)." in page


def test_answers_of_nothing_but_line_breaks_take_one_line() -> None:
    full = full_record()
    said = {"base": "\n" * 40, "tuned": "", "reference": "yes\n\n\n \n\nno", "prompt": "a\n\nb"}
    page = parsed(render(full.model_copy(update={"answers": (full.answers[0].model_copy(update=said),)})))
    table = next(each for each in page.iter("table") if each.get("class") == "answers")
    assert ["".join(cell.itertext()) for cell in list(table.iter("tr"))[1]] == [
        "a\n\nb", "yes\n(5 line breaks)\nno", "(40 characters of white space)", "(nothing)",
    ]  # fmt: skip


def test_negative_transfer_is_said_first_and_shown_with_every_comparison() -> None:
    flag = NegativeTransfer(slice="music", reference="cheap", difference=-0.11, p_value=0.002)
    against = tuple(
        SliceAgainst(
            slice="music", reference=name, metric="accuracy", tuned_value=0.51, reference_value=value,
            difference=0.51 - value, low=-0.2, high=-0.02, p_value=p_value, flagged=name == "cheap", rows=400,
        )
        for name, value, p_value in (("base", 0.5, 0.8), ("cheap", 0.62, 0.002))
    )  # fmt: skip
    judged = record(evaluation=EVALUATION.model_copy(update={"negative_transfer": (flag,)}), against=against)
    page, sentence = render(judged), "egative transfer on slice music: cheap is better (difference −0.11)"
    assert page.index(sentence) < page.index("What changed")
    assert "62.0 %" in page
    assert page.count(">negative transfer</span>") == 1
    assert f"n{sentence.replace('−', '-')}" in model_card(judged)
    assert "egative transfer" not in render(record())


def test_tasks_in_sequence_are_a_table_with_heads_for_rows_and_columns() -> None:
    """Shades are added to numbers, so nothing is told by colour alone."""
    page = parsed(render(in_sequence()))
    [table] = [each for each in page.iter("table") if each.get("class") == "heat"]
    assert text(table.find("caption")) == "accuracy after each task, on the test data of each task"  # type: ignore[arg-type]
    columns = [text(each) for each in table.iter("th") if each.get("scope") == "col"]
    rows = [text(each) for each in table.iter("th") if each.get("scope") == "row"]
    assert columns == ["after", "invoices", "letters"]
    assert rows == ["the original base model", "invoices", "letters"]
    cells = [text(each) for each in table.iter("td")]
    assert cells == ["–", "25.0 %", "80.0 %", "30.0 %", "60.0 %", "70.0 %"]
    shades = [each.get("style") for each in table.iter("td") if each.get("style")]
    assert shades[0] == "--shade:0%", "the worst"
    assert shades[1] == "--shade:100%", "the best"
    told = "2 tasks in sequence by accuracy: mean 0.65, backward transfer -0.2, forward transfer +0.05, forgetting 0.2"
    assert told in text(page)
    assert told in model_card(in_sequence())
    assert "Tasks in sequence" not in render(record())
