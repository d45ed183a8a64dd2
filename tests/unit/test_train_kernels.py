"""Optional kernels: what is offered where, what is proved before it is used, and how documents reach it.

There is no GPU here. Kernels in plain torch stand in for those of others, and take the same ways.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune_trainer.data.pack import MicroBatch
from finetune_trainer.kernels import attention, choose, loss, proof, race
from finetune_trainer.kernels.chosen import Kernels
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.record import AttemptRecord
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import open_folder
from finetune_trainer.train.below import find_below
from finetune_trainer.train.finish import computed_otherwise
from finetune_trainer.train.kernels import Choice
from finetune_trainer.train.loss import trained_cross_entropy
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.train.recompute import recompute_blocks
from finetune_trainer.transfer.evaluate import Layout, answer_nats
from tests import kernel_doubles as doubles
from tests.train_helpers import (
    CPU,
    JOB,
    LENGTHS,
    Knobs,
    Run,
    cross_entropy_of_trained,
    documents,
    interrupted,
    largest_difference,
    make_run,
    model,
    network,
)

INSTALLED = {"torch": "2.13.0", "flash-attn": "2.8.3", "flash-attn-3": "3.0.0", "liger-kernel": "0.8.5"}
H100 = choose.Machine("cuda", (9, 0), INSTALLED)
A100 = replace(H100, capability=(8, 0))
BARE = replace(H100, installed={"torch": "2.13.0"})
PACKED = choose.Job("lora", "bfloat16", packing=True, compiled=False)

ATTENTION = [
    ("Hopper, all installed", H100, PACKED, ("flash-attn-3", "flash-attn", "torch"), ""),
    ("Ampere", A100, PACKED, ("flash-attn", "torch"), ""),
    ("Blackwell", replace(H100, capability=(12, 0)), PACKED, ("flash-attn", "torch"), ""),
    ("nothing but torch", BARE, PACKED, ("torch",), ""),
    ("an old package", replace(A100, installed={**INSTALLED, "flash-attn": "2.3.6"}), PACKED, ("torch",), ""),
    ("an old GPU", replace(H100, capability=(7, 5)), PACKED, (), "older than compute capability 8.0"),
    ("a CPU", choose.Machine("cpu", (0, 0), INSTALLED), PACKED, (), ""),
    ("switched off", H100, replace(PACKED, wish="reference"), (), ""),
    ("float32", H100, replace(PACKED, dtype="float32"), (), "knows no float32"),
    ("rows apart", H100, replace(PACKED, packing=False), (), "one document a row"),
    ("compiled", H100, replace(PACKED, compiled=True), (), "blocks are compiled"),
    ("prefix", H100, replace(PACKED, method="prefix"), (), "masks of its own"),
    ("probe", H100, replace(PACKED, method="probe"), (), "makes no steps"),
    ("capped scores", H100, replace(PACKED, attention="eager"), (), "the model needs eager"),
]

LOSS = [
    ("installed", H100, PACKED, ("liger-kernel",), ""),
    ("an older GPU", replace(H100, capability=(7, 5)), PACKED, ("liger-kernel",), ""),
    ("missing", BARE, PACKED, (), "liger-kernel is not installed"),
    ("old", replace(H100, installed={"liger-kernel": "0.5.10"}), PACKED, (), "0.5.10 is older than 0.8"),
    ("capped logits", H100, replace(PACKED, fused_head=False), (), "more than one matrix"),
    ("probe", H100, replace(PACKED, method="probe"), (), "makes no steps"),
    ("switched off", H100, replace(PACKED, wish="reference"), (), ""),
    ("a CPU", choose.Machine("cpu", (0, 0), INSTALLED), PACKED, (), ""),
]


@pytest.mark.parametrize(
    ("machine", "job", "kernels", "because"), [row[1:] for row in ATTENTION], ids=[row[0] for row in ATTENTION]
)
def test_what_attention_is_offered(
    machine: choose.Machine, job: choose.Job, kernels: tuple[str, ...], because: str
) -> None:
    offer = choose.attention(machine, job)
    assert offer.kernels == kernels
    assert because in offer.because
    assert bool(offer.because) == bool(because)


@pytest.mark.parametrize(
    ("machine", "job", "kernels", "because"), [row[1:] for row in LOSS], ids=[row[0] for row in LOSS]
)
def test_what_loss_is_offered(machine: choose.Machine, job: choose.Job, kernels: tuple[str, ...], because: str) -> None:
    offer = choose.loss(machine, job)
    assert offer.kernels == kernels
    assert because in offer.because
    assert bool(offer.because) == bool(because)


def test_starts_are_those_of_all_documents_row_after_row_with_padding() -> None:
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    assert attention.starts(positions).tolist() == [[[[0, 3, 5, 7, 10]]]]
    (batch,) = Layout(max_tokens=200, sequence_length=32, packing=True, pad_id=0).batches(
        documents([20, 12, 9, 30]), np.arange(4)
    )
    found = attention.starts(batch.positions).ravel()
    assert found[-1] == batch.tokens.size
    for start, end in pairwise(found):
        assert len(set(batch.segments.ravel()[start:end])) == 1


LAYOUT = Layout(max_tokens=96, sequence_length=32, packing=True, pad_id=0)
KINDS = ["Llama", "Qwen2", "GPTNeoX", "GPT2", "windows"]


def _network(kind: str) -> nn.Module:
    return network("Mistral", sliding_window=5) if kind == "windows" else network(kind)


def _counted(calls: list[int]) -> Callable[..., Tensor]:
    def kernel(*parts: Tensor, **given: Any) -> Tensor:
        calls.append(len(parts[3]) - 1)
        return doubles.varlen(*parts, **given)

    return kernel


def _learned(scorer: LanguageModel, batches: list[MicroBatch]) -> tuple[Tensor, list[Tensor]]:
    scorer.network.zero_grad()
    total = torch.stack([scorer.nats(batch) for batch in batches]).sum()
    total.backward()
    return total.detach(), [p.grad.clone() for p in scorer.network.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_through_boundaries_have_the_loss_and_gradients_of_separate_ones(kind: str) -> None:
    """Several rows at once, several documents in each, and padding."""
    net, calls = _network(kind), list[int]()
    corpus, rows = documents(LENGTHS), np.arange(len(LENGTHS))
    apart = _learned(model(net), replace(LAYOUT, packing=False).batches(corpus, rows))
    packed = LAYOUT.batches(corpus, rows)
    assert any(batch.tokens.shape[0] > 1 and len(batch.documents) > batch.tokens.shape[0] for batch in packed)
    attention.install(net, "double", _counted(calls))
    together = _learned(model(net), packed)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=2e-4)
    assert max(calls) > 4


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_leaks_through_boundaries(kind: str) -> None:
    net = _network(kind)
    attention.install(net, "double", doubles.varlen)
    (batch,) = replace(LAYOUT, max_tokens=200).batches(documents([9, 8, 7, 30]), np.arange(4))
    embedded = net.get_input_embeddings()(torch.from_numpy(batch.tokens)).detach().requires_grad_()
    states = net.base_model(
        inputs_embeds=embedded,
        position_ids=torch.from_numpy(batch.positions),
        attention_mask=torch.from_numpy(attention.starts(batch.positions)),
        use_cache=False,
    ).last_hidden_state
    one = torch.from_numpy(batch.segments == 2)
    (gradient,) = torch.autograd.grad(states[one][:, 0].sum(), embedded)
    assert gradient[one].any()
    assert not gradient[~one].any()


def test_masks_of_pairs_and_plain_calls_go_the_old_way() -> None:
    """Answers that share a prompt, and readers of hidden states that know of no boundaries."""
    net, other = network(), network()
    attention.install(net, "double", doubles.raising)
    prompts, answers = [np.array([5, 6, 7]), np.array([8, 9])], (np.array([11, 12]), np.array([13]))
    assert np.array_equal(answer_nats(model(net), prompts, answers), answer_nats(model(other), prompts, answers))
    tokens, positions = torch.arange(6)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    assert torch.equal(*(n(input_ids=tokens, position_ids=positions, use_cache=False).logits for n in (net, other)))


def test_blocks_that_run_again_and_layers_that_are_left_out_go_by_the_same_boundaries() -> None:
    corpus = documents(LENGTHS)
    (batch, *_) = LAYOUT.batches(corpus, np.arange(len(LENGTHS)))
    plain, again = network(layers=3), network(layers=3)
    for net in (plain, again):
        attention.install(net, "double", doubles.varlen)
        net.train()
    recompute_blocks(again, lowest=0)
    for left, right in zip(_learned(model(plain), [batch])[1], _learned(model(again), [batch])[1], strict=True):
        assert torch.equal(left, right)
    below = find_below(plain, 2, CPU)
    assert below is not None
    scorer = replace(model(plain), below=below)
    states = scorer.states(batch).numpy()
    assert torch.equal(scorer.nats(replace(batch, states=states)), scorer.nats(batch))


WRONG = [
    (doubles.leaky, "its output is off by"),
    (doubles.raising, "it failed: RuntimeError: FlashAttention only supports Ampere GPUs or newer."),
    (doubles.not_a_number, "its output is not finite"),
    (doubles.forgetful, "its gradient of keys is off by 0.5"),
    (doubles.a_little_more, "its output is off by 0.01"),
    (doubles.ignoring_windows, "its output is off by"),
    (doubles.ignoring_the_scale, "its output is off by"),
]
HEADS = proof.Heads(4, 2, 16)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_right_attention_is_proved(dtype: torch.dtype) -> None:
    for heads in (HEADS, proof.Heads(3, 3, 8)):
        assert proof.attention_fault(doubles.varlen, heads, dtype=dtype, device=CPU) == ""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kernel", "words"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_wrong_attention_is_found_out(kernel: attention.Kernel, words: str, dtype: torch.dtype) -> None:
    fault = proof.attention_fault(kernel, HEADS, dtype=dtype, device=CPU)
    assert fault.startswith(words.removesuffix("0.01") if dtype is torch.bfloat16 else words)


def _loss_fault(kernel: loss.Loss, dtype: torch.dtype, stored: torch.dtype, *, trains_head: bool = True) -> str:
    return proof.loss_fault(
        kernel, dim=48, vocabulary=500, trains_head=trains_head, dtype=dtype, stored=stored, device=CPU
    )


PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
]
WRONG_LOSSES = [
    (doubles.averaging, "its loss is off by 0.98"),
    (doubles.training_masked, "its gradient of states is not zero where nothing is trained"),
    (doubles.right_by_value_only, "its gradient of states is off by 1"),
    (doubles.freezing_the_head, "its gradient of the head is off by 0.5"),
    (doubles.raising, "it failed: RuntimeError"),
]


@pytest.mark.parametrize(("dtype", "stored"), PRECISIONS, ids=["float32", "bfloat16", "autocast"])
def test_right_losses_are_proved_and_wrong_ones_found_out(dtype: torch.dtype, stored: torch.dtype) -> None:
    for right in (doubles.cross_entropy, cross_entropy_of_trained):
        assert _loss_fault(right, dtype, stored) == ""
        assert _loss_fault(right, dtype, stored, trains_head=False) == ""
    for kernel, words in WRONG_LOSSES:
        assert _loss_fault(kernel, dtype, stored).startswith(words)


def test_a_loss_learns_by_its_kernel_and_evaluates_without() -> None:
    calls: list[int] = []

    def kernel(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        calls.append(len(targets))
        return doubles.cross_entropy(hidden, weight, targets)

    net = network()
    (batch,) = replace(LAYOUT, max_tokens=200).batches(documents([9, 8, 7]), np.arange(3))
    summed = loss.with_gradients(kernel, trained_cross_entropy)
    scorer = replace(model(net), kernels=Kernels(loss="double", summed=summed))
    wanted, gradients = _learned(model(net), [batch])
    got, theirs = _learned(scorer, [batch])
    torch.testing.assert_close((got, theirs), (wanted, gradients), rtol=1e-4, atol=1e-5)
    assert calls == [batch.target_count]
    with torch.no_grad():
        assert float(scorer.nats(batch)) == float(model(net).nats(batch))
    nothing = replace(batch, targets=np.full_like(batch.targets, -100))
    scorer.nats(nothing).backward()
    assert calls == [batch.target_count]


def test_a_run_on_kernels_learns_what_one_without_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    def made(folder: str) -> Run:
        run = make_run(tmp_path / folder, Knobs(steps=6))
        attention.install(run.net, "double", doubles.varlen)
        summed = loss.with_gradients(doubles.cross_entropy, trained_cross_entropy)
        return replace(
            run, trainer=replace(run.trainer, model=replace(run.trainer.model, kernels=Kernels("a", "b", summed)))
        )

    plain, whole = make_run(tmp_path / "plain", Knobs(steps=6)), made("whole")
    losses = [point.loss for point in plain.finish().curve]
    assert [point.loss for point in whole.finish().curve] == pytest.approx(losses, rel=1e-5)
    again = interrupted(lambda: made("stopped"), 3)
    again.finish()
    assert largest_difference(again.tensors(), whole.tensors()) == 0.0


@dataclass
class Desk:
    """A choice on a machine that claims to be an A100, with doubles for kernels, and what was said."""

    patch: pytest.MonkeyPatch
    kernels: dict[str, Any]
    net: nn.Module = field(default_factory=lambda: network().to(torch.bfloat16))
    ratio: float = 0.5
    strategy: Any = field(default_factory=Single)
    said: list[str] = field(default_factory=list)
    installed: dict[str, str] = field(default_factory=lambda: dict(INSTALLED))

    def made(self, store: CheckpointStore | None = None, **job: Any) -> Kernels:
        for name, kernel in self.kernels.items():
            table = loss.KERNELS if name == "liger-kernel" else attention.KERNELS
            self.patch.setitem(table, name, kernel)  # type: ignore[call-overload]
        timed = iter([self.ratio, 1.0] * 8)
        choice = Choice(
            network=self.net,
            job=replace(PACKED, **job),
            machine=replace(A100, installed=self.installed),
            device=CPU,
            autocast=None,
            strategy=self.strategy,
            say=self.said.append,
            seconds=lambda work: (work(), next(timed))[1],
        )
        return choice.made(lambda: LAYOUT.batches(documents(LENGTHS), np.arange(len(LENGTHS)))[0], store)


def _store(folder: Path) -> CheckpointStore:
    return CheckpointStore(open_folder(f"file://{folder}", prefix=""), JOB)


RIGHT = {"flash-attn": doubles.varlen, "torch": doubles.varlen, "liger-kernel": doubles.cross_entropy}


def test_what_is_right_and_faster_is_used_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, RIGHT)
    chosen = desk.made()
    assert (chosen.attention, chosen.loss) == ("flash-attn 2.8.3", "liger-kernel 0.8.5")
    assert chosen.summed is not None
    assert desk.said == []
    line = replace(model(desk.net), kernels=chosen).describe(reasons=True)
    assert "attention flash-attn 2.8.3, loss liger-kernel 0.8.5, documents share rows" in line
    assert "flash" not in attention.named(desk.net)


@pytest.mark.parametrize("kernel", [row[0] for row in WRONG if row[0] is not doubles.ignoring_the_scale])
def test_what_is_wrong_is_dropped_and_the_next_one_tried(
    monkeypatch: pytest.MonkeyPatch, kernel: attention.Kernel
) -> None:
    desk = Desk(monkeypatch, {**RIGHT, "flash-attn": kernel})
    assert desk.made().attention == "torch 2.13.0"
    (line,) = desk.said
    assert line.startswith("attention is not computed by flash-attn 2.8.3: it")


def test_where_none_is_right_the_reference_goes_on_and_the_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, dict.fromkeys(RIGHT, doubles.raising))
    chosen = desk.made()
    assert (chosen.attention, chosen.loss, chosen.summed) == ("", "", None)
    assert attention.named(desk.net) == "sdpa"
    assert len(desk.said) == 3
    line = replace(model(desk.net), kernels=chosen).describe(reasons=True)
    assert "attention sdpa (torch 2.13.0: it failed: RuntimeError" in line
    assert "loss fused (liger-kernel 0.8.5: it failed" in line
    assert "(" not in replace(model(desk.net), kernels=chosen).describe()


def test_what_gains_nothing_here_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(monkeypatch, RIGHT, ratio=1.2)
    assert desk.made() == Kernels(
        reasons=(
            "torch 2.13.0: it takes 1.20 of the reference's time here",
            "liger-kernel 0.8.5: it takes 1.20 of the reference's time here",
        )
    )
    assert attention.named(desk.net) == "sdpa"


def test_a_kernel_that_works_alone_and_not_in_the_network_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout in attention, which would be left out; found by a pass in training mode."""
    net = network(attention_dropout=0.1).to(torch.bfloat16)
    desk = Desk(monkeypatch, RIGHT, net=net)
    assert "the model's attention has dropout" in desk.made().reasons[0]
    assert attention.named(net) == "sdpa"
    assert not net.training


