"""EWC: importance is the Fisher information and not one of its look-alikes, and the pull ends where arithmetic says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_api.data import Data, DataSource, TrainSource
from finetune_api.methods import Lora, Method
from finetune_api.regularization import Ewc, L2Sp, Regularization
from finetune_api.spec import Training
from finetune_api.strategy import Strategy
from finetune_trainer.methods.base import Product
from finetune_trainer.parallel.single import Single
from finetune_trainer.planning.memory import estimate, trained_parameters
from finetune_trainer.planning.strategy import choose
from finetune_trainer.regularization.ewc import WeightedDistance, WeightedProducts, normalised
from finetune_trainer.regularization.fisher import Drawn, Matrices, Parameters, diagonal
from finetune_trainer.regularization.l2sp import DistanceOfProducts, DistanceOfWeights
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.setup import prepare
from tests.support.planning_models import LLAMA_3B
from tests.support.tiny_model import tiny_corpus, tiny_model
from tests.support.tokenizers import write_jsonl
from tests.support.training import (
    CPU,
    Knobs,
    Place,
    Run,
    disturb,
    interrupted,
    largest_difference,
    make_run,
    plan_for,
    weighed,
)

FULL = Method(type="full")
LORA = Method(type="lora", lora=Lora(rank=4))


def _logistic(
    draws: int, *, size: float = 1.0, right_labels: bool = False
) -> tuple[nn.Parameter, Tensor, Iterator[Drawn]]:
    """(weights, contexts, documents of one token each) of p(1|x) = σ(w·x), in a world where labels are all 0."""
    chance = torch.Generator().manual_seed(3)
    weight = nn.Parameter(size * torch.tensor([0.2, -0.3, 0.1, 0.4]))
    contexts = (2 * torch.rand(200, 4, generator=chance) - 1) * torch.tensor([2.0, 1.0, 3.0, 1.5])

    def document(at: int) -> Drawn:
        def drawn() -> tuple[Tensor, int]:
            logit = contexts[at] @ weight
            own = (torch.rand((), generator=chance) < torch.sigmoid(logit.detach())).float()
            label = torch.zeros(()) if right_labels else own
            return nn.functional.binary_cross_entropy_with_logits(logit, label), 1

        return drawn

    return weight, contexts, (document(at % 200) for at in range(draws))


def _exact(weight: Tensor, contexts: Tensor) -> Tensor:
    """F = E[p(1 − p) x²]"""
    p = torch.sigmoid(contexts @ weight.detach())
    return ((p * (1 - p))[:, None] * contexts.square()).mean(0)


def test_of_logistic_regression_it_is_the_textbook_value_within_two_percent() -> None:
    weight, contexts, drawn = _logistic(8_000)
    [found] = diagonal(Parameters([weight]), drawn, Single(), CPU)
    assert float((found / _exact(weight, contexts) - 1).abs().max()) < 0.02


def test_right_labels_would_measure_something_else() -> None:
    weight, contexts, drawn = _logistic(1_000, size=4.0, right_labels=True)
    [found] = diagonal(Parameters([weight]), drawn, Single(), CPU)
    assert float((found / _exact(weight, contexts) - 1).abs().max()) > 0.1


def test_of_a_matrix_with_an_update_it_is_that_of_the_matrix() -> None:
    """As if W trained: the layer is W + s·B·A, called twice in a document."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(5, 3))
    a, b = nn.Parameter(torch.randn(2, 3)), nn.Parameter(torch.randn(5, 2))

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ (weight + 0.5 * b @ a).T

    layer = Layer()
    given = [torch.randn(1, 4, 3) for _ in range(6)]

    def document(x: Tensor) -> Drawn:
        return lambda: ((layer(x).sin() + layer(2 * x)).square().sum(), 4)

    product = Product(a, b, 0.5, layer)
    [found] = diagonal(Matrices([product]), map(document, given), Single(), CPU)
    [expected] = diagonal(Parameters([weight]), map(document, given), Single(), CPU)
    assert torch.allclose(found, expected, rtol=1e-4)


