"""Where the weights lie changes nothing: one rank, whole and sharded models learn the same and resume each other.

Starting processes costs more than what they compute here, so each gang is started once and runs all its cases; the
tests compare what it left behind. A gang's cases that continue runs come after the gangs that began them.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing.spawn import ProcessException

from finetune_api.failures import Reason
from finetune_trainer.methods import merged
from finetune_trainer.parallel.single import Single
from tests.e2e.strategy_cases import EIGHT_BITS, KNOBS, METHODS, ROOT, Case, run_case, run_cases
from tests.support import rank_processes
from tests.support.training import largest_difference, network

TOLERANCE = 5e-6
"""Of weights after eight steps in fp32: sums over ranks are taken in another order."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strategies")
    network(tie_word_embeddings=True).save_pretrained(folder / "base")
    network(hidden_size=64, intermediate_size=128, tie_word_embeddings=True).save_pretrained(folder / "wide")
    return folder


def _gang(
    root: Path, world_size: int, cases: list[Case], *, local_size: int | None = None, path: str | None = None
) -> None:
    rank_processes.start(run_cases, world_size, local_size or world_size, str(root), cases, path or "")


Told = Callable[[str], list[dict[str, Any]]]


def _told(root: Path, name: str) -> list[dict[str, Any]]:
    """By rank; where each has rows of the tensors, they are put together on the first."""
    ranks = [torch.load(file) for file in sorted(root.glob(f"{name}.*.pt"))]
    parts = ranks[0].get("parts", 1)
    if parts > 1:
        names = ranks[0]["tensors"]
        ranks[0]["tensors"] = {n: torch.cat([rank["tensors"][n] for rank in ranks[:parts]]) for n in names}
    return ranks


@pytest.fixture(scope="module")
def deepspeed() -> str | None:
    """The folder that DeepSpeed is in, or None where it cannot be installed."""
    made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
    return made.stdout.strip() if made.returncode == 0 else None


@pytest.fixture(scope="module")
def gangs(root: Path, deepspeed: str | None) -> Told:
    """What each rank of a case's gang told. A chain is one run: alone, two sharded, three with whole models, alone."""
    for method in METHODS:
        torch.save(run_case(root, Case(f"alone-{method}", method, "ddp"), Single()), root / f"alone-{method}.0.pt")
        run_case(root, Case(f"chain-{method}", method, "ddp", killed_at=2), Single())
    run_case(root, Case("shards", "full", "ddp", killed_at=2), Single())
    for method in EIGHT_BITS:
        torch.save(run_case(root, Case(f"alone-{method}", method, "ddp"), Single()), root / f"alone-{method}.0.pt")
    two = [Case(f"fsdp-2-{method}", method, "fsdp") for method in METHODS]
    two += [Case(f"{kind}-2-{m}", m, kind) for m in EIGHT_BITS for kind in ("ddp", "fsdp")]
    two += [Case("cut-full8", "full8", "fsdp", killed_at=4), Case("cut-full8", "full8", "fsdp")]
    two += [Case("chain-full8", "full8", "fsdp", killed_at=3), Case("shards", "full", "fsdp", killed_at=4)]
    two += [Case(f"chain-{method}", method, "fsdp", killed_at=4) for method in METHODS]
    two += [Case(f"cut-{method}", method, "fsdp", killed_at=3) for method in METHODS]
    two += [Case(f"cut-{method}", method, "fsdp") for method in METHODS]
    two += [Case(f"small-{method}", method, "fsdp", max_tokens=32) for method in ("full", "lora")]
    two += [Case(f"again-{method}", method, "fsdp", recomputed=True) for method in METHODS]
    two += [Case(f"poisoned-ddp-{method}", method, "ddp", poisoned_at=2) for method in ("full", "lora")]
    two += [Case(f"poisoned-fsdp-{method}", method, "fsdp", poisoned_at=2) for method in ("full", "lora")]
    two += [Case(f"kernels-{method}", method, "fsdp", kernels=True) for method in ("full", "lora")]
    three = [Case(f"chain-{method}", method, "ddp", killed_at=6) for method in METHODS]
    three += [Case("fsdp-3-full", "full", "fsdp"), Case("fsdp-3-full8", "full8", "fsdp")]
    three += [Case("chain-full8", "full8", "fsdp", killed_at=6), Case("shards", "full", "fsdp", killed_at=6)]
    with pytest.raises(ProcessException):
        _gang(root, 2, [Case("shot", "full", "fsdp", shot_at=2)])
    two += [Case("shot", "full", "fsdp")]
    if deepspeed:
        two += _of_zero()
        three += [
            Case(f"zero-chain-{m}", m, "deepspeed", stage=3, killed_at=5, recomputed=True) for m in ("full", "lora")
        ]
        three += [Case(f"zero-chain-{method}", method, "ddp") for method in ("full", "lora")]
    _gang(root, 2, two, path=deepspeed)
    _gang(root, 3, three, path=deepspeed)
    four = [Case(f"hsdp-{method}", method, "fsdp") for method in ("full", "lora")]
    four += [Case(f"across-{method}", method, "fsdp", shards=2) for method in ("full", "lora")]
    four += [Case("hsdp-cut", "full", "fsdp", killed_at=3), Case("hsdp-cut", "full", "fsdp")]
    four += [Case(f"ddp-4-{method}", method, "ddp") for method in METHODS]
    four += [Case(f"fsdp-4-{method}", method, "fsdp", one_node=True) for method in METHODS]
    _gang(root, 4, four, local_size=2)
    for method in (*METHODS, "full8"):
        torch.save(run_case(root, Case(f"chain-{method}", method, "ddp"), Single()), root / f"chain-{method}.0.pt")
    torch.save(run_case(root, Case("shards", "full", "ddp"), Single()), root / "shards.0.pt")
    return partial(_told, root)


