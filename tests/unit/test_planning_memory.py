"""The closed form against published and measured numbers (each with its source), and its monotonicity."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from finetune_api.methods import Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_api.vocabulary import Vocabulary
from finetune_trainer.data import pack
from finetune_trainer.planning import table
from finetune_trainer.planning.batch import CPU_TOKENS, GPU_TOKENS, micro_batch_tokens, tokens_of_a_step
from finetune_trainer.planning.footprints import block_bytes, footprint_of
from finetune_trainer.planning.memory import Estimate, Precision, estimate, human, trained_parameters
from finetune_trainer.planning.model import ModelShape, find_shape, read_shape
from finetune_trainer.planning.spread import Spread
from tests.support.planning_models import LLAMA_3B, SMOLLM2

MIB = 1 << 20
FULL = Method(type="full")
LORA = Method()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # PEFT's method comparison on Llama-3.2-3B.
        (Method(type="prompt", prompt=Prompt(virtual_tokens=200)), 614_400),
        (Method(type="ptuning", ptuning=PTuning(virtual_tokens=20)), 28_382_208),
        (Method(type="prefix", prefix=Prefix(virtual_tokens=50)), 2_867_200),
        (Method(type="prefix", prefix=Prefix(virtual_tokens=200)), 11_468_800),
    ],
)
def test_learned_inputs_have_as_many_parameters_as_published(method: Method, expected: int) -> None:
    assert trained_parameters(LLAMA_3B, method) == expected
    need = estimate(LLAMA_3B, method, precision="bfloat16", device="cuda", tokens=1024)
    assert need.weights == 2 * LLAMA_3B.parameters + 4 * expected
    assert need.optimizer == 12 * expected


SHAPE_QV = replace(LLAMA_3B, linears={n: s for n, s in LLAMA_3B.linears.items() if "q_proj" in n or "v_proj" in n})


@pytest.mark.parametrize(
    ("shape", "method", "expected"),
    [
        # PEFT's method comparison on Llama-3.2-3B: r=32 on q and v has 9,175,040; with DoRA 9,289,728 (9.29 M).
        (SHAPE_QV, Method(type="lora", lora=Lora(rank=32)), 9_175_040),
        (SHAPE_QV, Method(type="dora", dora=Lora(rank=32)), 9_289_728),
        (SHAPE_QV, Method(type="qlora", qlora=Lora(rank=32)), 9_175_040),
        # 28·2·(2·3072·64 + 64 + 3072), and half of it
        (LLAMA_3B, Method(type="adapter"), 22_195_712),
        (LLAMA_3B, Method(type="adapter", adapter=Adapter(placement="pfeiffer")), 11_097_856),
        # a block of Llama-3.2-3B: 2·3072² + 2·1024·3072 + 3·8192·3072 + 2·3072
        (LLAMA_3B, Method(type="partial", partial=Partial(layers=2)), 2 * 100_669_440),
        (LLAMA_3B, Method(type="partial"), 7 * 100_669_440),
        (LLAMA_3B, Method(type="partial", partial=Partial(layers=99)), 28 * 100_669_440),
    ],
)
def test_frozen_methods_have_as_many_parameters_as_published(shape: ModelShape, method: Method, expected: int) -> None:
    assert trained_parameters(shape, method) == expected


def test_dora_needs_as_much_more_than_lora_as_was_measured() -> None:
    """PEFT's method comparison, bs 4×768 in bf16: 22.8 GiB against 20.8."""
    lora, dora = (
        estimate(SHAPE_QV, Method(type=kind), precision="bfloat16", device="cuda", tokens=3072).activations
        for kind in ("lora", "dora")
    )
    copies = 3072 * sum(4 * d_in for _, d_in in SHAPE_QV.linears.values())  # PEFT's LoRA keeps them too, ours does not
    assert (dora - lora - copies) / (1 << 30) == pytest.approx(2.0, abs=0.3)


def test_a_base_in_four_bits_takes_4_127_bits_a_weight() -> None:
    linear = sum(a * b for a, b in LLAMA_3B.linears.values())
    need = estimate(LLAMA_3B, Method(type="qlora"), precision="bfloat16", device="cuda", tokens=1)
    rest = 2 * (LLAMA_3B.parameters - linear) + 4 * trained_parameters(LLAMA_3B, Method(type="qlora"))
    assert (need.weights - rest) * 8 / linear == pytest.approx(4.127, abs=0.001)


