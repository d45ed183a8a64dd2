"""A job whose guard is violated at every scale trains again with replay: interrupted in between, resumed, published."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.report.record import decode
from tests.support.local_runs import Workspace
from tests.support.tiny_model import worded

pytestmark = pytest.mark.timeout(600)


def test_replay_follows_a_violated_guard_and_nothing_is_trained_twice(files: Path, tmp_path: Path) -> None:
    """The general text is in letters that the training rows do not have: without replay each step forgets them."""
    workspace = Workspace(folder=tmp_path, files=files)
    general = tmp_path / "general.jsonl"
    general.write_text("\n".join(json.dumps(row) for row in worded(160, seed=3, script="greek")))
    asked = workspace.manifest(nodes=1)
    asked["spec"]["data"] |= {"general": {"uri": general.as_uri()}}
    asked["spec"]["training"] |= {"learningRate": 0.03}
    asked["spec"]["guards"] = {"forgetting": {"maxBitsPerByteIncrease": 0.01}, "onViolation": "remedy"}
    assert workspace.run(asked) == ExitCode.GUARD, workspace.story()
    alone = workspace.job().status
    assert alone.candidate is not None
    assert alone.evaluation is not None
    assert alone.evaluation.remedies == (), "without maxAttempts there is one run, as ever"
    kept = Path(alone.candidate.uri.removeprefix("file://"))
    first = decode((kept / "run.json").read_bytes())

    asked["spec"]["guards"]["maxAttempts"] = 1
    pause = workspace.pause_at(5)
    process = workspace.start(asked)
    workspace.wait(process, lambda: workspace.steps_done() == 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(200) == ExitCode.INTERRUPTED, workspace.story()
    pause.release()
    assert workspace.run(asked) == ExitCode.OK, workspace.story()

    output = tmp_path / "output" / "tiny"
    record = decode((output / "run.json").read_bytes())
    assert json.loads((output / "manifest.json").read_text())["run"]["uid"] == workspace.job().metadata.uid
    status = workspace.job().status
    assert status.evaluation is not None
    before, after = status.evaluation.remedies
    assert (before.name, before.outcome) == ("asWritten", "violated")
    assert before.reason.startswith("forgetting is violated: +0.")
    assert (after.name, after.outcome) == ("replay", "published")
    assert decode((kept / "run.json").read_bytes()) == first, "the first run did not train again"
    assert [attempt.first_step for attempt in record.attempts] == [0, 5], "the second one was resumed"
    assert record.spec.regularization.replay is not None
    assert "regularization.replay" in (output / "README.md").read_text()
    assert "run replay (regularization.replay): published" in workspace.said()