def test_importance_has_mean_one_over_all_weights_together() -> None:
    made = normalised([torch.tensor([1.0, 3.0]), torch.tensor([[8.0]])])
    assert [each.tolist() for each in made] == [[0.25, 0.75], [[2.0]]]
    assert normalised([torch.zeros(2)])[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("strength", [1e-9, 0.7, 1e5])
def test_on_a_quadratic_it_ends_between_start_and_target_by_importance(strength: float) -> None:
    """The minimum of ½h(θ − t)² + ½λF(θ − θ₀)² is (ht + λFθ₀) / (h + λF); plain gradient descent, a step as training
    does it: gradients of sums over 7 tokens, which are divided last."""
    torch.manual_seed(0)
    start, target, curvature, importance = (torch.rand(6, dtype=torch.float64) + 0.1 for _ in range(4))
    weight = nn.Parameter(start.clone())
    term = WeightedDistance.of([weight], [importance], strength)
    pulled = strength * importance
    for _ in range(400):
        (7 * 0.5 * (curvature * (weight - target).square()).sum()).backward()  # type: ignore[no-untyped-call]
        term.add_gradients(7)
        with torch.no_grad():
            assert weight.grad is not None
            weight -= weight.grad / 7 / (curvature + pulled) * 0.5
            weight.grad = None
    assert torch.allclose(weight, (curvature * target + pulled * start) / (curvature + pulled), rtol=0, atol=1e-9)


def test_with_equal_importance_it_is_l2sp() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, dtype=torch.float64))
    a, b = nn.Parameter(torch.randn(2, 3, dtype=torch.float64)), nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
    product, ones = Product(a, b, 1.5, nn.Identity()), torch.ones(4, 3, dtype=torch.float64)
    pairs = (
        (WeightedDistance.of([weight], [ones], 0.3), DistanceOfWeights.of([weight], strength=0.3, place=Place())),
        (WeightedProducts(0.3, [(product, ones)]), DistanceOfProducts.of([product], strength=0.3, place=Place())),
    )
    with torch.no_grad():
        weight += 1.0
    for ewc, l2sp in pairs:
        assert float(ewc.value()) == pytest.approx(float(l2sp.value()), rel=1e-12)
        gradients = []
        for term in (ewc, l2sp):
            for each in (weight, a, b):
                each.grad = None
            term.add_gradients(11.0)
            gradients.append([each.grad for each in (weight, a, b) if each.grad is not None])
        assert all(torch.allclose(x, y, rtol=1e-12) for x, y in zip(*gradients, strict=True))


def test_on_products_the_gradient_is_that_of_the_definition() -> None:
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.randn(2, 3, dtype=torch.float64)), nn.Parameter(torch.randn(4, 2, dtype=torch.float64))
    importance = torch.rand(4, 3, dtype=torch.float64)
    plain = 0.35 * (importance * (1.5 * b @ a).square()).sum()
    term = WeightedProducts(0.7, [(Product(a, b, 1.5, nn.Identity()), importance)])
    assert float(term.value()) == pytest.approx(float(plain.detach()), rel=1e-12)
    expected = torch.autograd.grad(5 * plain, [a, b])
    term.add_gradients(5.0)
    for factor, gradient in zip((a, b), expected, strict=True):
        assert factor.grad is not None
        assert torch.allclose(factor.grad, gradient, rtol=1e-12)


def _weighed(folder: Path, knobs: Knobs, *, strength: float = 50.0) -> Run:
    return weighed(folder, make_run(folder, knobs), strength=strength)


@pytest.mark.parametrize("method", [FULL, LORA], ids=lambda m: m.type)
def test_importance_is_measured_once_and_a_resumed_run_is_the_same(method: Method, tmp_path: Path) -> None:
    knobs = Knobs(method=method, steps=6)
    whole = _weighed(tmp_path / "whole", knobs)
    state = whole.finish()
    told = [point.regularization["ewc"] for point in state.curve if point.regularization]
    assert told[0] == 0.0
    assert told[-1] > 0
    resumed = interrupted(lambda: _weighed(tmp_path / "cut", knobs), 3)
    [kept] = (tmp_path / "cut" / "fisher").iterdir()
    written = kept.stat().st_mtime_ns
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0
    assert kept.stat().st_mtime_ns == written
    _weighed(tmp_path / "cut", replace(knobs, method=LORA if method is FULL else FULL))
    assert len(list((tmp_path / "cut" / "fisher").iterdir())) == 2