def test_partial_keeps_activations_and_moments_of_its_layers_alone() -> None:
    all_layers = estimate(SMOLLM2, FULL, precision="float32", device="cpu", tokens=1024)
    last = Method(type="partial", partial=Partial(layers=6))
    need = estimate(SMOLLM2, last, precision="float32", device="cpu", tokens=1024)
    assert need.activations == pytest.approx(all_layers.activations / 5, rel=0.03)  # and the last norm of all
    assert need.weights == all_layers.weights
    assert need.optimizer == 12 * 6 * SMOLLM2.blocks[0]
    # A memory tracker says 1073 MiB of the 2147 that all layers need (SmolLM2, T = 1024, bf16).
    assert need.total < 0.6 * all_layers.total
    open_still = estimate(SMOLLM2, Method(type="partial"), precision="float32", device="cpu", tokens=1024)
    assert open_still.activations == all_layers.activations  # measured in a pass through all layers


def test_a_merged_model_needs_a_matrix_at_a_time() -> None:
    def need(device: Literal["cpu", "cuda"], tokens: int, *, merged: bool) -> Estimate:
        return estimate(LLAMA_3B, LORA, precision="bfloat16", device=device, tokens=tokens, merged=merged)

    matrix = 12 * 8192 * 3072
    assert need("cuda", 1024, merged=True).host - need("cuda", 1024, merged=False).host == matrix
    assert need("cuda", 1024, merged=True).peak == need("cuda", 1024, merged=False).peak
    # On a CPU it comes when the activations are gone: only tiny batches notice.
    assert need("cpu", 1024, merged=True).peak == need("cpu", 1024, merged=False).peak
    assert need("cpu", 1, merged=True).peak == need("cpu", 1, merged=False).least + matrix


def test_parameter_counts_are_the_published_ones() -> None:
    assert SMOLLM2.parameters == 134_515_008
    assert LLAMA_3B.parameters == 3_212_749_824


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        # PEFT's method comparison on Llama-3.2-3B: r=10 on the MLP has 9,461,760; r=32 on q and v has 9,175,040, where
        # attention has k and o too: 32·28·((3072+3072)·2 + (3072+1024)·2).
        (Lora(rank=10, targets="mlp"), 9_461_760),
        (Lora(rank=32, targets="attention"), 18_350_080),
        # one of 28 layers; and a number beyond them means all
        (Lora(rank=10, targets="mlp", layers=1), 9_461_760 // 28),
        (Lora(rank=10, targets="mlp", layers=99), 9_461_760),
    ],
)
def test_lora_parameters(lora: Lora, expected: int) -> None:
    assert trained_parameters(LLAMA_3B, Method(type="lora", lora=lora)) == expected


def _kept_in_full(shape: ModelShape) -> int:
    """Bytes that one block keeps of a token in bf16."""
    return block_bytes(shape, footprint_of(FULL).kept(shape, FULL, 2, row=0), 2, trains=True)


@pytest.mark.parametrize(
    ("shape", "tokens", "mib", "logits"),
    [
        # MemTracker, all in bf16, no checkpointing, with the logits in place: 993 and 13134 MiB.
        (SMOLLM2, 1024, 993, 6 * 49152 * 1024 / MIB),
        (LLAMA_3B, 3072, 13134, 6 * 128256 * 3072 / MIB),
    ],
)
def test_activations_in_bf16(shape: ModelShape, tokens: int, mib: float, logits: float) -> None:
    kept = tokens * shape.layers * _kept_in_full(shape)
    assert kept / MIB + logits == pytest.approx(mib, rel=0.02)


THEIR_LOSS = 14 * 128256 * 3072
"""Of PEFT's method comparison, which keeps its logits: 6·V·T in bf16 and fp32, and 8·V·T while they are computed."""


def test_the_published_3b_lora_run_within_15_percent() -> None:
    """PEFT's method comparison, r=32 on q and v, bs 4×768: 20.8 GiB. The plan's own figures, but for the loss."""
    method = Method(type="lora", lora=Lora(rank=32))
    need = estimate(SHAPE_QV, method, precision="bfloat16", device="cuda", tokens=3072)
    assert (need.least + need.activations + THEIR_LOSS) / (1 << 30) == pytest.approx(20.8, rel=0.15)


def test_the_published_3b_full_run_within_15_percent() -> None:
    """The same in full: 36.2 GiB. Weights, gradients and moments are in bf16 there, and the moments are not all made
    when the loss peaks: 6 bytes a parameter. Here they are fp32, so that only the activations are the plan's own."""
    kept = 3072 * LLAMA_3B.layers * _kept_in_full(LLAMA_3B)
    assert (6 * LLAMA_3B.parameters + kept + THEIR_LOSS) / (1 << 30) == pytest.approx(36.2, rel=0.15)


