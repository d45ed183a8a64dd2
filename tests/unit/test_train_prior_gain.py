"""evaluation.priorGain: states of a pretrained model against those of a copy with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import Evaluation, PriorGain
from finetune_api.results import packed, unpacked
from finetune_trainer.cli.text import guard_lines
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import render
from finetune_trainer.train.prior_gain import Prior
from tests.support.small_report import EVALUATION, record
from tests.support.training import Knobs, documents, make_run, network, sorted_words


def setup_of(
    folder: Path, *, asked: bool = True, sharded: bool = False, rung: str | None = None, helps: bool = True
) -> Any:
    """A model whose embeddings say from which half of the vocabulary a token is (helps), or say nothing."""
    net = network("Llama")
    net.save_pretrained(folder / "model")
    with torch.no_grad():
        table = net.get_input_embeddings().weight
        if helps:
            table[:, 0] = torch.where(torch.arange(len(table)) >= 50, 3.0, -3.0)
        else:
            table.zero_()
    run = make_run(folder, Knobs(max_tokens=200), corpus=sorted_words(150, seed=1), net=net)
    trainer = run.trainer
    if sharded:
        place = replace(trainer.strategy.place, world_size=2)
        trainer = replace(trainer, strategy=cast(Any, SimpleNamespace(name="fsdp", place=place)))
    spec = SimpleNamespace(evaluation=SimpleNamespace(prior_gain=asked), training=SimpleNamespace(seed=1))
    return SimpleNamespace(
        spec=spec, trainer=trainer, plan=SimpleNamespace(rung=rung), data=SimpleNamespace(labels=("low", "high")),
        local=SimpleNamespace(path=folder / "model"),
    )  # fmt: skip


def measured(folder: Path, *, helps: bool = True) -> PriorGain:
    prior = Prior.of(setup_of(folder, helps=helps), {"validation": documents([9]), "test": sorted_words(200, seed=2)})
    prior.measure()
    found = prior.judged()
    assert found is not None
    return found


def test_a_model_that_knows_the_words_is_better_than_random_weights(tmp_path: Path) -> None:
    found = measured(tmp_path / "a")
    assert (found.name, found.rows, found.verdict) == ("test", 200, "better")
    assert found.low is not None
    assert found.low > 0
    assert found == measured(tmp_path / "b"), "the same rows and seed give the same numbers"


def test_pretraining_that_hurts_is_said(tmp_path: Path) -> None:
    """All tokens look the same to it: random embeddings know more."""
    found = measured(tmp_path, helps=False)
    assert found.verdict == "worse"
    assert "what pretraining is worth on test rows: -" in found.told()


def test_the_model_and_the_random_numbers_stay_as_they_are(tmp_path: Path) -> None:
    setup = setup_of(tmp_path)
    before = {name: value.clone() for name, value in setup.trainer.model.network.state_dict().items()}
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    Prior.of(setup, {"test": sorted_words(60, seed=2)}).measure()
    assert torch.equal(torch.rand(3), wanted)
    after = setup.trainer.model.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("held_out", "sharded", "says"),
    [
        ({"test": documents([9, 8])}, False, "needs classification rows"),
        (
            {"test": sorted_words(30, seed=2)},
            True,
            "needs a whole copy of the model .*, and fsdp shards it",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, held_out: Any, sharded: bool, says: str) -> None:
    with pytest.raises(FinetuneError, match=says) as refused:
        Prior.of(setup_of(tmp_path, sharded=sharded), held_out)
    assert refused.value.reason is Reason.InvalidSpec


@pytest.mark.parametrize("settings", [{"asked": False}, {"rung": "lora"}])
def test_nothing_is_measured_where_nothing_is_asked_for(tmp_path: Path, settings: Any) -> None:
    prior = Prior.of(setup_of(tmp_path, **settings), {"test": sorted_words(30, seed=2)})
    prior.measure()
    assert prior.judged() is None


def test_the_result_is_in_status_terminal_report_and_card() -> None:
    found = PriorGain(name="test", random=0.62, pretrained=0.83, difference=0.21, low=0.15, high=0.27,
                      minimum_detectable=0.08, verdict="better", rows=400, groups=400)  # fmt: skip
    evaluation = EVALUATION.model_copy(update={"prior_gain": found})
    assert unpacked(packed(Evaluation(prior_gain=found))).prior_gain == found
    words = "pretraining is worth on test rows: +21.0 points [+15.0, +27.0], better"
    for shown in (
        guard_lines(evaluation),
        render(record(evaluation=evaluation)),
        model_card(record(evaluation=evaluation)),
    ):
        assert words in shown
    few = PriorGain(name="test", rows=9)
    assert few.told() == "what pretraining is worth on test rows is not known: 9 rows are too few"
