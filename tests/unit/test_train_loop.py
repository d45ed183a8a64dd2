"""Training: what may not change the result does not, and a run that was cut short ends as if it had not been."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_trainer.data.corpus import Corpus, Numbers
from finetune_trainer.data.order import Mixture
from finetune_trainer.train.optimizer import learning_rate
from finetune_trainer.train.state import State
from tests.support.training import LENGTHS, Knobs, Run, at_step, documents, interrupted, largest_difference, make_run

FULL = Method(type="full")
LORA = Method(type="lora", lora=Lora(rank=4))
DROPOUT = Method(type="lora", lora=Lora(rank=4, dropout=0.2))


def _finished(folder: Path, knobs: Knobs) -> tuple[dict[str, torch.Tensor], State]:
    run = make_run(folder, knobs)
    state = run.finish()
    return run.tensors(), state


def _losses(state: State) -> list[float]:
    return [point.loss or 0.0 for point in state.curve]


def test_the_loss_goes_down(tmp_path: Path) -> None:
    _, state = _finished(tmp_path, Knobs(steps=20, rate=2e-2, evaluate_every=20))
    losses = _losses(state)
    assert losses[-1] < losses[0] - 0.2
    assert [point.step for point in state.curve] == list(range(1, 21))
    assert [point.step for point in state.validation] == [20]


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["Llama", "GPTNeoX"])
@pytest.mark.parametrize(
    "other",
    [{"max_tokens": 500}, {"max_tokens": 1}, {"packing": False}],
    ids=["one micro-batch", "a micro-batch for each row", "unpacked"],
)
def test_the_layout_of_a_step_does_not_change_the_trajectory(
    tmp_path: Path, method: Method, kind: str, other: dict[str, int]
) -> None:
    knobs = Knobs(steps=5, method=method, kind=kind, rate=1e-3)
    tensors, state = _finished(tmp_path / "one", knobs)
    others, other_state = _finished(tmp_path / "other", replace(knobs, **other))
    assert _losses(other_state) == pytest.approx(_losses(state), rel=2e-5)
    assert other_state.validation[-1].scores.loss == pytest.approx(state.validation[-1].scores.loss, rel=2e-5)
    weights = [{n: t for n, t in found.items() if n.startswith("weights")} for found in (tensors, others)]
    assert largest_difference(*weights) < 2e-4


def test_a_step_is_normalised_by_its_trained_tokens(tmp_path: Path) -> None:
    """The first loss is the mean over all targets of the batch, whatever the micro-batches."""
    run = make_run(tmp_path, Knobs(steps=1, batch_size=len(LENGTHS), max_tokens=30))
    corpus, net = documents(LENGTHS), run.net
    nats = 0.0
    for i in range(len(corpus)):
        row = corpus.row(i)
        tokens = torch.from_numpy(row.tokens.astype(np.int64))
        logits = net(tokens[None]).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        nats += each[torch.from_numpy(row.trained[1:].copy())].sum().item()
    assert _losses(run.finish())[0] == pytest.approx(nats / corpus.trained_tokens, rel=1e-5)


@pytest.mark.parametrize("method", [LORA, FULL, DROPOUT], ids=["lora", "full", "dropout"])
@pytest.mark.parametrize("cut", [1, 3, 6], ids=lambda n: f"after step {n}")
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path: Path, method: Method, cut: int) -> None:
    """To the bit: weights, moments, losses and validations. Step 3 and 6 are steps that validate, too."""
    knobs = Knobs(steps=8, method=method)
    whole, whole_state = _finished(tmp_path / "whole", knobs)
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), cut)
    state = resumed.finish()
    assert largest_difference(resumed.tensors(), whole) == 0.0
    assert _losses(state) == _losses(whole_state)
    assert state.validation == whole_state.validation
    assert (state.best, state.misses, state.trained_tokens) == (
        whole_state.best,
        whole_state.misses,
        whole_state.trained_tokens,
    )
    assert [a.first_step for a in state.attempts] == [0, cut]
    assert state.attempts[0].outcome == f"interrupted after step {cut}"


def test_an_attempt_with_half_the_micro_batch_continues_the_same_curve(tmp_path: Path) -> None:
    """After memory ran out: from the checkpoint, with other micro-batches of the same batch."""
    knobs = Knobs(steps=8, max_tokens=64)
    whole, whole_state = _finished(tmp_path / "whole", knobs)
    interrupted(lambda: make_run(tmp_path / "cut", knobs), 3)
    second = make_run(tmp_path / "cut", replace(knobs, max_tokens=32))
    assert _losses(second.finish()) == pytest.approx(_losses(whole_state), rel=1e-5)
    assert largest_difference(second.tensors(), whole) < 1e-5


def test_a_run_that_crashed_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    knobs = Knobs(steps=8, checkpoint_steps=2)
    whole, _ = _finished(tmp_path / "whole", knobs)
    crashed = make_run(tmp_path / "cut", knobs)
    _crash_at(crashed, 6)
    with pytest.raises(RuntimeError, match="crash"):
        crashed.finish()
    crashed.trainer.checkpointer.wait()
    resumed = make_run(tmp_path / "cut", knobs)
    assert resumed.start().step == 4
    resumed = make_run(tmp_path / "cut", knobs)
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole) == 0.0


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_to_the_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    knobs = Knobs(steps=8, checkpoint_steps=2, evaluate_every=100)
    whole = make_run(tmp_path / "whole", knobs)
    whole.finish()
    resumed = interrupted(lambda: make_run(tmp_path / "cut", knobs), 5)
    store = resumed.trainer.checkpointer.store
    assert store is not None
    assert store.steps() == [4, 5]
    [blobs] = (tmp_path / "cut").rglob("blobs")
    file = blobs / store.get(5).files["moments.safetensors"].sha256
    _damage(file)
    assert resumed.start().step == 4
    assert "checkpoint of step 5 is broken: moments.safetensors is corrupted" in caplog.text
    again = make_run(tmp_path / "cut", knobs)
    again.finish()
    assert largest_difference(again.tensors(), whole.tensors()) == 0.0
    assert store.steps() == [6, 8]


def _crash_at(run: Run, step: int) -> None:
    def crash() -> None:
        raise RuntimeError("crash")

    at_step(run, step, crash)


def test_a_finished_run_has_nothing_left_to_train(tmp_path: Path) -> None:
    knobs = Knobs(steps=4)
    tensors, state = _finished(tmp_path, knobs)
    again = make_run(tmp_path, knobs)
    _crash_at(again, 5)
    assert again.finish().step == 4
    assert largest_difference(again.tensors(), tensors) == 0.0
    assert state.step == 4


def _damage(file: Path) -> None:
    """Changes its last byte, whatever that is."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))


