"""regularization.replay.source self: what the base model writes is replayed, the same in every attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_api.plan import RunPlan
from finetune_api.regularization import OWN_TOKENS, KlToBase, Regularization, Replay
from finetune_api.spec import Training
from finetune_trainer.parallel.single import Single
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train import self_replay
from finetune_trainer.train.self_replay import filtered
from finetune_trainer.train.setup import Setup, prepare
from tests.support.tiny_model import tiny_corpus, tiny_model
from tests.support.training import CPU, plan_for

OWN = Regularization(replay=Replay(source="self"), kl_to_base=KlToBase())


def _plan(folder: Path, **spec: Any) -> RunPlan:
    tiny_model(folder / "model")
    tiny_corpus(folder)
    made: dict[str, Any] = {
        "data": Data(train=(TrainSource(uri=f"file://{folder}/train.jsonl"),), sequence_length=64),
        "method": Method(type="lora", lora=Lora(rank=4)),
        "training": Training(batch_size=6, max_steps=3, learning_rate=0.02),
        "regularization": OWN,
    }
    return plan_for(folder, **{**made, **spec})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path


def _prepared(plan: RunPlan, folder: Path) -> Setup:
    output = open_folder(plan.spec.output.uri, prefix="")
    return prepare(plan, gang=Single(), device=CPU, output=output, run_dir=RunDir(folder / "run"))


def test_the_base_model_writes_what_is_replayed_and_the_next_attempt_replays_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = _plan(folder)
    first = _prepared(plan, folder)
    replay = first.trainer.regularization.replay
    assert replay is not None
    assert len(replay.corpus) >= self_replay.FEWEST
    assert set(replay.corpus.lengths.tolist()) == {64}, "as long as a row may be"
    assert not replay.corpus.trained[replay.corpus.offsets[:-1]].any()
    assert replay.corpus.trained_tokens == 63 * len(replay.corpus)
    assert len({replay.corpus.row(at).tokens.tobytes() for at in range(len(replay.corpus))}) == len(replay.corpus)
    assert first.spec.regularization.replay is not None
    assert first.spec.regularization.replay.fraction == 0.1
    said = capsys.readouterr().out
    assert "the base model writes 32 texts of 63 tokens to replay" in said
    assert "10 % of the rows of a step are replayed" in said
    state = first.trainer.run(first.trainer.checkpointer.resume(first.trainer.weights).update(base={}))
    assert any("replay" in (point.regularization or {}) for point in state.curve)
    assert any("klToBase" in (point.regularization or {}) for point in state.curve)

    monkeypatch.setattr(self_replay, "answers", None)
    again = _prepared(plan, folder).trainer.regularization.replay
    assert again is not None
    assert np.array_equal(again.corpus.tokens, replay.corpus.tokens)


def test_what_it_writes_follows_from_the_seed(folder: Path) -> None:
    texts = []
    for seed in (1, 1, 2):
        training = Training(batch_size=6, max_steps=3, seed=seed)
        plan = _plan(folder, training=training)
        plan = plan.model_copy(update={"job": plan.job.model_copy(update={"uid": f"uid-{len(texts)}"})})
        replay = _prepared(plan, folder).trainer.regularization.replay
        assert replay is not None
        texts.append(replay.corpus.tokens.tolist())
    assert texts[0] == texts[1] != texts[2]


def test_copies_and_texts_that_repeat_themselves_are_left_out() -> None:
    plain, other = tuple(range(40)), tuple(range(7, 47))
    loop, short = (1, 2, 3, 4, 5) * 8, (1, 2, 3)
    assert filtered([plain, loop, other, plain, short]) == [plain, other]


def test_a_model_that_only_repeats_itself_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_replay, "REPEATED", -1.0)
    with pytest.raises(FinetuneError, match="only 0 of the 32 texts") as refused:
        _prepared(_plan(folder), folder)
    assert refused.value.reason is Reason.NothingToTrain
    assert "regularization.replay.uri" in refused.value.hint


def test_a_text_is_as_long_as_the_plan_says() -> None:
    assert OWN_TOKENS == self_replay.NEW + 1
