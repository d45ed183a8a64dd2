"""What an agent writes and serves, whole and sound; tests change a part of it."""

from __future__ import annotations

import json
from typing import Any

from finetune_api.failures import TerminationMessage
from finetune_api.plan import ProgressReport
from finetune_operator.state.pod_reports import (
    progress_report,
    termination_message,
)

GOOD: dict[str, Any] = {
    "class": "Data", "reason": "DataUnreadable", "message": "line 3 of s3://corp/a is not JSON", "hint": "Correct it.",
    "exitCode": 65, "rank": 1, "node": 0, "time": "2026-01-02T03:04:05Z", "step": 12,
    "plan": {"method": "lora", "worldSize": 2, "learningRate": 1e-4, "totalSteps": 40, "microBatchTokens": 2048},
    "evaluation": {
        "data": [
            {
                "name": "validation", "kind": "validation", "metric": "loss", "base": 2.5, "tuned": 1.5,
                "difference": -1.0, "low": -1.25, "high": -0.75, "minimumDetectable": 0.35, "verdict": "better",
                "rows": 100, "groups": 90,
            },
            {"name": "cardiology", "kind": "slice", "metric": "accuracy", "tuned": 1.0, "rows": 10, "groups": 10},
            {"name": "oncology", "kind": "slice", "metric": "accuracy", "base": 1.0, "rows": 10, "groups": 10},
        ],
    },
    "artifact": {"uri": "s3://corp/out", "digest": "0" * 64, "sizeBytes": 10, "kind": "adapter", "servable": "lora"},
}  # fmt: skip
REPORT: dict[str, Any] = {
    "attempt": 1, "phase": "training", "uid": "u", "nonce": "n",
    "progress": {"step": 3, "totalSteps": 10, "percent": 30, "etaSeconds": 60, "loss": 1.5, "tokensPerSecond": 9.5},
    "plan": GOOD["plan"], "evaluation": GOOD["evaluation"], "artifact": GOOD["artifact"],
}  # fmt: skip


def said(**changes: Any) -> TerminationMessage | None:
    return termination_message(json.dumps(GOOD | changes))


def reported(**changes: Any) -> ProgressReport:
    return progress_report(json.dumps(REPORT | changes).encode(), attempt=1, uid="u", nonce="n")


CANARY = "c4n4ryC4N4RYc4n4ry00"
"""A secret that must not come out anywhere."""