def test_states_of_full_fine_tuning_are_16_bytes_a_parameter() -> None:
    need = estimate(SMOLLM2, FULL, precision="float32", device="cpu", tokens=1024)
    assert need.least == 16 * SMOLLM2.parameters


def test_states_of_lora_are_the_base_and_16_bytes_for_each_adapter_weight() -> None:
    adapters = trained_parameters(SMOLLM2, LORA)
    need = estimate(SMOLLM2, LORA, precision="bfloat16", device="cuda", tokens=1024)
    assert need.least == 2 * SMOLLM2.parameters + 16 * adapters


@pytest.mark.parametrize(
    ("shape", "matrices"),
    [(SMOLLM2, 1), (replace(SMOLLM2, parameters=SMOLLM2.parameters + 49152 * 576), 2)],
    ids=["tied", "untied"],
)
def test_new_tokens_add_16_bytes_for_each_value_of_their_rows(shape: ModelShape, matrices: int) -> None:
    """A weight, its gradient and two moments; tied embeddings have one matrix."""
    some = Vocabulary(terms=("STEMI",), max_new_tokens=500)
    plain, more = (
        estimate(shape, LORA, precision="bfloat16", device="cuda", tokens=64, vocabulary=vocabulary)
        for vocabulary in (None, some)
    )
    assert more.least - plain.least == matrices * 500 * 576 * 16
    assert trained_parameters(shape, LORA, some) - trained_parameters(shape, LORA) == matrices * 500 * 576
    assert trained_parameters(shape, FULL, some) == trained_parameters(shape, FULL), "all rows train anyway"


def test_activations_of_lora_on_a_bf16_base() -> None:
    # MemTracker, SmolLM2, LoRA with bf16 adapters on all linears, T = 1024, logits (288 MiB) included: no fp32 copies
    # of inputs, as in our fused layers.
    need = estimate(SMOLLM2, LORA, precision="bfloat16", device="cuda", tokens=1024)
    assert need.activations / MIB + 288 == pytest.approx(927, rel=0.05)


def test_dropout_costs_copies_of_every_input() -> None:
    plain, dropped = (
        estimate(SMOLLM2, Method(lora=Lora(dropout=d)), precision="bfloat16", device="cuda", tokens=1024).activations
        for d in (0.0, 0.1)
    )
    inputs = sum(d_in for _, d_in in SMOLLM2.linears.values())
    assert 4 * 1024 * inputs < dropped - plain < 8 * 1024 * inputs


def test_a_step_on_a_cpu_is_within_30_percent_of_what_was_measured() -> None:
    # Peak RSS of SmolLM2, LoRA r16 on all linears, fp32, 4×256 tokens, fused loss: 3340 MB; full weights 4241 MB. Of
    # steps alone, without a checkpoint.
    lora = estimate(SMOLLM2, LORA, precision="float32", device="cpu", tokens=1024)
    full = estimate(SMOLLM2, FULL, precision="float32", device="cpu", tokens=1024)
    assert replace(lora, snapshot=0).total / 1e6 == pytest.approx(3340, rel=0.3)
    assert replace(full, snapshot=0).total / 1e6 == pytest.approx(4241, rel=0.3)


def test_a_checkpoint_is_copied_before_it_is_written() -> None:
    """12 bytes of each weight that trains: the copy is kept while training goes on. On a GPU it is in host memory."""
    on_cpu, on_gpu = (
        estimate(SMOLLM2, FULL, precision="float32", device=device, tokens=1024)  # type: ignore[arg-type]
        for device in ("cpu", "cuda")
    )
    assert (on_cpu.snapshot, on_gpu.snapshot) == (12 * SMOLLM2.parameters, 0)
    assert on_cpu.total > on_cpu.peak + on_cpu.snapshot
    shared = Spread(strategy="fsdp", ranks=4)
    part = estimate(SMOLLM2, FULL, precision="float32", device="cpu", tokens=1024, spread=shared)
    assert part.snapshot == on_cpu.snapshot // 4


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_more_tokens_never_need_less(method: Method, precision: Precision) -> None:
    needs = [estimate(SMOLLM2, method, precision=precision, device="cpu", tokens=t).total for t in (1, 64, 512, 4096)]
    assert needs == sorted(needs)


def test_lora_never_needs_more_states_than_full() -> None:
    lora = estimate(LLAMA_3B, LORA, precision="bfloat16", device="cuda", tokens=1)
    full = estimate(LLAMA_3B, FULL, precision="bfloat16", device="cuda", tokens=1)
    assert lora.least < full.least


