"""AdamW with moments in 8 bits: what bytes stand for, errors that are bounded, AdamW's steps, an exact state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finetune_api.methods import Lora, Method
from finetune_api.spec import Optimizer
from finetune_trainer.parallel import adamw_8bit
from finetune_trainer.parallel.adamw_8bit import Codec, Codecs, Moments, block_of, tree
from finetune_trainer.parallel.flat_adamw import FlatAdamW
from tests.support.training import CPU, Knobs, largest_difference, make_run

SIGNED = Codec.of(signed=True, device=CPU)
UNSIGNED = Codec.of(signed=False, device=CPU)
TINY = torch.finfo(torch.float32).tiny
"""What is smaller has no digits left."""

ENDS = [
    # the numbers beside 0, and the last three: decades of 1 … 64 parts and of 2 … 128
    (True, [5.5e-07, 3.25e-06, 7.75e-06], [0.9789062, 0.9929688, 1.0]),
    (False, [3.25e-07, 7.75e-07, 2.125e-06], [0.9894531, 0.9964844, 1.0]),
]


@pytest.mark.parametrize(("signed", "first", "last"), ENDS, ids=["signed", "unsigned"])
def test_what_the_bytes_stand_for(signed: bool, first: list[float], last: list[float]) -> None:
    values = tree(signed=signed)
    assert len(values) == 256
    assert torch.equal(values, values.sort().values)
    assert values[values > 0][:3].tolist() == pytest.approx(first, rel=1e-6)
    assert values[-3:].tolist() == pytest.approx(last, rel=1e-6)
    assert (values < 0).sum() == (127 if signed else 0)
    assert (values == 0).sum() == 1


def test_they_are_those_of_bitsandbytes() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for signed in (True, False):
        torch.testing.assert_close(tree(signed=signed), functional.create_dynamic_map(signed), rtol=1e-6, atol=0)


def _back(codec: Codec, blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    codes = torch.zeros(blocks.shape, dtype=torch.uint8)
    scales = torch.zeros(len(blocks))
    codec.pack(blocks.clone(), codes, scales)
    return codec.unpack(codes, scales), codes, scales


def test_golden_bytes() -> None:
    """By hand: shares of the largest magnitude, 2, and the number of the nearest value."""
    back, codes, scales = _back(SIGNED, torch.tensor([[2.0, -2.0, 0.0, 1.0, -0.02, 2e-7]]))
    assert scales.tolist() == [2.0]
    assert codes.tolist() == [[255, 0, 127, 219, 96, 127]]
    assert back[0].tolist() == pytest.approx([2.0, -1.9859375, 0.0, 1.0015625, -0.0194375, 0.0], rel=1e-6)
    back, codes, _ = _back(UNSIGNED, torch.tensor([[2.0, 0.0, 1.0, 1e-9]]))
    assert codes.tolist() == [[255, 1, 183, 1]]  # nothing is rounded to zero
    assert back[0].tolist() == pytest.approx([2.0, 6.5e-07, 0.9945312, 6.5e-07], rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=64),
    st.integers(-100, 100),
)
def test_errors_are_half_of_the_gap_between_two_values(numbers: list[float], exponent: int) -> None:
    blocks = torch.tensor([numbers]) * 2.0**exponent
    for codec, content in ((SIGNED, blocks), (UNSIGNED, blocks.abs())):
        back, _, scales = _back(codec, content)
        assert torch.equal(scales, content.abs().amax(dim=1))
        shares = content / scales.clamp(min=TINY)[:, None]
        above = torch.searchsorted(codec.values, shares).clamp(1, 255)
        gaps = codec.values[above] - codec.values[above - 1]
        allowed = (gaps / 2 + shares.abs() * 2**-11) * scales[:, None]
        if codec is UNSIGNED:  # what is kept from zero
            allowed = allowed.clamp(min=float(codec.values[1]) * float(scales))
        assert ((back - content).abs() <= allowed * (1 + 1e-6) + TINY).all()


def test_values_of_a_decade_are_within_a_few_percent() -> None:
    torch.manual_seed(0)
    content = torch.rand(64, 256) * 0.9 + 0.1
    for codec, worst in ((SIGNED, 0.08), (UNSIGNED, 0.04)):
        back, _, _ = _back(codec, content)
        assert ((back - content) / content).abs().max() < worst


SHAPES = [
    ((4096,), 0, "a vector"),
    ((63, 64), 0, "fewer than 4096 elements"),
    ((64, 64), 64, "a row is a block"),
    ((8, 2048), 256, "eight blocks in a row"),
    ((192, 576), 192, "three"),
    ((896, 896), 224, "four"),
    ((576, 16), 16, "B of a LoRA of rank 16"),
    ((1024, 4), 0, "rows that are too short"),
    ((64, 257), 0, "a prime number of columns"),
    ((512, 1, 16), 16, "a convolution"),
]


@pytest.mark.parametrize(("shape", "block", "why"), SHAPES, ids=[row[2] for row in SHAPES])
def test_blocks_lie_inside_of_rows(shape: tuple[int, ...], block: int, why: str) -> None:
    assert block_of(torch.empty(shape, device="meta")) == block


def test_weights_in_16_bits_keep_their_moments() -> None:
    assert block_of(torch.empty(64, 64, dtype=torch.bfloat16)) == 0


def _network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, 96), nn.Tanh(), nn.LayerNorm(96), nn.Linear(96, 64))


def _fit(optimizer: Optimizer, steps: int, *, rate: float = 3e-3) -> tuple[nn.Module, list[float]]:
    """A small regression to another network."""
    network = _network()
    flat = FlatAdamW(dict(network.named_parameters()), weight_decay=0.1, optimizer=optimizer)
    torch.manual_seed(7)
    teacher, rows = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 64)), torch.randn(256, 48)
    wanted = teacher(rows).detach()
    losses = []
    for _ in range(steps):
        loss = (network(rows) - wanted).pow(2).sum()
        loss.backward()
        flat.step(rate, divisor=wanted.numel(), max_norm=1.0)
        losses.append(float(loss.detach()) / wanted.numel())
    return network, losses


def test_the_first_step_is_adamws() -> None:
    """Moments are rounded once they were used."""
    (packed, _), (whole, _) = _fit("adamw8bit", 1), _fit("adamw", 1)
    for mine, its in zip(packed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-6, atol=1e-7)


def test_a_hundred_steps_end_where_adamws_do() -> None:
    (_, packed), (_, whole) = _fit("adamw8bit", 100), _fit("adamw", 100)
    assert whole[-1] < 0.2 * whole[0]
    assert packed[-1] == pytest.approx(whole[-1], rel=0.02)


def test_what_is_done_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = _fit("adamw8bit", 3)
    monkeypatch.setattr(adamw_8bit, "_AT_ONCE", {"cpu": 200})
    parts, _ = _fit("adamw8bit", 3)
    assert all(torch.equal(mine, its) for mine, its in zip(parts.parameters(), whole.parameters(), strict=True))


def test_a_rank_without_rows_updates_nothing() -> None:
    moments = Moments(Codecs().on(CPU), size=0, block=64)
    moments.update(torch.empty(0), torch.empty(0), rate=1e-3, decay=0.1, step=1)
    assert not any(part.numel() for part in moments.tensors.values())


METHODS = [Method(type="full"), Method(type="lora", lora=Lora(rank=64))]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.type)
def test_a_checkpoint_has_the_bytes_and_goes_on_to_the_bit(tmp_path: Path, method: Method) -> None:
    knobs = Knobs(steps=6, method=method, hidden=64, checkpoint_steps=3, optimizer="adamw8bit")
    whole = make_run(tmp_path / "whole", knobs)
    whole.finish()

    class Died(Exception):
        pass

    cut = make_run(tmp_path / "cut", knobs)
    seed = cut.trainer._seed

    def dying(step: int, index: int) -> None:
        if step == 4:
            raise Died
        seed(step, index)

    object.__setattr__(cut.trainer, "_seed", dying)
    with pytest.raises(Died):
        cut.finish()
    cut.trainer.checkpointer.wait()
    resumed = make_run(tmp_path / "cut", knobs)
    assert resumed.start().step == 3
    resumed.finish()
    assert largest_difference(whole.tensors(), resumed.tensors()) == 0

    tensors = whole.tensors()
    packed = [name for name, tensor in tensors.items() if tensor.dtype is torch.uint8]
    assert len(packed) > 4
    for name in packed:
        weight = tensors[f"weights/{name.removeprefix('moments/').rpartition('.')[0]}"]
        assert tensors[name].shape == weight.shape
        assert tensors[f"{name}.scales"].shape == (len(weight), weight.shape[1] // block_of(weight))
