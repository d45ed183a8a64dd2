"""How each page in docs/tasks is run small: rows of real text for its URIs, and what differs from its manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support import preset_rows
from tests.support.documents import ROOT
from tests.support.preset_rows import Rows

MODEL = "tiny-model"
SHORT = {"maxSteps": 40, "batchSize": 8, "learningRate": 0.003, "evaluateEvery": 40}
POSITIONS = 400
"""Tokens of a row, which are bytes here: the model has 512 positions."""


@dataclass(frozen=True, kw_only=True)
class TaskRun:
    told: str
    """What the rows are, after "on"."""
    rows: Callable[[], Mapping[str, Rows]] = dict
    """By the URI of a file, of those that the manifests name."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of each manifest, by the path below `spec`; None: without it."""
    hub: Callable[[], Mapping[str, Rows]] = dict
    """A repository of the hub, and its rows."""
    files: Callable[[], Mapping[str, str]] = dict
    """Text files in the folder of the manifest, for a script."""
    progress: bool = False
    """Whether the lines of progress are shown as well."""
    stopped_at: int = 0
    """After this step it gets SIGTERM, and is then run again; 0: it is not stopped."""
    real: bool = False
    """With SmolLM2-135M-Instruct, in two minutes of CPU time, where the tiny model cannot learn the task."""
    alone: bool = False
    """In a network namespace without any interface but loopback."""


def _tickets(name: str) -> Rows:
    return preset_rows.stored(ROOT / "examples" / "tickets" / f"{name}.jsonl")


def _support_tickets() -> Mapping[str, Rows]:
    corp = "s3://corp/tickets"
    return {f"{corp}/train.jsonl": _tickets("train"), f"{corp}/test.jsonl": _tickets("test")}


def _support_bot() -> Mapping[str, Rows]:
    rows, corp = preset_rows.documentation(), "s3://corp/bot"
    return {
        f"{corp}/tickets-2026.jsonl": rows[:120],
        f"{corp}/house-style.jsonl": [{**row, "customer": "style"} for row in preset_rows.licences()[:16]],
        f"{corp}/test.jsonl": rows[-40:],
        f"{corp}/general.jsonl": preset_rows.english()[-30:],
    }


def _medical_summaries() -> Mapping[str, Rows]:
    rows, notes = preset_rows.medical(), "s3://hospital/notes"
    chapter = {letter: [row for row in rows if row["patient"][0] == letter] for letter in "CP"}
    others = [row for row in rows if row["patient"][0] not in "CP"]
    return {
        f"{notes}/train-0.parquet": others[:200],
        f"{notes}/test.parquet": others[1000:1060],
        f"{notes}/oncology.parquet": chapter["C"][:40],
        f"{notes}/paediatrics.parquet": chapter["P"][:40],
        f"{notes}/general.jsonl": preset_rows.english()[:30],
    }


def _programming_language() -> Mapping[str, Rows]:
    corp = "s3://corp"
    rows, known = (
        [{**row, "repository": f"part-{at // 4}"} for at, row in enumerate(each)]
        for each in (preset_rows.cython(), preset_rows.python())
    )
    return {
        f"{corp}/tinylang/files.jsonl": rows[:160],
        f"{corp}/tinylang/test.jsonl": rows[-40:],
        f"{corp}/python/test.jsonl": known[:80],
        f"{corp}/text/general.jsonl": preset_rows.english()[:30],
    }


def _low_resource_language() -> Mapping[str, Rows]:
    rows, hsb = preset_rows.upper_sorbian(), "s3://corp/hsb"
    return {
        f"{hsb}/books-1.txt.gz": rows[:40],
        f"{hsb}/news.parquet": rows[40:64],
        f"{hsb}/test.jsonl": rows[-30:],
        f"{hsb}/dialogue.jsonl": rows[-54:-30],
        "s3://corp/english/general.jsonl": preset_rows.english()[:30],
    }


