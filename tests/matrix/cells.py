"""One cell of the table: a method on a tiny random model of a family, with all that is promised of it checked."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import TRAITS, Adapter, Lora, Method, Partial, Prefix, Prompt, PTuning
from finetune_trainer.decoder_blocks import decoder_layers
from finetune_trainer.methods import merged
from finetune_trainer.methods.base import HasPrompt, Merges
from finetune_trainer.methods.registry import method_of
from finetune_trainer.train.method_support import answer
from finetune_trainer.transfer.evaluate import Layout
from finetune_trainer.transfer.features import features
from tests.support.model_families import FAMILIES, network_of
from tests.support.training import BASE, Knobs, Run, documents, interrupted, largest_difference, make_run

SMALL = {
    "partial": Method(type="partial", partial=Partial(layers=1)),
    "lora": Method(type="lora", lora=Lora(rank=4)),
    "dora": Method(type="dora", dora=Lora(rank=4)),
    "qlora": Method(type="qlora", qlora=Lora(rank=4)),
    "adapter": Method(type="adapter", adapter=Adapter(bottleneck=4)),
    "prompt": Method(type="prompt", prompt=Prompt(virtual_tokens=3)),
    "ptuning": Method(type="ptuning", ptuning=PTuning(virtual_tokens=3)),
    "prefix": Method(type="prefix", prefix=Prefix(virtual_tokens=3)),
}
"""Settings for tiny models, where the defaults are for real ones."""
METHODS = {name: SMALL.get(name) or Method.model_validate({"type": name}) for name in TRAITS}
TOKENS = (torch.arange(24) * 7 + 3).remainder(90).view(2, 12)
"""(2, 12)"""
LENGTHS = [9, 12, 7, 10]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}

Cell = dict[str, str]
"""{"result": "works"} with how documents lie in rows, {"result": "refused"} with the reason, {"result": "fails"} with
what went wrong."""


def cell(family: str, name: str) -> Cell:
    """Never raises: what goes wrong is what the table has to show."""
    try:
        with tempfile.TemporaryDirectory(prefix="finetune-matrix-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _checked(Path(folder), family, name)
    except Exception as error:
        text = " ".join(str(error).split())
        return {"result": "fails", "why": f"{type(error).__name__}: {text[:300]}"}


def _checked(folder: Path, family: str, name: str) -> Cell:
    method = METHODS[name]
    make = _maker(family, wide=name == "qlora")
    refusal = _refusal(make, method)
    planned = answer(config_of(folder / "config", make()), method, torch.device("cpu"))
    if planned.get("message") != refusal.get("message"):
        raise AssertionError(f"plan says {planned.get('message')}, a run {refusal.get('message')}")
    if refusal:
        return {"result": "refused", "why": refusal["message"]}
    if name == "probe":
        _check_features(make())
        return {"result": "works", "rows": "packed or not"}
    run = _trained(folder / "whole", make, method)
    packed = run.trainer.model.capabilities.isolates
    _check_resume(folder / "again", make, method, run)
    _check_packing(run)
    run.attached.settle()
    tuned = _logits(run.net, run.attached)
    run.attached.export(_made(folder / "export"))
    _close("exported and loaded", _loaded(folder / "export", make, name), tuned)
    if isinstance(run.attached, Merges) and not method.traits.four_bits:
        _check_merged(folder, make, run.attached, tuned)
    return {"result": "works", "rows": "packed" if packed else "one document a row"}


def _maker(family: str, *, wide: bool) -> Callable[[], nn.Module]:
    """`wide`: with rows of 64 weights, which 4 bits need on a CPU; where the family cannot be made so, as it is."""
    if not wide or "hidden_size" not in FAMILIES[family]:
        return lambda: network_of(family)
    changes: dict[str, Any] = {"hidden_size": 64}
    changes |= {"intermediate_size": 128} if "intermediate_size" in FAMILIES[family] else {}
    changes |= {"head_dim": 16} if "num_key_value_heads" in FAMILIES[family] else {}
    try:
        network_of(family, **changes)(TOKENS, use_cache=False)
    except Exception:  # each config class refuses sizes that do not go together in its own way
        return lambda: network_of(family)
    return lambda: network_of(family, **changes)


def _refusal(make: Callable[[], nn.Module], method: Method) -> dict[str, str]:
    try:
        method_of(method).attach(make(), seed=1, base=BASE)
    except FinetuneError as error:
        if error.reason is not Reason.ModelUnsupported:
            raise
        return {"message": error.message}
    return {}


def config_of(folder: Path, net: nn.Module) -> Path:
    """The config.json alone, as `finetune plan --model` is given it."""
    config: Any = net.config
    config.architectures = [type(net).__name__]
    config.save_pretrained(folder)
    return folder


def _trained(folder: Path, make: Callable[[], nn.Module], method: Method) -> Run:
    run = _run(folder, make, method)
    before = run.tensors()
    run.finish()
    after = run.tensors()
    if not any(torch.any(after[name] != tensor) for name, tensor in before.items()):
        raise AssertionError("nothing was trained")
    if not all(torch.isfinite(tensor).all() for tensor in after.values()):
        raise AssertionError("weights are not finite")
    return run


def _run(folder: Path, make: Callable[[], nn.Module], method: Method) -> Run:
    """Each made anew: the network, too."""
    torch.manual_seed(0)
    knobs = Knobs(method=method, steps=3, batch_size=2, max_tokens=64, packing=False, evaluate_every=9)
    return make_run(folder, knobs, corpus=documents(LENGTHS), net=make())


def _check_resume(folder: Path, make: Callable[[], nn.Module], method: Method, whole: Run) -> None:
    resumed = interrupted(lambda: _run(folder, make, method), 2)
    resumed.finish()
    if (off := largest_difference(resumed.tensors(), whole.tensors())) > 0:
        raise AssertionError(f"a resumed run differs by {off:.2g}")


@torch.no_grad()
def _check_packing(run: Run) -> None:
    model, corpus = run.trainer.model, run.trainer.train
    run.net.eval()
    layout = Layout(max_tokens=128, sequence_length=64, packing=False, pad_id=0)
    sums = []
    for packing in (False, True) if model.capabilities.isolates else (False,):
        batches = replace(layout, packing=packing).batches(corpus, np.arange(len(corpus)))
        sums.append(sum(float(model.nats(batch)) for batch in batches))
    alone = sum(float(model.nats(layout.batches(corpus, np.array([row]))[0])) for row in range(len(corpus)))
    for found in sums:
        if abs(found - alone) > 2e-5 * abs(alone):
            raise AssertionError(f"rows together have {found:.6f} nats, one by one {alone:.6f}")


@torch.no_grad()
def _logits(net: nn.Module, attached: Any) -> torch.Tensor:
    """(2, 12, vocabulary) of TOKENS, behind the virtual tokens if there are some."""
    net.eval()
    ids = attached.ids if isinstance(attached, HasPrompt) else np.zeros(0, np.int64)
    whole = torch.cat([torch.from_numpy(ids).long()[None].expand(2, -1), TOKENS], dim=1)
    positions = torch.arange(whole.shape[1])[None].expand(2, -1)
    logits: torch.Tensor = net(whole, position_ids=positions, use_cache=False).logits
    return logits[:, -TOKENS.shape[1] :]


@torch.no_grad()
def _loaded(export: Path, make: Callable[[], nn.Module], name: str) -> torch.Tensor:
    """By plain transformers or PEFT; what has a format of its own, and a base in 4 bits, by our loader."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if name in ("full", "partial"):
        net: Any = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    elif name in ("adapter", "qlora"):
        net = method_of(METHODS[name]).load(make(), export)
    else:
        net = PeftModel.from_pretrained(make(), export)
    logits: torch.Tensor = net.eval()(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return logits[:, -TOKENS.shape[1] :]


@torch.no_grad()
def _check_merged(folder: Path, make: Callable[[], nn.Module], attached: Merges, tuned: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM

    base: Any = make()
    base.save_pretrained(folder / "base")
    merged.write(attached.changes(), folder / "base", folder / "merged", alive=lambda: None)
    net = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    _close("merged", net(TOKENS).logits, tuned)


@torch.no_grad()
def _check_features(net: nn.Module) -> None:
    """The last token's state of each block, beside the one that transformers gives."""
    corpus, count = documents([9]), decoder_layers(net).count
    method_of(METHODS["probe"]).attach(net, seed=1, base=BASE)
    (batch,) = Layout(max_tokens=64, sequence_length=64, packing=False, pad_id=0).batches(corpus, np.arange(1))
    found = features(net, batch, range(1, count))
    if not np.isfinite(found).all():
        raise AssertionError("features are not finite")
    seen: list[torch.Tensor] = []
    block = net.get_submodule(f"{decoder_layers(net).prefix}.0")
    hook = block.register_forward_hook(lambda *args: seen.append(args[2][0] if isinstance(args[2], tuple) else args[2]))
    net(torch.from_numpy(batch.tokens), use_cache=False)
    hook.remove()
    state = seen[0][0] if seen[0].ndim > 3 else seen[0]  # of Gemma 3n's streams the first
    _close("features", torch.from_numpy(found[0, 0, found.shape[2] // 2 :]), state[0, -1])


def _close(what: str, found: torch.Tensor, right: torch.Tensor) -> None:
    try:
        torch.testing.assert_close(found, right, **CLOSE)
    except AssertionError as error:
        raise AssertionError(f"{what}: {error}") from None


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
