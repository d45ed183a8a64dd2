"""Everything that would fail later, looked for now: `python -m finetune_trainer.agent.preflight --plan … --words FILE`.

A process of its own, because it reads tokenizers and data that the agent should not carry around. In order of cost:
output writable and free, model there and a causal LM, memory enough, data readable and trainable (which also tokenises
it into the cache that the ranks map). Ends with the exit code of the failure's class and its words in FILE.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Literal

from finetune_api import names
from finetune_api.failures import FinetuneError, LastWords, Reason
from finetune_api.plan import RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent import script
from finetune_trainer.agent.children import die_with_parent
from finetune_trainer.agent.verdict import say
from finetune_trainer.agent.waiting import is_loopback
from finetune_trainer.methods.needs import check as check_method
from finetune_trainer.methods.needs import check_compile, check_format, check_recompute
from finetune_trainer.planning import machine
from finetune_trainer.planning.advice import smallest_change
from finetune_trainer.planning.devices import nameless
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape, check_on_experts, find_shape
from finetune_trainer.planning.positions import fitted
from finetune_trainer.planning.quantity import quantity
from finetune_trainer.planning.strategy import check_installed, choose
from finetune_trainer.planning.table import USUAL_ROW, Planner
from finetune_trainer.rundir import now, write_atomic
from finetune_trainer.train.leave import leave

BENEFIT_OF_THE_DOUBT = 0.8
"""A closed form is not a measurement: only a run that misses its memory by more is refused."""


def main(argv: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="finetune_trainer.agent.preflight")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--words", type=Path, required=True)
    options = parser.parse_args(argv)
    plan = RunPlan.model_validate_json(options.plan.read_bytes())
    try:
        check(plan, cache=Path(os.environ.get(names.ENV_CACHE, names.CACHE_DIR)))
    except FinetuneError as error:
        return _leave(say(error.reason, error.message, hint=error.hint, time=now()), options.words)
    except Exception as error:
        traceback.print_exc()
        message = f"the preflight failed: {type(error).__name__}: {error}"
        return _leave(say(Reason.UnexpectedError, message, time=now()), options.words)
    return 0


def _leave(words: LastWords, target: Path) -> int:
    write_atomic(target, words.encode())
    return words.exit_code


def check(plan: RunPlan, *, cache: Path) -> None:
    """FinetuneError for the first thing that is wrong."""
    from finetune_trainer.data.embedded import check_embedded
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.store.artifact import check_output
    from finetune_trainer.store.folder import open_folder
    from finetune_trainer.store.models import resolve_model

    spec = plan.spec
    if spec.command is not None:
        _check_script(plan)
        return
    output = open_folder(spec.output.uri, prefix=names.PREFIX_OUTPUT)
    check_output(output, plan.job, overwrite=spec.output.overwrite)
    output.check_writable()
    model = resolve_model(spec.model, cache=cache)
    _tell(f"model {model.uri}" + (f" at {model.revision}" if model.revision else ""))
    shape = find_shape(model.path)
    check_installed(spec.strategy)
    check_method(spec.method, layers=shape.layers if shape else None)
    if shape is not None and shape.passed:
        _tell(shape.experts_line())
        check_on_experts(spec.method, shape)
    if spec.training.compile:
        check_compile(spec.method)
    if spec.training.activation_checkpointing:
        check_recompute(spec.method, compiled=spec.training.compile)
    if shape is not None:
        check_memory(plan, shape)
    else:
        _tell("memory: not planned, for config.json names its sizes in an unknown way")
    data = fitted(spec.data, model.path, spec.method)
    if data != spec.data:
        _tell(f"data: sequences of up to {data.sequence_length} tokens, as the model allows")
    datasets = load_datasets(data, tokenizer_path=model.path, cache=cache, seed=spec.training.seed)
    check_format(spec.method, datasets.statistics.format)
    if spec.training.early_stopping and datasets.validation is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "training.earlyStopping judges by validation rows, and none could be held out: the training rows are one",
            "Give data.validation a file, or remove training.earlyStopping.",
        )
    if shape is not None:
        check_embedded(datasets, embeddings=shape.vocabulary, tokenizer_path=model.path)
    for line in datasets.statistics.lines():
        _tell(f"data: {line}")


def _check_script(plan: RunPlan) -> None:
    """What a script reads and writes is its own affair; that it is there, and that its words can be kept, is ours."""
    from finetune_trainer.store.folder import open_folder

    spec = plan.spec
    script.check(spec.command or (), os.environ)
    if spec.given_output is not None:
        open_folder(spec.output.uri, prefix=names.PREFIX_OUTPUT).check_writable()
    _tell(f"command: {shlex.join(spec.command or ())}")


def check_memory(plan: RunPlan, shape: ModelShape) -> None:
    """InsufficientMemory if this node cannot hold its processes, by a margin that no estimate is wrong by.

    Neither as one of this attempt's, nor as one of the fewest that an elastic job may have: each may hold more then."""
    _check_memory(plan, shape)
    fewest = plan.spec.min_nodes
    if fewest >= plan.nodes:
        return
    where = f"with {fewest} node(s), the fewest that spec.nodes allows"
    _tell(f"{where}:")
    try:
        _check_memory(plan.model_copy(update={"nodes": fewest}), shape)
    except FinetuneError as error:
        raise FinetuneError(error.reason, f"{where}: {error.message}", f"Raise nodes.min, or: {error.hint}") from error


def _check_memory(plan: RunPlan, shape: ModelShape) -> None:
    spec = plan.spec_of_attempt
    gpus = machine.gpu_memory()
    if gpus:
        _require(spec, shape, min(gpus), kind="cuda", processes=1, what="memory of a GPU")
        return
    here = plan.processes_per_node
    if (given := spec.resources.limits.get("memory")) is not None:
        what = "resources.limits.memory of a node"
        _require(spec, shape, quantity(given), kind="cpu", processes=here, what=what)
    here *= plan.nodes if is_loopback(plan.master_address) else 1
    _require(spec, shape, machine.memory_limit(), kind="cpu", processes=here, what="memory of this machine")


def _require(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    limit: int,
    *,
    kind: Literal["cpu", "cuda"],
    processes: int,
    what: str,
) -> None:
    planner = Planner(spec=spec, shape=shape, device=nameless(kind, memory=limit // processes))
    # Left open, the trainer takes what fits: the least is one row, and rows may be far shorter than allowed.
    tokens = spec.training.micro_batch_tokens or min(spec.data.sequence_length, USUAL_ROW)
    whole = planner.need(spec.method, planner.spread("ddp"), tokens=tokens)
    # The strategy that the manifest names, or the thriftier one that `auto` may take.
    thrifty = choose(spec.strategy, spec.method, need=whole, memory=0, processes=spec.world_size)
    spread = planner.spread(thrifty)
    need = planner.need(spec.method, spread, tokens=tokens)
    total = need.total * processes
    text = (
        f"training needs about {human(total)} (in each of {processes} process(es): "
        f"{human(need.weights + need.gathered)} weights, "
        f"{human(need.optimizer)} gradients and optimizer, {human(need.activations)} activations); "
        f"{what} is {human(limit)}"
    )
    _tell(text)
    if total * BENEFIT_OF_THE_DOUBT > limit:
        raise FinetuneError(Reason.InsufficientMemory, text, smallest_change(planner, spread))


def _tell(line: str) -> None:
    print(f"preflight: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    leave(main())