def test_without_a_disk_it_is_measured_each_time(tmp_path: Path) -> None:
    run = make_run(tmp_path, Knobs())
    (tmp_path / "fisher").write_text("a file where the cache would be")
    assert weighed(tmp_path, run).trainer.regularization.names == ("ewc",)


def test_a_run_stays_nearer_to_its_start(tmp_path: Path) -> None:
    ends = []
    for strength in (1e-9, 100.0):
        state = _weighed(tmp_path / f"{strength}", Knobs(steps=8, rate=1e-2), strength=strength).finish()
        ends.append(next(p.regularization["ewc"] / strength for p in reversed(state.curve) if p.regularization))
    assert ends[1] < 0.5 * ends[0]


def test_measuring_changes_nothing_that_trains(tmp_path: Path) -> None:
    for method in (FULL, LORA):
        run = make_run(tmp_path / method.type, Knobs(method=method))
        disturb(run.attached)
        before = run.tensors()
        weighed(tmp_path / method.type, run)
        assert largest_difference(run.tensors(), before) == 0.0
        assert all(each.grad is not None and not each.grad.any() for each in run.attached.trainable.values())


@pytest.mark.parametrize("method", [FULL, LORA], ids=lambda m: m.type)
def test_what_it_holds_is_planned(method: Method) -> None:
    """Of trained weights their start and importance; of low-rank updates the importance of the matrices."""

    def weights(terms: Regularization) -> int:
        found = estimate(LLAMA_3B, method, precision="bfloat16", device="cuda", tokens=64, regularization=terms)
        return found.weights

    held = weights(Regularization(ewc=Ewc())) - weights(Regularization())
    assert held == (2 * 4 * trained_parameters(LLAMA_3B, FULL) if method is FULL else 4 * LLAMA_3B.packed)


def test_auto_does_not_choose_a_strategy_that_it_does_not_know() -> None:
    need = estimate(LLAMA_3B, LORA, precision="bfloat16", device="cuda", tokens=64)
    for terms, expected in ((Regularization(ewc=Ewc()), "ddp"), (Regularization(l2sp=L2Sp()), "fsdp")):
        assert choose(Strategy(), LORA, need=need, memory=need.total // 2, processes=2, terms=terms) == expected


def test_a_manifest_asks_for_it_and_half_of_the_general_text_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    tiny_model(tmp_path / "model")
    tiny_corpus(tmp_path, rows=24)
    general = write_jsonl(tmp_path / "general.jsonl", *({"prompt": "say ", "completion": f"{n}"} for n in range(40)))
    data = Data(
        train=(TrainSource(uri=f"file://{tmp_path}/train.jsonl"),),
        general=DataSource(uri=general),
        sequence_length=128,
    )
    training = Training(batch_size=4, max_steps=2)
    plan = plan_for(tmp_path, data=data, training=training, regularization=Regularization(ewc=Ewc(), l2sp=L2Sp()))
    output = open_folder(plan.spec.output.uri, prefix="")
    setup = prepare(plan, gang=Single(), device=CPU, output=output, run_dir=RunDir(tmp_path / "run"))
    assert setup.trainer.regularization.names == ("l2sp", "ewc")
    assert len(list((tmp_path / "cache" / "fisher").iterdir())) == 1
    assert setup.data.general is not None
    assert setup.data.replay is not None
    assert len(setup.data.general) + len(setup.data.replay) == 40
    state = setup.trainer.run(setup.trainer.checkpointer.resume(setup.trainer.weights).update(base={}))
    assert {key for point in state.curve for key in point.regularization or {}} == {"l2sp", "ewc"}
