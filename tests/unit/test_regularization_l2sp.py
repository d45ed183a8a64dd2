"""L2-SP: the pull ends where arithmetic says, on weights and on low-rank updates, and starts from the base whatever the
attempt starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_api.methods import TRAITS, Adapter, Lora, Method
from finetune_api.regularization import TERMS, L2Sp, Regularization
from finetune_trainer.methods.base import Product, UpdatesByProducts
from finetune_trainer.methods.registry import method_of
from finetune_trainer.planning.memory import estimate, trained_parameters
from finetune_trainer.planning.spread import Spread
from finetune_trainer.regularization.base import Penalty
from finetune_trainer.regularization.l2sp import DistanceOfProducts, DistanceOfWeights
from tests.support.planning_models import LLAMA_3B
from tests.support.training import BASE, Knobs, Place, disturb, interrupted, largest_difference, make_run, network

FULL = Method(type="full")
LORA = Method(type="lora", lora=Lora(rank=4))
ADAPTER = Method(type="adapter", adapter=Adapter(bottleneck=8))
ONE, TOKENS = Place(), 7.0


def _descend(weights: list[nn.Parameter], loss: Callable[[], Tensor], term: Penalty, steps: int, rate: float) -> None:
    """Plain gradient descent as a step does it: gradients of sums over tokens, which are divided last."""
    for _ in range(steps):
        (TOKENS * loss()).backward()  # type: ignore[no-untyped-call]
        term.add_gradients(TOKENS)
        with torch.no_grad():
            for weight in weights:
                assert weight.grad is not None
                weight -= rate * weight.grad / TOKENS
                weight.grad = None


@pytest.mark.parametrize("strength", [1e-9, 0.5, 3.0, 1e6])
def test_on_a_quadratic_it_ends_between_start_and_target(strength: float) -> None:
    """The minimum of ½h(θ − t)² + ½α(θ − θ₀)² is (ht + αθ₀) / (h + α)."""
    torch.manual_seed(0)
    start, target = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    curvature = torch.rand(6, dtype=torch.float64) + 0.5
    weight = nn.Parameter(start.clone())
    term = DistanceOfWeights.of([weight], strength=strength, place=ONE)
    loss = lambda: 0.5 * (curvature * (weight - target).square()).sum()  # noqa: E731
    _descend([weight], loss, term, steps=200, rate=1 / (1.5 + strength))
    expected = (curvature * target + strength * start) / (curvature + strength)
    assert torch.allclose(weight, expected, rtol=0, atol=1e-9)
    assert float(term.value()) == pytest.approx(0.5 * strength * float((expected - start).square().sum()), rel=1e-6)


def test_on_a_low_rank_update_it_shrinks_the_product_and_not_the_factors() -> None:
    """The minimum of ½‖sBA − T‖² + ½α‖sBA‖² is T / (1 + α) for a T of that rank, whatever the factors are."""
    torch.manual_seed(0)
    scale, strength = 1.5, 0.6
    target = torch.randn(5, 2, dtype=torch.float64) @ torch.randn(2, 4, dtype=torch.float64)
    a, b = (nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((2, 4), (5, 2)))
    term = DistanceOfProducts.of([Product(a, b, scale, nn.Identity())], strength=strength, place=ONE)
    _descend([a, b], lambda: 0.5 * (scale * b @ a - target).square().sum(), term, steps=3000, rate=0.02)
    assert torch.allclose(scale * b @ a, target / (1 + strength), rtol=0, atol=1e-8)


def test_traces_are_the_norm_of_the_product_and_have_its_gradient() -> None:
    torch.manual_seed(0)
    products = [
        Product(
            nn.Parameter(torch.randn(3, n, dtype=torch.float64)),
            nn.Parameter(torch.randn(m, 3, dtype=torch.float64)),
            scale,
            nn.Identity(),
        )
        for m, n, scale in ((6, 5, 2.0), (4, 9, 0.25))
    ]
    term = DistanceOfProducts.of(products, strength=0.7, place=ONE)
    plain = 0.35 * torch.stack([(p.scale * p.b @ p.a).square().sum() for p in products]).sum()
    assert float(term.value()) == pytest.approx(float(plain.detach()), rel=1e-14)
    factors = [factor for p in products for factor in (p.a, p.b)]
    expected = torch.autograd.grad(11.0 * plain, factors)
    term.add_gradients(11.0)
    for factor, gradient in zip(factors, expected, strict=True):
        assert factor.grad is not None
        assert torch.allclose(factor.grad, gradient, rtol=1e-12)


@pytest.mark.parametrize("method", [FULL, LORA, ADAPTER], ids=lambda m: m.type)
def test_of_ranks_that_all_hold_the_weights_one_adds_the_term(method: Method, tmp_path: Path) -> None:
    run = make_run(tmp_path, Knobs(method=method, l2sp=2.0))
    disturb(run.attached)
    terms = [_term(run.attached, Place(rank, rank, 3, 3)) for rank in range(3)]
    before = [each.grad.clone() for each in run.attached.trainable.values() if each.grad is not None]
    values = [float(term.value()) for term in terms]
    terms[1].add_gradients(5.0)
    after = [each.grad for each in run.attached.trainable.values()]
    assert values[1:] == [0.0, 0.0]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True) if y is not None)


def _term(attached: object, place: Place) -> Penalty:
    if isinstance(attached, UpdatesByProducts):
        return DistanceOfProducts.of(attached.products(), strength=1.0, place=place)
    return DistanceOfWeights.of(attached.trainable.values(), strength=1.0, place=place)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [FULL, LORA, ADAPTER], ids=lambda m: m.type)
def test_a_run_begins_at_zero_and_stays_nearer_to_its_start(method: Method, tmp_path: Path) -> None:
    ends = []
    for strength in (1e-9, 30.0):
        state = make_run(tmp_path / f"{strength}", Knobs(method=method, steps=10, rate=1e-2, l2sp=strength)).finish()
        told = [point.regularization["l2sp"] / strength for point in state.curve if point.regularization]
        assert told[0] == 0.0
        ends.append(told[-1])
    assert ends[1] < 0.5 * ends[0]


def test_a_resumed_run_is_pulled_to_the_first_start_and_not_to_its_own(tmp_path: Path) -> None:
    for method in (FULL, LORA):
        knobs = Knobs(method=method, steps=6, l2sp=5.0)
        whole = make_run(tmp_path / f"{method.type}-whole", knobs)
        whole.finish()
        folder = tmp_path / f"{method.type}-cut"
        resumed = interrupted(lambda folder=folder, knobs=knobs: make_run(folder, knobs), 3)  # type: ignore[misc]
        resumed.finish()
        assert largest_difference(resumed.tensors(), whole.tensors()) == 0.0


def test_methods_that_update_by_products_alone_say_so() -> None:
    """Those of low rank, without dora, whose magnitudes train as well; every other one that is allowed trains weights
    that begin as the base model's."""
    for name, traits in TRAITS.items():
        if not traits.steps or traits.four_bits:
            continue
        method = Method.model_validate({"type": name})
        method = method.settled(1) if method.is_open else method
        attached = method_of(method).attach(network(), seed=1, base=BASE)
        assert isinstance(attached, UpdatesByProducts) == (traits.low_rank and traits.scalable), name
    allowed = TERMS["l2sp"].methods or ()
    assert set(TRAITS) - set(allowed) == {"dora", "prompt", "ptuning", "prefix", "probe"}


@pytest.mark.parametrize(("method", "share"), [(FULL, 1), (LORA, 0), (ADAPTER, 1)], ids=lambda x: getattr(x, "type", x))
def test_the_copy_of_the_start_is_planned(method: Method, share: int) -> None:
    """Four bytes of each parameter that trains, and of shards those that a rank has."""

    def weights(terms: Regularization, spread: Spread) -> int:
        found = estimate(
            LLAMA_3B, method, precision="bfloat16", device="cuda", tokens=64, spread=spread, regularization=terms
        )
        return found.weights

    pulled = Regularization(l2sp=L2Sp())
    for ranks in (1, 4) if method is FULL else (1,):
        spread = Spread(strategy="fsdp", ranks=ranks)
        copy = weights(pulled, spread) - weights(Regularization(), spread)
        assert copy == pytest.approx(share * 4 * trained_parameters(LLAMA_3B, method) / ranks, abs=1)