def test_a_network_whose_attention_cannot_be_exchanged_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network().to(torch.bfloat16)
    monkeypatch.setattr(net, "set_attn_implementation", lambda _: None)
    assert "cannot be exchanged" in Desk(monkeypatch, RIGHT, net=net).made().reasons[0]


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: network("Mistral", sliding_window=5), ""),
        (lambda: network("Qwen2", use_sliding_window=True, sliding_window=5, max_window_layers=1), ""),
        (
            lambda: _untold(network("Qwen2", use_sliding_window=True, sliding_window=4096, max_window_layers=1)),
            "does not tell it of its windows",
        ),
        (lambda: _untold(network(), attention_chunk_size=8192), "the model has layers with chunked attention"),
        (
            lambda: _untold(network(), layer_types=["full_attention", "linear_attention"]),
            "layers with linear_attention",
        ),
    ],
    ids=["all layers", "some layers", "a window in masks alone", "chunks", "other layers"],
)
def test_what_a_layer_sees_must_reach_the_kernel(
    monkeypatch: pytest.MonkeyPatch, net: Callable[[], nn.Module], words: str
) -> None:
    """Windows are longer than what is tried in the network, so it is asked whether kernels are told of them."""
    chosen = Desk(monkeypatch, RIGHT, net=net().to(torch.bfloat16)).made()
    assert words in chosen.reasons[0]
    assert bool(chosen.attention) != bool(words)