def test_the_best_weights_come_back(tmp_path: Path) -> None:
    """With a rate that ruins the model, the best validation is an early one."""
    run = make_run(tmp_path, Knobs(steps=12, rate=1.0, evaluate_every=2))
    state = run.finish()
    assert state.best is not None
    assert state.best.step < 12
    assert run.trainer.measure(run.trainer.validation).scores.loss > state.best.loss
    assert run.trainer.checkpointer.restore_best(state, run.trainer.weights) == state
    assert run.trainer.measure(run.trainer.validation).scores.loss == pytest.approx(state.best.loss, rel=1e-6)


@pytest.mark.parametrize("damaged", ["the best", "all"])
def test_the_best_weights_that_are_whole_come_back_where_a_checkpoint_is_damaged(tmp_path: Path, damaged: str) -> None:
    """A whole run is not thrown away for a bit; and it is told whose weights these are."""
    run = make_run(tmp_path, Knobs(steps=12, rate=1.0, evaluate_every=2, checkpoint_steps=2, keep=9))
    state = run.finish()
    store = run.trainer.checkpointer.store
    assert state.best is not None
    losses = {point.step: point.scores.loss for point in state.validation}
    best, *others = sorted(store.steps(), key=lambda step: losses[step])
    assert (state.best.step, len(others), best < 12) == (best, 5, True)
    for step in store.steps() if damaged == "all" else [best]:
        file = tmp_path / "output" / store._blob(store.get(step).files["weights.safetensors"].sha256)
        _damage(file)
    kept = run.trainer.checkpointer.restore_best(state, run.trainer.weights)
    assert kept.best is not None
    assert kept.best.step == {"the best": others[0], "all": 12}[damaged]
    assert run.trainer.measure(run.trainer.validation).scores.loss == pytest.approx(kept.best.loss, rel=1e-6)
    assert f"the best weights, of step {best} (validation loss {losses[best]:.4f}), are lost" in kept.passed_over
    assert f"the artifact has those of step {kept.best.step} ({kept.best.loss:.4f})" in kept.passed_over