def _of_zero() -> list[Case]:
    """Its chain goes on with three ranks in stage 3, blocks running again, and ends with three whole models."""
    cases = [Case(f"zero-{stage}-{m}", m, "deepspeed", stage=stage) for stage in (1, 2, 3) for m in METHODS]
    cases += [Case("zero-offload", "full", "deepspeed", stage=3, offload="all", recomputed=True)]
    cases += [
        Case(f"zero-again-{stage}-{m}", m, "deepspeed", stage=stage, recomputed=True)
        for stage in (1, 2, 3)
        for m in ("full", "lora", "partial")
        if stage == 3 or m != "partial"
    ]
    cases += [Case("zero-kernels", "full", "deepspeed", stage=3, kernels=True)]
    cases += [Case("zero-small", "full", "deepspeed", stage=2, max_tokens=32)]
    cases += [Case(f"poisoned-zero-{stage}", "full", "deepspeed", stage=stage, poisoned_at=2) for stage in (1, 2, 3)]
    for method in ("full", "lora"):
        cases += [Case(f"zero-cut-{method}", method, "deepspeed", stage=3, killed_at=3)]
        cases += [Case(f"zero-cut-{method}", method, "deepspeed", stage=3)]
        cases += [Case(f"zero-chain-{method}", method, "deepspeed", stage=2, killed_at=2)]
    return cases


@pytest.fixture(scope="module")
def zero(gangs: Told, deepspeed: str | None) -> Told:
    if deepspeed is None:
        pytest.skip("DeepSpeed cannot be installed here: tools/deepspeed.sh says why")
    return gangs


def _same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left["losses"] == pytest.approx(right["losses"], rel=1e-6)
    assert left["norms"] == pytest.approx(right["norms"], rel=1e-5)
    assert min(left["norms"]) > KNOBS.max_norm
    assert left["validation"] == pytest.approx(right["validation"], rel=1e-6)
    weights = [{n: t for n, t in told["tensors"].items() if n.startswith("weights")} for told in (left, right)]
    assert largest_difference(*weights) < TOLERANCE