def _untold(net: nn.Module, **changes: Any) -> nn.Module:
    for layer in net.model.layers:
        layer.self_attn.sliding_window = None
    for name, value in changes.items():
        setattr(net.config, name, value)
    return net


class Two(Single):
    """Beside a rank that refuses everything."""

    def sum_counters(self, counters: Any) -> list[float]:
        return [counter + 1 for counter in counters]


def test_what_one_rank_refuses_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = Desk(monkeypatch, RIGHT, strategy=Two()).made()
    assert (chosen.attention, chosen.loss) == ("", "")
    assert "refused on another rank" in chosen.reasons[0]


def test_switched_off_nothing_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert Desk(monkeypatch, dict.fromkeys(RIGHT, doubles.raising)).made(store, wish="reference") == Kernels()
    assert store.noted("kernels") is None


def test_a_later_attempt_takes_the_kernels_of_the_first_or_the_reference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = _store(tmp_path)
    first = Desk(monkeypatch, {**RIGHT, "flash-attn": doubles.leaky}).made(store)
    assert first.attention == "torch 2.13.0"
    assert store.noted("kernels") == {"attention": "torch 2.13.0", "loss": "liger-kernel 0.8.5"}
    # flash-attn has been mended, and nothing is raced again.
    again = Desk(monkeypatch, RIGHT, ratio=9.0).made(store)
    assert (again.attention, again.loss) == (first.attention, first.loss)
    newer = Desk(monkeypatch, RIGHT, installed={**INSTALLED, "torch": "2.13.1", "liger-kernel": "0.9.0"}).made(store)
    assert (newer.attention, newer.loss) == ("", "")
    assert newer.reasons == ("this run began with torch 2.13.0", "this run began with liger-kernel 0.8.5")