def _tasks_in_sequence() -> Mapping[str, Rows]:
    words, corp = preset_rows.upper_sorbian(), "s3://corp"
    terms = [row for row in preset_rows.medical() if len(row["prompt"] + row["completion"]) < 300]
    return {
        f"{corp}/language/train.jsonl": words[:80],
        f"{corp}/language/test.jsonl": words[-30:],
        f"{corp}/summaries/train.jsonl": terms[:160],
        f"{corp}/summaries/test.jsonl": terms[1000:1040],
    }


def _your_data() -> Mapping[str, Rows]:
    rows, corp = _tickets("train"), "s3://corp"
    return {
        f"{corp}/tickets/2026-01.parquet": rows[:24],
        f"{corp}/house-style.jsonl": rows[-6:],
        f"{corp}/tickets/test.parquet": _tickets("test"),
    }


def _air_gapped() -> Mapping[str, Rows]:
    return {"s3://corp/train.jsonl": _tickets("train")[:40], "s3://corp/test.jsonl": _tickets("test")}


def _script() -> Mapping[str, str]:
    notes = "\n".join(row["text"] for row in preset_rows.english()[:24])
    return {"notes.txt": notes, "train.py": (ROOT / "examples" / "train.py").read_text()}


_COMMAND = ["python", "train.py", f"--model={MODEL}", "--text=notes.txt", "--output=out"]

RUNS = {
    "support-tickets": TaskRun(
        told="[the tickets of the example](../../examples/tickets/job.yaml)",
        rows=_support_tickets, changes={"data.slices": None}, real=True,
    ),
    "support-bot": TaskRun(
        told="120 questions about Python with paragraphs of its reference, and 16 about licences as house style",
        rows=_support_bot, changes={"data.sequenceLength": POSITIONS, "training": SHORT},
    ),
    "medical-summaries": TaskRun(
        told="200 groups of terms and their diagnosis in ICD-10-CM in place of notes and summaries; "
        "a patient is a category",
        rows=_medical_summaries, changes={"data.sequenceLength": POSITIONS, "training": SHORT},
    ),
    "programming-language": TaskRun(
        told="160 pieces of Cython code, four of which are a repository, and 80 of Python as the language that is "
        "known",
        rows=_programming_language,
        changes={"data.sequenceLength": POSITIONS, "training": SHORT},
    ),
    "low-resource-language": TaskRun(
        told="64 lists of names in Upper Sorbian",
        rows=_low_resource_language,
        changes={"data.sequenceLength": POSITIONS, "training": {**SHORT, "optimizer": "adamw8bit"}},
    ),
    "tasks-in-sequence": TaskRun(
        told="names in Upper Sorbian for the first task, and diagnoses of ICD-10-CM for the second",
        rows=_tasks_in_sequence, changes={"data.sequenceLength": POSITIONS, "training": SHORT},
    ),
    "your-data": TaskRun(
        told="tickets of the example as Parquet, on a stand-in for the hub, and as JSON lines",
        rows=_your_data, hub=lambda: {"datasets/org/name": _tickets("train")[24:54]},
        changes={"data.sequenceLength": 128, "training": {"epochs": 3, "batchSize": 8}}, real=True,
    ),
    "your-script": TaskRun(
        told="24 paragraphs of Python's reference, as two agents on one machine",
        files=_script, changes={"command": _COMMAND, "pod": None}, progress=True,
    ),
    "spot-instances": TaskRun(
        told="the tickets of the example on one machine; SIGTERM came after step 12, and then it was run again",
        rows=lambda: {"s3://corp/train.jsonl": _tickets("train")},
        changes={"nodes": 1, "data.sequenceLength": POSITIONS, "training": SHORT}, progress=True, stopped_at=12,
    ),
    "air-gapped": TaskRun(
        told="tickets of the example, in a network namespace that has only loopback: a request to any other address "
        "would have failed",
        rows=_air_gapped, changes={"data.sequenceLength": 128, "training": {"epochs": 3, "batchSize": 8}},
        real=True, alone=True,
    ),
}  # fmt: skip