@pytest.mark.parametrize("method", METHODS)
def test_sharded_ranks_learn_what_one_learns(gangs: Any, method: str) -> None:
    _same(gangs(f"fsdp-2-{method}")[0], gangs(f"alone-{method}")[0])


@pytest.mark.parametrize("method", METHODS)
def test_running_blocks_again_changes_no_bit(gangs: Any, method: str) -> None:
    _ran_again(gangs(f"again-{method}"), gangs(f"fsdp-2-{method}"), trained=1 if method == "partial" else 2)


def _ran_again(again: list[dict[str, Any]], once: list[dict[str, Any]], *, trained: int) -> None:
    """The last `trained` blocks twice for each pass, and nothing else is different."""
    assert again[0]["losses"] == once[0]["losses"]
    assert largest_difference(again[0]["tensors"], once[0]["tensors"]) == 0.0
    for twice, single in zip(again, once, strict=True):
        frozen = len(single["passes"]) - trained
        assert min(single["passes"]) > 0
        assert twice["passes"] == single["passes"][:frozen] + [2 * count for count in single["passes"][frozen:]]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_kernels_are_proved_on_sharded_weights_and_learn_the_same(gangs: Any, method: str) -> None:
    _same(gangs(f"kernels-{method}")[0], gangs(f"alone-{method}")[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_four_ranks_learn_what_one_learns(gangs: Any, method: str, strategy: str) -> None:
    """Five rows a step: one rank has two of them; the last step of an epoch leaves two ranks without any."""
    ranks = gangs(f"{strategy}-4-{method}")
    assert len(ranks) == 4
    _same(ranks[0], gangs(f"alone-{method}")[0])


def test_so_do_ranks_whose_shares_are_uneven(gangs: Any) -> None:
    """Three ranks: no weight divides by three, and the last step of an epoch has two rows."""
    _same(gangs("fsdp-3-full")[0], gangs("alone-full")[0])


@pytest.mark.parametrize("method", ["full", "lora"])
def test_nodes_are_replicas_of_each_other(gangs: Any, method: str) -> None:
    ranks = gangs(f"hsdp-{method}")
    _same(ranks[0], gangs(f"alone-{method}")[0])
    assert all(rank["held"] < 0.51 * rank["whole"] for rank in ranks)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_nodes_that_share_a_model_are_a_replica_of_two_others(gangs: Any, method: str) -> None:
    ranks = gangs(f"across-{method}")
    _same(ranks[0], gangs(f"alone-{method}")[0])
    assert all(rank["held"] < 0.51 * rank["whole"] for rank in ranks)
    assert method != "full" or all(rank["parts"] == 2 for rank in ranks)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_size_of_micro_batches_changes_nothing(gangs: Any, method: str) -> None:
    _same(gangs(f"small-{method}")[0], gangs(f"alone-{method}")[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_any_number_of_ranks_goes_on_at_another(gangs: Any, method: str) -> None:
    _same(gangs(f"chain-{method}")[0], gangs(f"alone-{method}")[0])


def test_one_two_and_three_ranks_go_on_from_each_others_shards(gangs: Any) -> None:
    """Alone, two, three, alone again: each number reads its rows out of what the one before has written."""
    _same(gangs("shards")[0], gangs("alone-full")[0])


def test_ranks_killed_between_their_parts_and_the_manifest_go_on_from_the_checkpoint_before(gangs: Any) -> None:
    resumed, whole = gangs("shot")[0], gangs("fsdp-2-full")[0]
    assert (resumed["resumed"], whole["resumed"]) == (1, 0)
    assert resumed["losses"] == whole["losses"]
    assert largest_difference(resumed["tensors"], whole["tensors"]) == 0.0


def test_nodes_that_are_replicas_resume_to_the_bit(gangs: Any) -> None:
    """The first of them saves, in two parts; all read."""
    resumed, whole = gangs("hsdp-cut")[0], gangs("hsdp-full")[0]
    assert resumed["losses"] == whole["losses"]
    assert largest_difference(resumed["tensors"], whole["tensors"]) == 0.0


@pytest.mark.parametrize(
    ("case", "parts"), [("fsdp-2-full", 2), ("fsdp-3-full", 3), ("fsdp-2-full8", 2), ("hsdp-full", 2)]
)
def test_no_rank_saves_more_than_its_share(gangs: Any, case: str, parts: int) -> None:
    whole = sum(tensor.nbytes for tensor in gangs(case)[0]["tensors"].values())
    for rank in gangs(case):
        assert rank["parts"] == parts
        assert rank["saved"] < 1.05 * whole / parts


@pytest.mark.parametrize("method", METHODS)
def test_the_same_gang_resumes_to_the_bit(gangs: Any, method: str) -> None:
    resumed, whole = gangs(f"cut-{method}")[0], gangs(f"fsdp-2-{method}")[0]
    assert resumed["losses"] == whole["losses"]
    assert largest_difference(resumed["tensors"], whole["tensors"]) == 0.0


@pytest.mark.parametrize(
    "case", ["ddp-2-full8", "ddp-2-lora8", "fsdp-2-full8", "fsdp-2-lora8", "fsdp-3-full8", "chain-full8"]
)
def test_moments_in_8_bits_are_those_of_one_rank(gangs: Any, case: str) -> None:
    """A sum over ranks rounds otherwise in its last bit, and now and then a moment that lies midway between two values
    goes to the other one: the steps of a few weights differ from there on. Losses do not notice."""
    told, alone = gangs(case)[0], gangs(f"alone-{case.rpartition('-')[2]}")[0]
    assert told["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert told["tensors"].keys() == alone["tensors"].keys()
    bytewise = 0
    for name, tensor in told["tensors"].items():
        other = alone["tensors"][name]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype), name
        if name.startswith("weights/"):
            assert (tensor - other).abs().mean() < 1e-6, name
        elif tensor.dtype is torch.uint8:
            bytewise += 1
            assert (tensor != other).float().mean() < 0.01, name
    assert bytewise >= 8


def test_with_moments_in_8_bits_the_same_gang_resumes_to_the_bit(gangs: Any) -> None:
    resumed, whole = gangs("cut-full8")[0], gangs("fsdp-2-full8")[0]
    assert resumed["losses"] == whole["losses"]
    assert all(torch.equal(tensor, whole["tensors"][name]) for name, tensor in resumed["tensors"].items())


def test_ranks_hold_the_same_bytes(gangs: Any) -> None:
    first, second = (told["tensors"] for told in gangs("ddp-2-full8"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("case", ["ddp-full", "ddp-lora", "fsdp-full", "fsdp-lora"])
def test_a_gradient_that_is_infinite_on_one_rank_stops_all(gangs: Any, case: str) -> None:
    _stopped(gangs(f"poisoned-{case}"))


def _stopped(ranks: list[dict[str, Any]]) -> None:
    assert [rank.get("reason") for rank in ranks] == [Reason.LossNonFinite] * 2
    assert all("the gradient of step 3 is not finite" in rank["message"] for rank in ranks)


def test_no_rank_holds_the_whole_model(gangs: Any) -> None:
    for name, ranks in (("fsdp-2-full", 2), ("fsdp-2-lora", 2), ("fsdp-3-full", 3)):
        told = gangs(name)
        assert sum(rank["held"] for rank in told) == told[0]["whole"]
        assert max(rank["held"] for rank in told) < 1.05 * told[0]["whole"] / ranks


@pytest.mark.parametrize("method", METHODS)
def test_what_is_exported_is_what_was_trained(gangs: Any, root: Path, method: str) -> None:
    trained = gangs(f"fsdp-2-{method}")[0]["tensors"]
    (file,) = (root / f"fsdp-2-{method}" / "export").glob("*.safetensors")
    exported = load_file(file)
    if method in ("full", "partial"):
        assert {name: exported[name] for name in network(tie_word_embeddings=True).state_dict() if name in exported}
        for name, tensor in trained.items():
            if name.startswith("weights/"):
                assert torch.equal(tensor, exported[name.removeprefix("weights/")]), name
    else:
        weights = [tensor for name, tensor in trained.items() if name.startswith("weights/")]
        assert sum(tensor.numel() for tensor in weights) == sum(tensor.numel() for tensor in exported.values())


def _is_merged_by_peft_too(root: Path, case: str, cases: Told) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert len(cases(case)) == 2
    export = root / case / "export"
    tuned: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / "base"), export)
    theirs: nn.Module = tuned.merge_and_unload()
    ours = AutoModelForCausalLM.from_pretrained(export / merged.FOLDER)
    base = AutoModelForCausalLM.from_pretrained(root / "base").state_dict()
    assert largest_difference(ours.state_dict(), theirs.state_dict()) < 1e-6
    changed = {name for name, tensor in ours.state_dict().items() if not torch.equal(tensor, base[name])}
    assert len(changed) == 14, "seven linear layers in each of two blocks"


def test_sharded_ranks_merge_base_and_adapter(gangs: Any, root: Path) -> None:
    _is_merged_by_peft_too(root, "fsdp-2-lora", gangs)


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_merges_base_and_adapter(zero: Any, root: Path, stage: int) -> None:
    _is_merged_by_peft_too(root, f"zero-{stage}-lora", zero)


ZERO = (*(f"{stage}-{method}" for stage in (1, 2, 3) for method in METHODS), "offload", "small", "kernels")


@pytest.mark.parametrize("case", ZERO)
def test_zero_learns_what_one_learns(zero: Any, case: str) -> None:
    method = case.partition("-")[2] or "full"
    _same(zero(f"zero-{case}")[0], zero(f"alone-{method}")[0])


@pytest.mark.parametrize("case", ["1-full", "1-lora", "2-full", "2-lora", "3-full", "3-lora", "3-partial"])
def test_running_blocks_again_changes_no_bit_of_zero(zero: Any, case: str) -> None:
    method = case.partition("-")[2]
    again = zero(f"zero-again-{case}")
    _ran_again(again, zero(f"zero-{case}"), trained=1 if method == "partial" else 2)
    _same(again[0], zero(f"alone-{method}")[0])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stops_for_a_gradient_that_is_infinite_on_one_rank(zero: Any, stage: int) -> None:
    _stopped(zero(f"poisoned-zero-{stage}"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_zero_resumes_to_the_bit_and_on_other_ranks_under_another_strategy(zero: Any, method: str) -> None:
    resumed, whole = zero(f"zero-cut-{method}")[0], zero(f"zero-3-{method}")[0]
    assert resumed["losses"] == whole["losses"]
    assert largest_difference(resumed["tensors"], whole["tensors"]) == 0.0
    _same(zero(f"zero-chain-{method}")[0], zero(f"alone-{method}")[0])


def test_no_rank_of_stage_three_holds_the_whole_model(zero: Any) -> None:
    for name in ("zero-3-full", "zero-3-lora"):
        assert all(rank["held"] < 0.51 * rank["whole"] for rank in zero(name))


@pytest.mark.parametrize("case", ["3-full", "2-lora", "3-lora", "3-adapter"])
def test_what_zero_exports_is_what_was_trained(zero: Any, root: Path, case: str) -> None:
    trained = zero(f"zero-{case}")[0]["tensors"]
    (file,) = (root / f"zero-{case}" / "export").glob("*.safetensors")
    exported = load_file(file)
    weights = {name: tensor for name, tensor in trained.items() if name.startswith("weights/")}
    if case == "3-full":
        assert all(torch.equal(tensor, exported[name.removeprefix("weights/")]) for name, tensor in weights.items())
    else:
        assert sum(t.numel() for t in weights.values()) == sum(t.numel() for t in exported.values())