def test_training_stops_when_validation_does_not_improve(tmp_path: Path) -> None:
    _, state = _finished(tmp_path, Knobs(steps=50, rate=1.0, evaluate_every=2, patience=2))
    assert state.step < 50
    assert "did not improve in 2 evaluations" in state.stopped_early
    _, again = _finished(tmp_path, Knobs(steps=50, rate=1.0, evaluate_every=2, patience=2))
    assert again.step == state.step


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_its_step_and_rows(tmp_path: Path, poison: float) -> None:
    run = make_run(tmp_path, Knobs(steps=5, batch_size=4))
    state = run.start()
    state, _ = run.trainer._step(state)
    with torch.no_grad():
        run.net.model.norm.weight.fill_(poison)
    before = run.tensors()
    with pytest.raises(FinetuneError) as error:
        run.trainer._step(state)
    assert error.value.reason is Reason.LossNonFinite
    assert "step 2" in error.value.message
    assert "training rows: " in error.value.message
    assert largest_difference(run.tensors(), before) == 0.0


def test_what_is_measured_must_be_finite_too(tmp_path: Path) -> None:
    """A checkpoint of a NaN could not be written, and a model without a loss would have been committed."""
    run = make_run(tmp_path, Knobs(steps=5, batch_size=4))
    with torch.no_grad():
        run.net.model.norm.weight.fill_(float("nan"))
    corpus = run.trainer.validation
    assert corpus is not None
    with pytest.raises(FinetuneError, match="untouched model's loss on held-out rows is not finite") as error:
        run.trainer.measure_base(corpus)
    assert error.value.reason is Reason.ModelUnsupported
    with pytest.raises(FinetuneError, match="tuned model's loss on held-out rows is not finite") as error:
        run.trainer._validate(run.start())
    assert error.value.reason is Reason.LossNonFinite


@pytest.mark.parametrize("cut", [2, 3, 5])
def test_a_step_that_is_left_out_changes_nothing_but_itself_however_often_the_run_resumes(
    tmp_path: Path, cut: int
) -> None:
    """The other steps keep their rows, their rates and, when it comes to moments, their numbers: to the bit."""
    knobs = Knobs(steps=8)

    def leaving_out(folder: Path, step: int | None) -> Run:
        run = make_run(folder, knobs)
        return replace(run, trainer=replace(run.trainer, skipped_step=step))

    whole = leaving_out(tmp_path / "whole", 3)
    updates: list[float] = []
    learn = whole.trainer.weights.step

    def watched(rate: float, **more: Any) -> float:
        updates.append(rate)
        return learn(rate, **more)

    whole.trainer.weights.step = watched  # type: ignore[method-assign]
    state = whole.finish()
    schedule = {"peak": knobs.rate, "total_steps": 8, "warmup_ratio": 0.2, "schedule": "cosine"}
    rates = [learning_rate(step, **schedule) for step in range(8) if step != 3]  # type: ignore[arg-type]
    assert updates == rates
    assert state.step == 8

    second = interrupted(lambda: leaving_out(tmp_path / "cut", 3), cut)
    second.finish()
    assert largest_difference(second.tensors(), whole.tensors()) == 0.0


def test_every_step_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, Knobs(steps=3))
    run.finish()
    run.trainer.reporter.phase("done")
    report = run.trainer.reporter.run_dir.report()
    assert report is not None
    assert (report.phase, report.progress.step) == ("done", 3)
    assert report.progress.loss is not None
    assert report.progress.eval_loss is not None
    assert run.trainer.reporter.run_dir.heartbeats()[0].step == 3
    assert "step 3/3 loss " in capsys.readouterr().out


def test_resuming_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _finished(tmp_path, Knobs(steps=2))
    with caplog.at_level(logging.INFO):
        make_run(tmp_path, Knobs(steps=4)).start()
    assert "continuing after step 2" in caplog.text


def test_a_run_over_weighted_sources_and_variants_resumes_to_the_bit(tmp_path: Path) -> None:
    knobs = Knobs(steps=8, method=LORA)
    whole = _weighted_and_varied(make_run(tmp_path / "whole", knobs))
    losses = _losses(whole.finish())
    resumed = interrupted(lambda: _weighted_and_varied(make_run(tmp_path / "cut", knobs)), 3)
    assert _losses(resumed.finish()) == losses
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
    assert losses != _losses(make_run(tmp_path / "plain", knobs).finish())


def _weighted_and_varied(run: Run) -> Run:
    """The first source half, the second twice; in each epoch another row of a step is seen as another one's copy."""
    half = len(LENGTHS) // 2
    mixture = Mixture((half, len(LENGTHS) - half), (0.5, 2.0))

    def varied(rows: Numbers, epoch: int) -> tuple[Corpus, Numbers]:
        return run.trainer.train.take((rows + epoch) % len(LENGTHS)), np.arange(len(rows))

    return replace(run, trainer=replace(run.trainer, mixture=mixture, varied=varied))
