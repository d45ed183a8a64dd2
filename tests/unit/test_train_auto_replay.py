"""replay.fraction left out: the run measures the shift before its first step, says why, and keeps the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.data import Data, TrainSource
from finetune_api.methods import Lora, Method, Prefix
from finetune_api.regularization import FRACTIONS, KlToBase, Regularization, Replay
from finetune_api.spec import Training
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.statistics.shift import Ratio, band
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train import auto_replay
from finetune_trainer.train.setup import Setup, prepare
from tests.support.tiny_model import tiny_model, worded
from tests.support.tokenizers import write_jsonl
from tests.support.training import CPU, plan_for

LORA = Method(type="lora", lora=Lora(rank=4))


@pytest.mark.parametrize(
    ("ratio", "excess", "longer", "expected"),
    [
        (1.05, 0.02, 1.0, 0.01),
        (0.70, 0.02, 1.0, 0.01),
        (1.05, 0.30, 1.0, 0.05),
        (1.25, 0.05, 1.0, 0.05),
        (1.50, 0.05, 1.0, 0.25),
        (1.05, 0.05, 1.6, 0.25),
    ],
    ids=["the same source", "easier text", "other words", "harder text", "another register", "another script"],
)
def test_the_fraction_follows_from_the_shift(ratio: float, excess: float, longer: float, expected: float) -> None:
    assert FRACTIONS[band(Ratio(value=ratio, low=ratio, high=ratio), excess, longer)] == expected


def test_what_is_not_decided_yet_is_planned_at_the_most_that_it_may_be() -> None:
    assert Replay().rows_per_step(12) == Replay(fraction=0.25).rows_per_step(12) == 4.0
    assert dict(Regularization(replay=Replay()).lines())["Replayed text"].startswith("by the shift of the rows")


def _setup(folder: Path, *, script: str, rows: int = 30, method: Method = LORA, fraction: float | None = None) -> Setup:
    tiny_model(folder / "model")
    write_jsonl(folder / "train.jsonl", *worded(30, seed=1, script=script))
    general = write_jsonl(folder / "general.jsonl", *worded(rows, seed=2))
    plan = plan_for(
        folder,
        data=Data(train=(TrainSource(uri=f"file://{folder}/train.jsonl"),), sequence_length=256),
        method=method,
        training=Training(batch_size=4, max_steps=2),
        regularization=Regularization(
            replay=Replay(uri=general, fraction=fraction), kl_to_base=KlToBase() if method is LORA else None
        ),
    )
    output = open_folder(plan.spec.output.uri, prefix="")
    return prepare(plan, gang=Single(), device=CPU, output=output, run_dir=RunDir(folder / "run"))


def _fraction(setup: Setup) -> float | None:
    assert setup.spec.regularization.replay is not None
    return setup.spec.regularization.replay.fraction


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("method", [LORA, Method(type="prefix", prefix=Prefix(virtual_tokens=2))], ids=lambda m: m.type)
def test_text_of_one_source_is_replayed_at_the_floor(
    method: Method, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = _setup(tmp_path, script="latin", method=method)
    assert _fraction(setup) == 0.01
    replay = setup.trainer.regularization.replay
    assert replay is not None
    assert replay.per_step == pytest.approx(4 * 0.01 / 0.99)
    assert "replay: 1 % of the rows of a step are replayed, since the shift is small: " in "".join(capsys.readouterr())
    assert "since the shift is small" in dict(setup.data_record.lines())["replay"]


def test_a_later_attempt_keeps_what_the_first_one_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = _setup(tmp_path, script="greek")
    first = _fraction(setup)
    assert first is not None
    assert first >= 0.05

    def none(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(auto_replay, "_measured", none)
    again = _setup(tmp_path, script="greek")
    assert (_fraction(again), again.data_record) == (first, setup.data_record)
    assert _fraction(_setup(tmp_path / "given", script="greek", fraction=0.125)) == 0.125


def test_too_few_documents_measure_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _fraction(_setup(tmp_path, script="greek", rows=3)) == 0.05
    assert "fewer than 4 documents" in "".join(capsys.readouterr())
