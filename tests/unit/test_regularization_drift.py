"""Activation drift: its value and gradients are those of the results that change, it ends where arithmetic says, and
its inputs are those of the untouched model on general text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finetune_api.methods import Lora, Method
from finetune_api.regularization import DRIFT_TOKENS, Drift, Regularization
from finetune_trainer.methods.base import Product
from finetune_trainer.planning.memory import estimate
from finetune_trainer.regularization.drift import ActivationDrift, Seen, shared
from finetune_trainer.train import activations
from tests.support.planning_models import LLAMA_3B
from tests.support.training import Knobs, disturb, held, interrupted, largest_difference, make_run

LORA = Method(type="lora", lora=Lora(rank=4))
TOKENS, INPUTS, OUTPUTS, RANK = 40, 6, 5, 5


def _product(scale: float = 1.5) -> Product:
    torch.manual_seed(0)
    a = nn.Parameter(torch.randn(RANK, INPUTS, dtype=torch.float64))
    b = nn.Parameter(torch.randn(OUTPUTS, RANK, dtype=torch.float64))
    return Product(a, b, scale, nn.Identity())


def _seen(*, size: float = 3.0) -> Seen:
    torch.manual_seed(1)
    stretched = torch.randn(TOKENS, INPUTS, dtype=torch.float64) * torch.tensor([3.0, 2, 1, 0.5, 0.1, 0])
    return Seen(stretched, torch.tensor(size, dtype=torch.float64))


def _plainly(product: Product, seen: Seen) -> Tensor:
    """E‖ΔW x‖² / E‖W x‖², one input after another."""
    update = product.scale * product.b @ product.a
    return torch.stack([(update @ x).square().sum() for x in seen.inputs]).mean() / seen.size


def test_value_and_gradients_are_those_of_the_results_that_change() -> None:
    product, seen = _product(), _seen()
    term = ActivationDrift(4.0, 2, [(product, seen)])
    expected = 0.5 * 4.0 * _plainly(product, seen) / 2
    assert float(term.value()) == pytest.approx(float(expected), rel=1e-12)
    wanted = torch.autograd.grad(7 * expected, [product.a, product.b])
    term.add_gradients(7.0)
    for parameter, gradient in zip((product.a, product.b), wanted, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, rtol=1e-10)


def test_on_a_linear_layer_it_ends_between_no_update_and_the_target_direction_by_direction() -> None:
    """The minimum of ½‖Δ − T‖² + ½λ tr(ΔCΔᵀ) is T(I + λC)⁻¹: where general text has no inputs it is T."""
    product, seen, strength = _product(), _seen(), 6.0
    target = torch.randn(OUTPUTS, INPUTS, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    term = ActivationDrift(strength, 1, [(product, seen)])
    optimizer = torch.optim.LBFGS([product.a, product.b], max_iter=4000, tolerance_grad=1e-12, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * (product.scale * product.b @ product.a - target).square().sum()
        loss.backward()
        term.add_gradients(1.0)
        return loss.detach() + term.value()

    optimizer.step(closure)
    second_moment = seen.inputs.T @ seen.inputs / TOKENS
    weight = strength / float(seen.size)
    expected = target @ torch.linalg.inv(torch.eye(INPUTS, dtype=torch.float64) + weight * second_moment)
    found = (product.scale * product.b @ product.a).detach()
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[:, -1], target[:, -1], atol=1e-5)
    assert found[:, 0].abs().max() < 0.1 * target[:, 0].abs().max()


def test_equal_inputs_are_kept_once() -> None:
    first, other = torch.randn(4, 3), torch.randn(4, 3)
    found = shared([first, first.clone(), other, torch.zeros(4, 2), other.clone(), torch.zeros(4, 3)])
    assert found[1] is first
    assert found[4] is other
    assert len({id(each) for each in found}) == 4


def test_a_run_is_held_by_what_the_untouched_model_makes_of_general_text(tmp_path: Path) -> None:
    run = held(tmp_path, make_run(tmp_path, Knobs(method=LORA)))
    [term] = run.trainer.regularization.penalties
    assert isinstance(term, ActivationDrift)
    assert float(term.value()) == 0
    assert term.matrices == len(term.held) == 14
    layers = {product.layer: seen for product, seen in term.held}
    for layer, seen in layers.items():
        exact = seen.inputs @ layer.get_base_layer().weight.T  # type: ignore[operator]
        assert float(seen.size) == pytest.approx(float(exact.square().sum(dim=1).mean()), rel=1e-4)
    assert len({id(seen.inputs) for seen in layers.values()}) == 8, "4 inputs in each of 2 blocks"
    disturb(run.attached)
    assert float(term.value()) > 0


def test_the_next_attempt_has_the_activations_from_the_cache_and_another_text_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terms() -> list[Tensor]:
        [term] = held(tmp_path, make_run(tmp_path, Knobs(method=LORA))).trainer.regularization.penalties
        assert isinstance(term, ActivationDrift)
        return [tensor for _, seen in term.held for tensor in (seen.inputs, seen.size)]

    first = terms()
    [file] = (tmp_path / "drift").iterdir()
    monkeypatch.setattr(activations.Activations, "_measured", None)
    again = terms()
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    whole = file.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1]):  # the node went down before its disk had all
        file.write_bytes(damaged)
        with pytest.raises(TypeError):
            terms()
    file.unlink()
    with pytest.raises(TypeError):
        terms()


def test_a_run_that_was_resumed_is_one_that_was_not_and_it_stays_nearer_than_without(tmp_path: Path) -> None:
    whole = held(tmp_path / "whole", make_run(tmp_path / "whole", Knobs(method=LORA)))
    state = whole.finish()
    assert all(point.regularization is not None for point in state.curve)
    resumed = interrupted(lambda: held(tmp_path / "cut", make_run(tmp_path / "cut", Knobs(method=LORA))), 4)
    resumed.finish()
    assert largest_difference(resumed.tensors(), whole.tensors()) == 0
    [term] = whole.trainer.regularization.penalties
    free = make_run(tmp_path / "free", Knobs(method=LORA))
    [other] = held(tmp_path / "free", free).trainer.regularization.penalties
    free.finish()
    assert isinstance(other, ActivationDrift)
    assert float(term.value()) < 0.5 * float(other.value())


def test_the_plan_has_the_activations_in_memory() -> None:
    terms = Regularization(drift=Drift())
    plain, with_drift = (
        estimate(LLAMA_3B, LORA, precision="bfloat16", device="cuda", tokens=1024, regularization=each)
        for each in (Regularization(), terms)
    )
    more = 4 * DRIFT_TOKENS * LLAMA_3B.layers * (3 * LLAMA_3B.hidden + LLAMA_3B.intermediate)
    assert with_drift.weights - plain.weights == more
    assert replace(with_drift, weights=plain.weights) == plain
