"""Compiled blocks: the losses and weights of those that are not, nothing compiled twice, and refusals that say why."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_trainer.methods.needs import check_compile
from finetune_trainer.train.compilation import compile_blocks
from tests.support.training import CPU, Knobs, Run, largest_difference, make_run, network

ARTEFACTS = Path.home() / ".cache" / "finetune-operator" / "compiled-tests"
"""Kept between test runs: a C++ compiler takes half a minute for these graphs."""

METHOD = Method(type="lora", lora=Lora(rank=4))
"""Others, and shards, are compiled by tests/e2e/test_strategies_compiled.py: each has graphs of its own to compile."""


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set by what is tested")


@pytest.fixture
def compiler() -> None:
    """Skips, in the words of the refusal, where this machine can compile nothing."""
    try:
        check_compile(Method(type="lora"), "ddp")
    except FinetuneError as error:
        pytest.skip(str(error))


def _compiled(folder: Path, knobs: Knobs) -> Run:
    torch._dynamo.reset()
    run = make_run(folder, knobs)
    compile_blocks(run.net, lowest=run.attached.lowest_layer, cache=ARTEFACTS, device=CPU)
    return run


@pytest.mark.usefixtures("compiler")
@pytest.mark.timeout(1200)
def test_compiled_steps_learn_the_same_and_the_next_process_compiles_nothing(tmp_path: Path) -> None:
    """Packed and unpacked rows of many shapes, and a validation between them."""
    from torch._dynamo.utils import counters

    knobs = Knobs(steps=4, method=METHOD, evaluate_every=2)
    plain = make_run(tmp_path / "plain", knobs)
    losses = [point.loss for point in plain.finish().curve]
    for turn in ("first", "again"):
        run = _compiled(tmp_path / turn, knobs)
        counters.clear()
        state = run.finish()
        assert [point.loss for point in state.curve] == pytest.approx(losses, rel=1e-5)
        assert largest_difference(run.tensors(), plain.tensors()) < 1e-4
        assert 0 < counters["stats"]["unique_graphs"] <= 8
        assert not counters["graph_break"]
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert counters["aot_autograd"]["autograd_cache_miss"] == 0


def test_only_blocks_that_train_are_compiled_and_only_for_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: lambda *a, **k: (compiled.append(""), forward(*a, **k))[1]
    )
    net = network(layers=3)
    assert compile_blocks(net, lowest=1, cache=tmp_path, device=CPU) == 2
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    tokens = torch.arange(6)[None]
    net.train()
    net(tokens, use_cache=False)
    assert len(compiled) == 2
    with torch.no_grad():
        net(tokens, use_cache=False)
    net.eval()
    net(tokens, use_cache=False)
    assert len(compiled) == 2


REFUSED = [
    (Method(type="qlora"), "ddp", "method.type qlora: its layers unpack weights"),
    (Method(type="dora"), "ddp", "method.type dora: PEFT's layers"),
    (Method(type="prefix"), "ddp", "method.type prefix: its keys and values"),
    (Method(type="probe"), "ddp", "method.type probe: it makes no steps"),
    (Method(type="full"), "deepspeed", "strategy deepspeed: no test proves"),
]


@pytest.mark.parametrize(("method", "strategy", "words"), REFUSED, ids=lambda value: str(value)[:12])
def test_what_cannot_be_compiled_is_refused_with_the_reason(method: Method, strategy: str, words: str) -> None:
    with pytest.raises(FinetuneError, match=words) as error:
        check_compile(method, strategy)
    assert error.value.reason is Reason.InvalidSpec
    assert "training.compile" in error.value.hint


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("method", ["lora", "full", "partial", "adapter", "prompt", "ptuning"])
def test_all_others_are_let_through(method: str) -> None:
    for strategy in ("single", "ddp", "fsdp"):
        check_compile(Method.model_validate({"type": method}, strict=False), strategy)
    check_compile(Method.model_validate({"type": method}, strict=False))


@pytest.mark.parametrize(("missing", "words"), [("g++", "no ./nowhere"), ("Python.h", "no Python.h")])
def test_a_machine_that_cannot_compile_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, words: str
) -> None:
    if missing == "g++":
        monkeypatch.setenv("CXX", "./nowhere")
    else:
        monkeypatch.setenv("CXX", sys.executable)
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(FinetuneError, match=words):
        check_compile(Method(type="lora"), "ddp")