def test_a_run_that_began_with_the_reference_stays_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store = _store(tmp_path)
    Desk(monkeypatch, dict.fromkeys(RIGHT, doubles.raising)).made(store)
    again = Desk(monkeypatch, RIGHT).made(store)
    assert again == Kernels(reasons=("this run began with the reference",) * 2)


def test_what_was_not_there_at_first_is_not_taken_later(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, bare = _store(tmp_path), {"torch": "2.13.0"}
    first = Desk(monkeypatch, RIGHT, installed=bare).made(store, packing=False)
    assert first == Kernels(reasons=("one document a row", "liger-kernel is not installed"))
    assert Desk(monkeypatch, RIGHT).made(store) == Kernels(reasons=("this run began with the reference",) * 2)


def test_torchs_own_kernel_is_called_as_it_wants_to_be() -> None:
    """Its operator is known to fake tensors, forwards and backwards, without a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        query, key, value = (torch.randn(10, n, 16, dtype=torch.bfloat16, requires_grad=True) for n in (4, 2, 2))
        starts = torch.zeros(3, dtype=torch.int32)
        for window in (None, 3):
            seen = attention.by_torch(query, key, value, starts, longest=6, scale=0.25, window=window)
            assert seen.shape == query.shape
            gradients = torch.autograd.grad(seen.sum(), (query, key, value))
            assert [g.shape for g in gradients] == [query.shape, key.shape, value.shape]


def flash_attn_2(  # the arguments of flash-attn 2.8
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, alibi_slopes: Any = None,
    deterministic: bool = False, return_attn_probs: bool = False, block_table: Any = None,
) -> Tensor:  # fmt: skip
    assert torch.equal(cu_seqlens_q, cu_seqlens_k)
    assert causal
    assert deterministic
    left, right = window_size
    assert right == 0
    return doubles.varlen(
        q, k, v, cu_seqlens_q, longest=max_seqlen_q, scale=softmax_scale or 0.0, window=None if left < 0 else left + 1
    )


def flash_attn_3(  # the arguments of flash-attn 3, which has answered with the normalisers too
    q: Any, k: Any, v: Any, cu_seqlens_q: Any, cu_seqlens_k: Any, max_seqlen_q: int, max_seqlen_k: int,
    seqused_q: Any = None, seqused_k: Any = None, softmax_scale: float | None = None, causal: bool = False,
    qv: Any = None, q_descale: Any = None, k_descale: Any = None, v_descale: Any = None,
    window_size: tuple[int, int] = (-1, -1), attention_chunk: int = 0, softcap: float = 0.0, num_splits: int = 1,
    pack_gqa: Any = None, deterministic: bool = False, sm_margin: int = 0, return_attn_probs: bool = False,
) -> tuple[Tensor, None]:  # fmt: skip
    return (
        flash_attn_2(
            q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=softmax_scale,
            causal=causal, window_size=window_size, deterministic=deterministic,
        ),
        None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("package", "module", "function"),
    [("flash-attn", "flash_attn", flash_attn_2), ("flash-attn-3", "flash_attn_interface", flash_attn_3)],
)
def test_packages_are_called_by_their_own_names(
    monkeypatch: pytest.MonkeyPatch, package: str, module: str, function: Callable[..., Any]
) -> None:
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(flash_attn_varlen_func=function))  # type: ignore[arg-type]
    fault = proof.attention_fault(attention.KERNELS[package], HEADS, dtype=torch.float32, device=CPU)
    assert fault == ""


_PROVE_LIGER = """
import sys, torch
from finetune_trainer.kernels import loss, proof
shape = dict(dim=48, vocabulary=500, dtype=torch.float32, stored=torch.float32, device=torch.device("cpu"))
for trains_head in (True, False):
    if fault := proof.loss_fault(loss.by_liger, trains_head=trains_head, **shape):
        sys.exit(fault)
"""


@pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger-kernel is optional: pip install -e .[kernels]")
def test_ligers_own_kernel_proves_right() -> None:
    """Its Triton code in Triton's interpreter, which needs no GPU. In float32: the interpreter cuts bfloat16 off where
    GPUs round it, half a percent less in all, and the proof refuses that."""
    environ = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _PROVE_LIGER], capture_output=True, text=True, env=environ, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_race_is_run_on_the_rows_of_the_run_forwards_and_backwards() -> None:
    positions = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    given = {"dtype": torch.float32, "device": CPU}
    seconds = race.clock(CPU)
    assert race.attention_ratio(doubles.varlen, HEADS, positions, seconds=seconds, **given) > 0
    shape = {"tokens": 7, "dim": 8, "vocabulary": 11, "trains_head": True, "stored": torch.float32, **given}
    assert race.loss_ratio(doubles.cross_entropy, trained_cross_entropy, seconds=seconds, **shape) > 0


def test_transformers_hands_masks_of_four_dimensions_through() -> None:
    """The fact that boundaries travel by."""
    from transformers.masking_utils import create_causal_mask

    net = network()
    bounds = torch.zeros(1, 1, 1, 3, dtype=torch.int32)
    embedded = torch.zeros(2, 5, 32)
    assert create_causal_mask(net.config, embedded, bounds, None) is bounds
    assert "attention_mask" in inspect.signature(type(net.base_model).forward).parameters


def test_transformers_own_flash_attention_sees_documents_in_a_single_row_alone() -> None:
    """The fact for which it is not used: in several rows it would compute plain causal attention."""
    from transformers.modeling_flash_attention_utils import _is_packed_sequence

    rows = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]])
    assert _is_packed_sequence(rows[:1], 1)
    assert not _is_packed_sequence(rows, 2)


def test_an_attempt_that_computes_otherwise_says_so() -> None:
    attempts = [AttemptRecord(attempt=n, computed=line) for n, line in enumerate(["", "sdpa", "sdpa", "flash"])]
    assert computed_otherwise(attempts[:3]) == ""
    assert computed_otherwise(attempts) == (
        "attempt 3 goes on, but not to the bit: it computes with flash; attempt 2 with sdpa"
    )
