"""A hundred thousand changed reports: each is refused, or can be decided on, stored and shown."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import orjson
import pytest

from finetune_api.failures import Reason, TerminationMessage, class_of
from finetune_api.plan import ProgressReport
from finetune_api.status import FailureClass, Phase
from finetune_api.text import printable
from finetune_operator.decide import decide
from finetune_operator.state.pod_reports import (
    LARGEST,
    MalformedReport,
    progress_report,
    termination_message,
)
from tests.support.operator_objects import NOW, child, ended, job, pod, seen, status
from tests.support.pod_report_samples import CANARY, GOOD, REPORT

HARMLESS = (
    "0",
    "1",
    "12",
    "0.25",
    "null",
    '"a"',
    '"lora"',
    '"x y"',
    '"2026-05-06T07:08:09Z"',
    "[]",
    "{}",
    "1e-3",
    "2e9",
)
ODD = (
    "-1", str(2**31), str(2**53), str(2**53 + 1), str(2**63), str(2**64), "1" + "0" * 300, "1e308", "1e999", "-0.0",
    "NaN", "-Infinity", "true", '""', "[[]]", '{"": {}}', '{"loss": null}', '{"name": 1}', '[{"name": []}]',
    '[{"name": "a"}, {"name": "a"}]', '"9999-12-31T23:59:59-23:59"', '"2026-02-30T00:00:00Z"', '"2099-12-31"',
    '"\\u001b[31m"', '"\\u202e"', '"\\u0000"', '"\\ud800"', '"\\n\\n"', '"\x1b"', f'"https://h/x?sig={CANARY}"',
    '"s3://corp/out/../x"', '"é✓"', '"' + "w" * 63 + '"', '"' + "w" * 257 + '"', "}", '"', "[" * 30, "\\", "",
    *(f'"{reason}"' for reason in Reason), *(f'"{failure_class}"' for failure_class in FailureClass),
    '"failure_class"', '"exit_code"', '"lastUpdateTime"', '"last_update_time"', '"loss"', '"message"', '"data"',
    '"kind"', '"slice"', '"worse"',
)  # fmt: skip
HUGE = ('"' + "m" * 20_000 + '"', "[" + "1," * 3000 + "1]", "[" * 3000, '{"a":' * 500 + "1" + "}" * 500)


def spans(text: str) -> list[tuple[int, int]]:
    """Where the values and the keys of JSON are."""
    leaves = [match.span() for match in re.finditer(r'"(?:[^"\\]|\\.)*"|-?\d[\d.e+-]*|null', text)]
    containers = [match.span() for match in re.finditer(r"\{[^{}]*\}|\[[^\[\]]*\]", text)]
    return leaves + containers


def mutated(text: str, where: list[tuple[int, int]], dice: random.Random) -> str:
    """JSON with one to three other values or keys in it, from the last to the first; or no JSON any more."""
    for start, end in sorted(dice.sample(where, dice.choice((1, 1, 1, 2, 3))), reverse=True):
        kind = dice.random()
        instead = dice.choice(HARMLESS if kind < 0.6 else ODD if kind < 0.998 else HUGE)
        text = text[:start] + instead + text[end:]
    return text


def sound(value: Any, where: str = "") -> None:
    """What the API server stores and every reader reads back: as the CRD has it, and shown to people."""
    if isinstance(value, dict):
        for key, each in value.items():
            sound(each, key)
    elif isinstance(value, list | tuple):
        assert len(value) <= 64
        for each in value:
            sound(each, where)
    elif isinstance(value, str):
        assert len(value) <= 3000, where
        assert value.isprintable() or (where in ("message", "hint") and printable(value) == value)
        assert CANARY not in value or where not in ("message", "hint")
    elif isinstance(value, float):
        assert math.isfinite(value), where
    elif isinstance(value, int):
        assert 0 <= value <= LARGEST, where


@pytest.mark.parametrize("seed", range(8))
def test_a_hundred_thousand_inputs(seed: int) -> None:
    """None raises anything but MalformedReport, and what is accepted is sound; some of it is decided on."""
    dice, words, report = random.Random(seed), json.dumps(GOOD), json.dumps(REPORT)
    of_words, of_report = spans(words), spans(report)
    accepted, refused = [0, 0], set[str]()
    for _ in range(6_250):
        found = termination_message(mutated(words, of_words, dice))
        if found is not None:
            accepted[0] += 1
            assert (found.failure_class is None) == (found.reason is None)
            assert found.reason is None or class_of(found.reason) is found.failure_class
            if accepted[0] % 8 == 0:
                sound(found.to_json())
                decided(found, code=dice.choice((0, 1, 65, 137)))
        try:
            data = mutated(report, of_report, dice).encode()
            told = progress_report(data, attempt=1, uid="u", nonce="n")
        except MalformedReport as nonsense:
            refused.add(str(nonsense))
            continue
        accepted[1] += 1
        assert told.progress.last_update_time is None
        if accepted[1] % 8 == 0:
            sound(told.to_json())
            progressed(told)
    assert all(len(line) <= 200 and line.isprintable() for line in refused)
    assert all(250 < count < 6_000 for count in accepted), f"neither everything nor nothing: {accepted}"


def decided(found: TerminationMessage, *, code: int) -> None:
    pods = tuple(pod(n, "Failed" if code else "Succeeded", ended=ended(code, words=found)) for n in range(2))
    made = child(failing=bool(code), complete=not code, finished=True)
    decision = decide(seen(job(status(Phase.Running)), children=(made,), pods=pods), NOW)
    orjson.dumps(decision.status.to_json())
    assert decision.status.artifact is None or decision.status.artifact.uri.startswith("s3://corp/out")


def progressed(told: ProgressReport) -> None:
    pods = (pod(0, "Running"), pod(1, "Running"))
    decision = decide(seen(job(status(Phase.Running)), children=(child(),), pods=pods, report=told), NOW)
    orjson.dumps(decision.status.to_json())
