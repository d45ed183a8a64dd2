"""Checks everything that would fail later: `python -m finetune_trainer.agent.preflight --plan … --words FILE`.

It is a separate process, because it reads tokenizers and data that the agent should not keep in memory. It checks, in
order of cost: the output is writable and unused, the model exists and is a causal LM, there is enough memory, the data
is readable and trainable (which also tokenizes it into the cache that the ranks map). It exits with the code of the
failure class, and writes the termination message to FILE.

It imports torch only for what needs it, since that takes seconds of every start and hundreds of MiB of memory.

Of a ladder it checks what all rungs have in common, and writes the forecast next to FILE. Each rung has a preflight of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import traceback
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.logs import JobLog
from finetune_api.plan import Fold, RunPlan
from finetune_api.rung_pods import for_rung, same_pods
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent import script
from finetune_trainer.agent.children import die_with_parent
from finetune_trainer.agent.verdict import say
from finetune_trainer.agent.waiting import is_loopback
from finetune_trainer.agent.weights import check_weights
from finetune_trainer.methods.needs import check as check_method
from finetune_trainer.methods.needs import check_compile, check_format, check_inputs, check_recompute
from finetune_trainer.planning import machine
from finetune_trainer.planning.advice import smallest_change
from finetune_trainer.planning.devices import nameless
from finetune_trainer.planning.earlier_adapter import planned_shape
from finetune_trainer.planning.forecast import Forecast, forecast, here, with_method
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape, check_on_experts, find_shape
from finetune_trainer.planning.positions import fitted
from finetune_trainer.planning.quantity import quantity
from finetune_trainer.planning.strategy import check_installed, choose
from finetune_trainer.planning.suits import check_suits
from finetune_trainer.planning.table import Planner, Workload
from finetune_trainer.rundir import now, write_atomic
from finetune_trainer.switching.artifacts import check_earlier
from finetune_trainer.train.process_exit import exit_process

if TYPE_CHECKING:
    from finetune_api.data import Data
    from finetune_trainer.data.load import Datasets
    from finetune_trainer.methods.earlier import Earlier
    from finetune_trainer.store.models import LocalModel

BENEFIT_OF_THE_DOUBT = {"cpu": 0.8, "cuda": 0.9}
"""Tolerance of the estimate: a run is rejected only if it exceeds its memory by more. For a GPU,
which holds only tensors, the tolerance is the tenth that the plan adds for fragmentation."""

UNREAD = Workload(longest=256)
"""Assumed workload before the rows are read, which may be far shorter than allowed."""


def main(argv: list[str] | None = None) -> int:
    die_with_parent()
    parser = argparse.ArgumentParser(prog="finetune_trainer.agent.preflight")
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--words", type=Path, required=True)
    parser.add_argument("--forecast", type=Path, help="where to write the forecast of a ladder")
    options = parser.parse_args(argv)
    plan = RunPlan.model_validate_json(options.plan.read_bytes())
    _log.set(plan.log(os.environ))
    try:
        cache = Path(os.environ.get(names.ENV_CACHE, names.CACHE_DIR))
        if plan.spec.method.is_auto:
            found = foresee(plan, cache=cache)
            write_atomic(options.forecast, json.dumps(found.to_json()))
        else:
            check(plan, cache=cache)
    except FinetuneError as error:
        return _leave(say(error.reason, error.message, hint=error.hint, time=now()), options.words)
    except Exception as error:
        traceback.print_exc()
        message = f"the preflight failed: {type(error).__name__}: {error}"
        return _leave(say(Reason.UnexpectedError, message, time=now()), options.words)
    return 0


def _leave(words: TerminationMessage, target: Path) -> int:
    write_atomic(target, words.encode())
    return words.exit_code


def check(plan: RunPlan, *, cache: Path) -> None:
    """FinetuneError for the first thing that is wrong."""
    from finetune_trainer.data.embedding_check import check_embedded
    from finetune_trainer.data.labelled import labelled
    from finetune_trainer.data.tokenizer import Tokenizer
    from finetune_trainer.transfer.diagnostics.similarity import check_comparable

    spec = plan.spec
    if spec.command is not None:
        _check_script(plan)
        return
    model, earlier = _output_and_model(plan, cache=cache)
    shape = planned_shape(model.path, spec.method, earlier.adapter if earlier else None)
    check_installed(spec.strategy)
    check_method(spec.method, layers=shape.layers if shape else None)
    check_inputs(spec.method, json.loads((model.path / "config.json").read_bytes()))
    device = "cuda" if machine.gpu_memory() else "cpu"
    check_suits(model.path, spec.method, device=device, vocabulary=spec.vocabulary is not None)
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
    if spec.output.switch_test:
        check_earlier(spec.output.switch_test, model, cache=cache)
    data, datasets = _rows(spec, model, cache=cache, earlier=earlier, fold=plan.fold)
    if earlier is not None:
        _check_tasks(earlier, datasets, model, cache=cache)
    check_format(spec.method, datasets.statistics.format)
    if spec.vocabulary is not None:
        model = _extended(spec, model, datasets, cache=cache)
        shape = find_shape(model.path)
        data, datasets = _rows(spec, model, cache=cache, earlier=earlier, fold=plan.fold)
    if spec.training.early_stopping and datasets.validation is None:
        raise FinetuneError(
            Reason.InvalidSpec,
            "training.earlyStopping needs validation rows, and none could be held out of a single training row",
            "Set data.validation.uri, or remove training.earlyStopping.",
        )
    if spec.diagnostics.similarity:
        check_comparable({"test": datasets.test, "validation": datasets.validation, "general": datasets.general})
    if spec.diagnostics.probes:
        tokenizer = Tokenizer.load(model.path)
        for probe in spec.diagnostics.probes:
            labelled(probe, tokenizer, seed=spec.training.seed)
    if shape is not None:
        read = plan.model_copy(update={"spec": spec.model_copy(update={"given_data": data})})
        check_memory(read, shape, workload_of(datasets))
        check_embedded(datasets, embeddings=shape.vocabulary, tokenizer_path=model.path)
    for line in datasets.statistics.lines():
        _tell(f"data: {line}")


def foresee(plan: RunPlan, *, cache: Path) -> Forecast:
    """Which rungs a ladder has for these rows, and what each may cost here. FinetuneError for what all rungs lack."""
    spec = with_method(for_rung(plan.spec, plan.pods_of))
    model, _ = _output_and_model(plan, cache=cache)
    shape = find_shape(model.path)
    check_installed(spec.strategy)
    data, datasets = _rows(spec, model, cache=cache)
    workload, labelled = workload_of(datasets), datasets.statistics.format == "classification"
    if shape is None:
        return forecast(spec, None, workload, labelled=labelled)
    return here(
        spec.model_copy(update={"given_data": data}),
        shape,
        workload,
        labelled=labelled,
        elsewhere=lambda method: not same_pods(plan.spec, plan.pods_of, method),
    )


def _output_and_model(plan: RunPlan, *, cache: Path) -> tuple[LocalModel, Earlier | None]:
    from finetune_trainer.methods.earlier import earlier_of
    from finetune_trainer.store.artifact import check_output
    from finetune_trainer.store.models import resolve_model
    from finetune_trainer.store.opening import open_folder

    spec = plan.spec
    output = open_folder(spec.output.uri, prefix=names.PREFIX_OUTPUT)
    check_output(output, plan.job, overwrite=spec.output.overwrite)
    output.check_writable()
    earlier = earlier_of(spec, cache=cache, allowed=plan.uri_prefixes)
    if earlier is None:
        model = resolve_model(spec.model, cache=cache, tell=_tell)
    else:
        model = resolve_model(earlier.source, cache=cache, prefix=earlier.prefix, tell=_tell)
        earlier.check_model(model)
        _tell(earlier.told())
        earlier.check_files(model)
    _tell(f"model {model.uri}" + (f" at {model.revision}" if model.revision else ""))
    for line in check_weights(model.path):
        _tell(line)
    return model, earlier


def _check_tasks(earlier: Earlier, datasets: Datasets, model: LocalModel, *, cache: Path) -> None:
    """The test data of all tasks before this one, which are measured again."""
    from finetune_trainer.transfer.tasks import check_rows, tests_of

    earlier.check_tokenizer(datasets.statistics.tokenizer)
    tests = tests_of(earlier.sequence, tokenizer_path=model.path, cache=cache)
    check_rows(tests, earlier.manifest, earlier.uri)
    for test in tests:
        _tell(f"earlier task {test.task.name}: {len(test.corpus):,} rows of {test.task.test.uri} are measured again")


def _rows(
    spec: FineTuneJobSpec,
    model: LocalModel,
    *,
    cache: Path,
    earlier: Earlier | None = None,
    fold: Fold | None = None,
) -> tuple[Data, Datasets]:
    """The rows, and the data with the sequence length that the model allows."""
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.methods.earlier import replayed_by

    data = fitted(spec.data, model.path, spec.method)
    if data != spec.data:
        _tell(f"data: sequences of up to {data.sequence_length} tokens, as the model allows")
    datasets = load_datasets(
        data,
        tokenizer_path=model.path,
        cache=cache,
        seed=spec.training.seed,
        group_by=spec.evaluation.group_by,
        replay=spec.replay_uri,
        earlier=replayed_by(spec, earlier),
        fold=(fold.index, fold.of) if fold else None,
    )
    return data, datasets


def _extended(spec: FineTuneJobSpec, model: LocalModel, datasets: Datasets, *, cache: Path) -> LocalModel:
    """The model with the vocabulary that the manifest asks for."""
    from finetune_trainer.vocabulary.prepared import prepared

    assert spec.vocabulary is not None
    found = prepared(spec.vocabulary, model, datasets, cache=cache, seed=spec.training.seed)
    for line in found.record.lines():
        _tell(f"vocabulary: {line}")
    return found.local


def _check_script(plan: RunPlan) -> None:
    """Checks that the script exists, and that its diagnostics can be stored. It reads and writes other data itself."""
    from finetune_trainer.store.opening import open_folder

    spec = plan.spec
    script.check(spec.command or (), os.environ)
    if spec.given_output is not None:
        open_folder(spec.output.uri, prefix=names.PREFIX_OUTPUT).check_writable()
    _tell(f"command: {shlex.join(spec.command or ())}")


def check_memory(plan: RunPlan, shape: ModelShape, workload: Workload = UNREAD) -> None:
    """Raises InsufficientMemory if the processes of this node do not fit, with a margin for the error of the estimate.

    Checks this attempt, and the minimum number of nodes of an elastic job, where each node may hold more. Nothing is
    logged of rows that are not read yet."""
    _check_memory(plan, shape, workload)
    fewest = plan.spec.min_nodes
    if fewest >= plan.nodes:
        return
    where = f"with {fewest} node(s), the minimum of spec.nodes"
    if workload is not UNREAD:
        _tell(f"{where}:")
    try:
        _check_memory(plan.model_copy(update={"nodes": fewest}), shape, workload)
    except FinetuneError as error:
        raise FinetuneError(
            error.reason, f"{where}: {error.message}", f"Raise nodes.min, or use another fix: {error.hint}"
        ) from error


def _check_memory(plan: RunPlan, shape: ModelShape, workload: Workload) -> None:
    spec = plan.spec_of_attempt
    gpus = machine.gpu_memory()
    if gpus:
        _require(spec, shape, workload, min(gpus), kind="cuda", processes=1, what="memory of a GPU")
        return
    here = plan.processes_per_node
    if (given := spec.resources.limits.get("memory")) is not None:
        what = "resources.limits.memory of a node"
        _require(spec, shape, workload, quantity(given), kind="cpu", processes=here, what=what)
    here *= plan.nodes if is_loopback(plan.master_address) else 1
    _require(spec, shape, workload, machine.memory_limit(), kind="cpu", processes=here, what="memory of this machine")


def _require(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    workload: Workload,
    limit: int,
    *,
    kind: Literal["cpu", "cuda"],
    processes: int,
    what: str,
) -> None:
    planner = Planner(spec=spec, shape=shape, device=nameless(kind, memory=limit // processes), workload=workload)
    # Left open, the trainer takes what fits: the least is the longest row.
    tokens = max(planner.longest_row, min(spec.training.micro_batch_tokens or 0, planner.tokens_of_a_step))
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
    if workload is not UNREAD:
        _tell(text)
    if total * BENEFIT_OF_THE_DOUBT[kind] > limit:
        raise FinetuneError(Reason.InsufficientMemory, text, smallest_change(planner, spread))


def workload_of(datasets: Datasets) -> Workload:
    """Of an epoch, as it is trained on."""
    lengths = datasets.train.lengths
    known = Workload(rows=len(lengths), tokens=int(lengths.sum()), longest=int(lengths.max(initial=1)))
    if datasets.replay is None:
        return known
    replayed = datasets.replay.lengths
    longest = max(known.longest or 1, int(replayed.max()))
    return replace(known, longest=longest, replayed_row=float(replayed.mean()))


_log: ContextVar[JobLog | None] = ContextVar("log", default=None)


def _tell(line: str) -> None:
    if log := _log.get():
        log.write(line, prefix="preflight")
    else:
        print(f"preflight: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    exit_process(main())