def tokens(*, memory: int | None, longest: int = 300, method: Method = LORA) -> int:
    device = "cpu" if memory is None else "cuda"
    return micro_batch_tokens(
        LLAMA_3B,
        method,
        precision="bfloat16",
        longest_row=longest,
        device=device,
        device_memory=memory,  # type: ignore[arg-type]
    )


def test_micro_batches_on_a_cpu_hold_1024_tokens_or_the_longest_row() -> None:
    assert tokens(memory=None) == CPU_TOKENS
    assert tokens(memory=None, longest=3000) == 3000


def test_micro_batches_on_a_gpu_fill_it() -> None:
    small, large, huge = tokens(memory=24 << 30), tokens(memory=80 << 30), tokens(memory=800 << 30)
    assert 256 <= small < large <= huge == GPU_TOKENS
    need = estimate(LLAMA_3B, LORA, precision="bfloat16", device="cuda", tokens=small)
    assert need.total <= 0.86 * (24 << 30)


@pytest.mark.parametrize(
    ("rows", "processes", "longest", "row", "packing", "most"),
    [
        (32, 1, 100, 50.0, True, 32 * 50 + 100),
        (32, 1, 100, 100.0, True, 3200),  # as padded rows have, and no more
        (32, 1, 100, 50.0, False, 3200),
        (32, 8, 100, 50.0, True, 4 * 50 + 100),
        (3, 8, 100, 50.0, False, 100),
    ],
)
def test_a_step_gives_a_process_no_more_than_its_share(
    rows: int, processes: int, longest: int, row: float, packing: bool, most: int
) -> None:
    assert tokens_of_a_step(rows=rows, processes=processes, longest_row=longest, row=row, packing=packing) == most


def test_a_micro_batch_is_no_larger_than_a_step_can_fill_it() -> None:
    """320 rows of 50 tokens in batches of 32: filled to 32768 tokens, a plan came to 27 GiB."""
    known = {"precision": "bfloat16", "longest_row": 100, "device": "cuda", "device_memory": 80 << 30}
    for shape in (LLAMA_3B, None):
        assert micro_batch_tokens(shape, LORA, **known, most=1700) == 1700  # type: ignore[arg-type]
        assert micro_batch_tokens(shape, LORA, **known, most=90) == CPU_TOKENS  # type: ignore[arg-type]
        assert micro_batch_tokens(shape, LORA, **known | {"longest_row": 5000}, most=1700) == 5000  # type: ignore[arg-type]


def test_a_model_of_unknown_sizes_trains_unplanned(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"width": 8}')
    assert find_shape(tmp_path) is None
    known = {"precision": "bfloat16", "longest_row": 10, "device": "cuda", "device_memory": 80 << 30}
    assert micro_batch_tokens(None, LORA, **known) == GPU_TOKENS // 2  # type: ignore[arg-type]


def test_at_least_one_row_whatever_fits() -> None:
    assert tokens(memory=8 << 30, longest=2048, method=FULL) == 2048


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> None:
    header = json.dumps({n: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for n, s in shapes.items()}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def test_shapes_come_from_config_and_headers(tmp_path: Path) -> None:
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 16, "intermediate_size": 24}))
    write_safetensors(tmp_path / "a.safetensors", {"embed.weight": [16, 8], "norm.weight": [8]})
    write_safetensors(tmp_path / "b.safetensors", {"layers.0.mlp.up.weight": [24, 8], "layers.0.attn.q.weight": [8, 8]})
    shape = read_shape(tmp_path)
    assert (shape.hidden, shape.layers, shape.key_value, shape.intermediate) == (8, 1, 4, 24)
    assert shape.parameters == 16 * 8 + 8 + 24 * 8 + 64
    assert shape.adapted("mlp") == [(24, 8)]
    assert shape.adapted("attention") == [(8, 8)]


def test_other_families_are_read_by_their_own_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 8, "n_layer": 3, "n_head": 2, "vocab_size": 16}))
    shape = read_shape(tmp_path)
    assert (shape.hidden, shape.layers, shape.key_value, shape.intermediate) == (8, 3, 8, 32)


def test_a_config_without_sizes_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="hidden_size, n_embd, d_model"):
        read_shape(tmp_path)


def test_sizes_for_people() -> None:
    assert [human(s) for s in (5, 3 << 20, 3 << 30)] == ["5 B", "3.0 MiB", "3.0 GiB"]


def test_a_plan_knows_the_width_of_packed_rows() -> None:
    assert table.SHORT_ROW == pack.SHORT_ROW
