"""Probes: the closed form against brute force, features against hidden states, and a run from rows to scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_api.methods import Probe as Settings
from finetune_trainer.data.pack import micro_batches
from finetune_trainer.methods.needs import check, check_format, check_strategy
from finetune_trainer.methods.probe import ProbeAttached
from finetune_trainer.methods.registry import method_of
from finetune_trainer.train.linear_probe import ProbeRun, probed
from finetune_trainer.transfer.features import default_layers, features
from finetune_trainer.transfer.probe import (
    PENALTIES,
    Probe,
    Spectrum,
    _logistic,
    fit,
    judge_logistic,
    judge_ridge,
    log_softmax,
    stratified,
)
from tests.support.training import BASE, Knobs, documents, make_run, network, sorted_words

LABELS = ("a", "b", "c")


def _cloud(
    rows: int, dim: int, *, classes: int = 3, apart: float = 1.5, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    chosen = np.random.default_rng(seed)
    gold = chosen.integers(0, classes, rows)
    centres = apart * chosen.standard_normal((classes, dim)) / np.sqrt(dim)
    return (3 + centres[gold] + chosen.standard_normal((rows, dim)) / 3).astype(np.float32), gold


@pytest.mark.parametrize(("rows", "dim"), [(30, 5), (20, 60)], ids=["more rows than features", "fewer"])
@pytest.mark.parametrize("multiple", [1e-3, 0.1, 10.0])
def test_left_out_predictions_are_those_of_fits_without_the_row(rows: int, dim: int, multiple: float) -> None:
    """To 1e-10: one decomposition instead of `rows` fits, with an intercept that is not penalised."""
    x, gold = _cloud(rows, dim)
    spectrum = Spectrum.of(x)
    targets = np.where(gold[:, None] == np.arange(3), 1.0, -1.0)
    penalty = spectrum.penalty(multiple)
    fast = spectrum.left_out(targets, penalty)
    scaled = (x.astype(np.float64) - spectrum.centre) / spectrum.scale
    for i in range(rows):
        others = np.arange(rows) != i
        centre, mean = scaled[others].mean(axis=0), targets[others].mean(axis=0)
        inner = scaled[others] - centre
        weight = np.linalg.solve(inner.T @ inner + penalty * np.eye(dim), inner.T @ (targets[others] - mean))
        assert np.abs((scaled[i] - centre) @ weight + mean - fast[i]).max() < 1e-10


def test_ridge_weights_are_the_solution_for_features_as_they_are() -> None:
    x, gold = _cloud(40, 6)
    spectrum = Spectrum.of(x)
    targets = np.where(gold[:, None] == np.arange(3), 1.0, -1.0)
    weight, bias = spectrum.ridge(targets, penalty := spectrum.penalty(0.1))
    scaled = (x - spectrum.centre) / spectrum.scale
    solved = np.linalg.solve(scaled.T @ scaled + penalty * np.eye(6), scaled.T @ (targets - targets.mean(axis=0)))
    assert np.allclose(x @ weight.T + bias, scaled @ solved + targets.mean(axis=0), atol=1e-6)


def test_logistic_regression_is_at_its_optimum() -> None:
    """The gradient vanishes, and its intercept makes the mean probabilities those of the labels."""
    x, gold = _cloud(60, 4)
    x = x.astype(np.float64)
    weight, bias = _logistic(x - x.mean(axis=0), gold, 3, 0.05)
    probabilities = np.exp(log_softmax((x - x.mean(axis=0)) @ weight.T + bias))
    residual = probabilities - (gold[:, None] == np.arange(3))
    assert np.abs(residual.T @ (x - x.mean(axis=0)) / 60 + 0.05 * weight).max() < 1e-5
    assert np.abs(residual.mean(axis=0)).max() < 1e-6


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_tells_what_is_apart_and_knows_what_it_does_not(kind: str) -> None:
    x, gold = _cloud(150, 20, apart=2.5)
    fresh, fresh_gold = _cloud(150, 20, apart=2.5)[0], gold
    probe = fit(x, gold, LABELS, layer=3, kind=kind)
    logs = probe.log_probabilities(fresh)
    assert np.allclose(np.exp(logs).sum(axis=1), 1)
    assert (logs.argmax(axis=1) == fresh_gold).mean() > 0.9
    noise = np.random.default_rng(1).integers(0, 3, 150)
    guess = fit(x, noise, LABELS, layer=3, kind=kind)
    assert guess.accuracy < 0.5
    outside = -guess.log_probabilities(_cloud(150, 20, apart=2.5, seed=9)[0])[np.arange(150), noise].mean()
    assert outside < 1.2 * np.log(3)
    assert guess.penalty in PENALTIES


def test_a_judgement_is_of_rows_that_were_not_fitted() -> None:
    """With as many features as rows every fit is perfect on its own rows, and no better than chance on others."""
    x = np.random.default_rng(0).standard_normal((40, 80)).astype(np.float32)
    gold = np.random.default_rng(1).integers(0, 2, 40)
    assert judge_ridge(Spectrum.of(x), gold, 2).accuracy < 0.8
    assert judge_logistic(Spectrum.of(x), x, gold, 2).accuracy < 0.8


def test_folds_have_each_label_in_turn() -> None:
    gold = np.array([0] * 12 + [1] * 8)
    folds = stratified(gold, 5)
    assert np.bincount(folds).tolist() == [4, 4, 4, 4, 4]
    assert [int((gold[folds == fold] == 1).sum()) for fold in range(5)] == [1, 1, 2, 2, 2]


def test_a_label_without_rows_is_never_chosen_and_constant_features_are_harmless() -> None:
    x, gold = _cloud(40, 6, classes=2)
    x[:, 3] = 7
    for kind in ("ridge", "logistic"):
        probe = fit(x, gold, LABELS, layer=1, kind=kind)
        assert np.isfinite(probe.weight).all()
        assert 2 not in probe.log_probabilities(x).argmax(axis=1)


def test_a_probe_survives_its_files(tmp_path: Path) -> None:
    x, gold = _cloud(40, 6)
    probe = fit(x, gold, LABELS, layer=2, kind="ridge")
    probe.save(tmp_path, base_model="org/tiny")
    again = Probe.load(tmp_path)
    assert np.array_equal(again.log_probabilities(x), probe.log_probabilities(x))
    assert (again.labels, again.layer, again.kind, again.penalty) == (LABELS, 2, "ridge", probe.penalty)
    assert json.loads((tmp_path / "probe.json").read_text())["base_model"] == "org/tiny"


@pytest.mark.parametrize(("kind", "packing"), [("Llama", True), ("GPTNeoX", True), ("Llama", False), ("GPT2", False)])
def test_features_are_the_mean_without_token_0_and_the_last(kind: str, packing: bool) -> None:
    net = network(kind, layers=3)
    corpus = documents([5, 1, 9, 2, 7])
    batches = micro_batches(corpus, np.arange(5), max_tokens=40, sequence_length=64, packing=packing, pad_id=0)
    layers = (0, 1, 2)
    found = np.zeros((5, 3, 64), np.float32)
    for batch in batches:
        found[batch.documents] = features(net, batch, layers)
    for row in range(5):
        tokens = torch.from_numpy(corpus.row(row).tokens.astype(np.int64))[None]
        states = net(tokens, output_hidden_states=True).hidden_states
        for index, layer in enumerate(layers):
            one = states[layer][0].detach()
            mean = one[1:].mean(0) if len(one) > 1 else one[0]
            assert np.allclose(found[row, index], torch.cat([mean, one[-1]]), atol=2e-5)


def test_no_block_runs_above_the_highest_layer_that_is_wanted() -> None:
    net = network(layers=4)
    ran: list[int] = []
    for index, block in enumerate(net.model.layers):
        block.mlp.register_forward_hook(lambda *_, index=index: ran.append(index))
    (batch,) = micro_batches(documents([9, 5]), np.arange(2), max_tokens=64, sequence_length=64, packing=True, pad_id=0)
    features(net, batch, (0, 2))
    assert ran == [0, 1]


def test_the_layers_to_choose_from() -> None:
    assert default_layers(30) == (8, 15, 19, 22, 26, 30)
    assert default_layers(2) == (1, 2)
    assert default_layers(1) == (1,)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_run_beats_the_majority_and_leaves_the_model_alone(tmp_path: Path, kind: str) -> None:
    run = make_run(
        tmp_path,
        Knobs(method=Method(type="probe", probe=Settings(kind=kind)), max_tokens=200),
        corpus=sorted_words(120, seed=1),
    )
    weights = {name: p.clone() for name, p in run.net.named_parameters()}
    assert isinstance(run.attached, ProbeAttached)
    held_out = {"test": sorted_words(60, seed=2), "general": documents([9, 8])}
    before, after, _ = probed(ProbeRun(run.trainer, run.attached, ("low", "high")), held_out, run.trainer.measure_base)
    base, tuned = ({name: each.scores for name, each in found.items()} for found in (before, after))
    assert base["general"] == tuned["general"]
    assert (tuned["test"].rows, tuned["test"].tokens) == (60, 60)
    assert tuned["test"].accuracy > 0.85 > 2 / 3 >= base["test"].accuracy
    assert tuned["test"].loss < 0.5 < base["test"].loss
    assert all(torch.equal(weights[name], p) for name, p in run.net.named_parameters())
    (tmp_path / "out").mkdir()
    run.attached.export(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["probe.json", "probe.safetensors"]
    loaded = method_of(Method(type="probe")).load(network(), tmp_path / "out")
    row = held_out["test"].row(0).tokens[: held_out["test"].choices.prompts[0]]
    logs = loaded(torch.from_numpy(row.astype(np.int64))[None])
    assert int(logs.argmax()) == int(held_out["test"].choices.gold[0])


def test_the_base_models_score_is_the_likelihood_among_the_labels(tmp_path: Path) -> None:
    """By hand: each answer after its prompt, then normalised over the labels; with and without shared prompts."""
    run = make_run(tmp_path, Knobs(method=Method(type="probe"), max_tokens=100), corpus=sorted_words(10, seed=1))
    corpus = sorted_words(7, seed=3)
    nats, right = 0.0, 0
    for i in range(7):
        prompt = corpus.row(i).tokens[: corpus.choices.prompts[i]]
        logs = []
        for answer in corpus.choices.answers:
            tokens = torch.from_numpy(np.r_[prompt, answer].astype(np.int64))[None]
            each = run.net(tokens).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
            logs.append(float(each.gather(1, tokens[0, len(prompt) :, None]).sum()))
        nats -= float(torch.tensor(logs).log_softmax(0)[corpus.choices.gold[i]])
        right += int(np.argmax(logs) == corpus.choices.gold[i])
    for shares in (True, False):
        model = replace(run.trainer.model, capabilities=replace(run.trainer.model.capabilities, shares_prompts=shares))
        scores = ProbeRun(replace(run.trainer, model=model), run.attached, ("low", "high")).measure_base(corpus).scores
        assert scores.loss == pytest.approx(nats / 7, rel=1e-5)
        assert scores.accuracy == pytest.approx(right / 7)


def test_what_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    text = make_run(tmp_path / "text", Knobs(method=Method(type="probe")))
    deep = make_run(
        tmp_path / "deep",
        Knobs(method=Method(type="probe", probe=Settings(layers=(1, 9)))),
        corpus=sorted_words(9, seed=1),
    )
    for run, says in ((text, "format classification"), (deep, "has 9, and the model has 2 decoder layers")):
        assert isinstance(run.attached, ProbeAttached)
        with pytest.raises(FinetuneError, match=says) as error:
            probed(ProbeRun(run.trainer, run.attached, ("low", "high")), {}, run.trainer.measure_base)
        assert error.value.reason is Reason.InvalidSpec


def test_a_request_to_stop_is_honoured(tmp_path: Path) -> None:
    run = make_run(tmp_path, Knobs(method=Method(type="probe")), corpus=sorted_words(30, seed=1))
    run.trainer.reporter.run_dir.request_stop("test")
    assert isinstance(run.attached, ProbeAttached)
    with pytest.raises(FinetuneError) as error:
        ProbeRun(run.trainer, run.attached, ("low", "high")).fit()
    assert error.value.reason is Reason.Interrupted


def test_a_probe_that_is_not_fitted_is_not_exported(tmp_path: Path) -> None:
    attached = method_of(Method(type="probe")).attach(network(), seed=1, base=BASE)
    with pytest.raises(ValueError, match="not fitted"):
        attached.export(tmp_path)


def test_the_preflight_knows_before_anything_is_loaded() -> None:
    probe = Method(type="probe", probe=Settings(layers=(0, 9)))
    check(probe, layers=9)
    check(probe, layers=None)
    check_format(probe, "classification")
    check_format(Method(), "chat")
    with pytest.raises(FinetuneError, match="has 9, and the model has 8 decoder layers"):
        check(probe, layers=8)
    with pytest.raises(FinetuneError, match="and these are chat"):
        check_format(probe, "chat")


@pytest.mark.parametrize("kind", ["prompt", "ptuning", "prefix", "probe"])
def test_weights_in_shards_are_refused(kind: str) -> None:
    check_strategy(Method(type=kind), "ddp")
    with pytest.raises(FinetuneError, match=f"method.type {kind} reads whole weights, and strategy fsdp shards them"):
        check_strategy(Method(type=kind), "fsdp")
