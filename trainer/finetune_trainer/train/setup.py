"""From a manifest to a trainer: model, method, data layout and the defaults that depend on them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from finetune_api import names
from finetune_api.methods import Method
from finetune_api.plan import Fold, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ResolvedPlan
from finetune_api.strategy import SHARDED
from finetune_trainer.data.halves import tune_half
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.order import Mixture, steps_per_epoch, total_steps
from finetune_trainer.data.sample import measured_part
from finetune_trainer.ladder.race import pause_of
from finetune_trainer.methods import fault
from finetune_trainer.methods.base import Attached, HasPrompt, PacksWeights, without_adapter
from finetune_trainer.methods.earlier import Earlier, replayed_by
from finetune_trainer.methods.needs import check_compile, check_inputs, check_recompute, check_strategy
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.planning.earlier_adapter import planned_shape
from finetune_trainer.planning.positions import fitted
from finetune_trainer.rundir import RunDir
from finetune_trainer.statistics import DataRecord
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.models import LocalModel
from finetune_trainer.transfer.evaluate import Layout
from finetune_trainer.transfer.references import References, references_of
from finetune_trainer.transfer.tasks import EarlierTest
from finetune_trainer.vocabulary.prepared import Prepared, prepared
from finetune_trainer.vocabulary.rows import VocabularyRows

from . import frozen_cache
from .activation_checkpointing import recompute_blocks
from .activations import held_to
from .auto_layers import resolve_layers
from .auto_replay import settle_replay
from .capabilities import probe
from .checkpointer import Checkpointer
from .compilation import compile_blocks
from .device import fitting_layout, fitting_strategy, low_precision
from .kernel_selection import chosen
from .loop import Course, Trainer
from .method_support import OTHER_METHOD
from .model import LanguageModel, as_stored, load_network
from .optimizer import default_peak, named
from .origin import Origin, base_of, rows_of
from .pinned_inputs import Inputs
from .reporter import Reporter
from .resolved_spec import resolve_spec
from .rows import data_record, longest_row, regularization_of, replay_of, varied
from .self_replay import own_text

_EVALUATIONS = 10
"""Evaluations of the validation rows in a run, where the manifest does not say."""


@dataclass(frozen=True)
class Setup:
    """All that a run works with."""

    plan: RunPlan
    local: LocalModel
    data: Datasets
    attached: Attached
    trainer: Trainer
    resolved: ResolvedPlan
    data_record: DataRecord
    spec: FineTuneJobSpec
    """The spec that runs, with everything resolved that the manifest leaves open; `plan.spec` is the manifest's."""
    references: References
    """Earlier artifacts on the slices; of rank 0."""
    vocabulary: Prepared | None = None
    """What spec.vocabulary made of the model; `local` is then the extended one."""
    rows: VocabularyRows | None = None
    """The rows of the embeddings that train besides what is attached."""
    earlier: Earlier | None = None
    """The artifact that the run starts from."""
    tests: tuple[EarlierTest, ...] = ()
    """Of the tasks before this one."""
    origin: Origin | None = None
    """The base model, where it has another tokenizer than the run."""

    @property
    def of_base(self) -> Setup:
        """What the base model is measured with, before the first step."""
        if self.origin is None:
            return self
        trainer = self.origin.trainer(self.trainer)
        return replace(self, local=self.origin.local, data=self.origin.data, trainer=trainer)

    @property
    def fold(self) -> Fold | None:
        return self.plan.fold

    @property
    def labels_of_tests(self) -> dict[str, tuple[str, ...]]:
        return {test.name: test.task.test.labels for test in self.tests}


def prepare(plan: RunPlan, *, gang: Strategy, device: torch.device, output: Folder, run_dir: RunDir) -> Setup:
    """Collective: every rank loads model and data by itself, from caches that a node shares, and all the same ones."""
    spec = plan.spec_of_attempt
    training = spec.training
    cache = Path(os.environ.get(names.ENV_CACHE) or names.CACHE_DIR)
    reporter = Reporter(run_dir, plan, gang.place)
    reporter.phase("loading", f"loading {spec.model.uri}")
    inputs = Inputs.of(plan, gang, output)
    earlier = inputs.earlier(spec, cache=cache)
    local = (
        inputs.model(earlier.source, cache=cache, prefix=earlier.prefix)
        if earlier
        else inputs.model(spec.model, cache=cache)
    )
    if earlier is not None:
        earlier.check_model(local)
        reporter.say(earlier.told())
    spec = spec.model_copy(update={"given_data": fitted(spec.data, local.path, spec.method)})
    read = partial(
        inputs.data,
        spec.data,
        cache=cache,
        seed=training.seed,
        group_by=spec.evaluation.group_by,
        replay=spec.replay_uri,
        earlier=replayed_by(spec, earlier),
        fold=plan.fold,
    )
    data = read(tokenizer_path=local.path)
    vocabulary = prepared(spec.vocabulary, local, data, cache=cache, seed=training.seed) if spec.vocabulary else None
    origin = Origin.of(local, data, vocabulary)
    if vocabulary is not None:
        local = vocabulary.local
        data = read(tokenizer_path=local.path)
    data, drawn_from = measured_part(data, most=spec.evaluation.max_rows, seed=training.seed)
    if origin is not None:
        data, origin = origin.beside(data, say=reporter.say)
    references = references_of(spec.evaluation.references, data.slices) if gang.place.first else {}
    if earlier is not None:
        earlier.check_tokenizer(data.statistics.tokenizer)
    tests = inputs.tests(earlier, tokenizer_path=local.path, cache=cache)
    reporter.alive()

    low = low_precision(spec, device)
    frozen_base = not spec.method.trains_the_model
    longest = longest_row(data) + spec.method.virtual_tokens
    shape = planned_shape(local.path, spec.method, earlier.adapter if earlier else None)
    strategy, spread = fitting_strategy(spec, shape, gang, device, low=low, longest_row=longest)
    check_strategy(spec.method, strategy.name)
    if training.compile:
        check_compile(spec.method, strategy.name)
    if training.activation_checkpointing:
        check_recompute(spec.method, compiled=training.compile)
    packing = _packing(spec.method)
    network, stored = load_network(
        local.path,
        dtype=torch.bfloat16 if low and frozen_base else torch.float32,
        strategy=strategy,
        device=device,
        frozen=frozen_base,
        packed=partial(packing.packed_layers, device=device) if packing else None,
        products=torch.bfloat16 if low else None,
        say=reporter.say,
    )
    check_inputs(spec.method, cast(Any, network).config.to_dict())
    parameters = sum(map(_numel, network.parameters()))
    reporter.alive()
    checkpointer = Checkpointer.of(plan, strategy, output)
    if spec.method.is_open:
        spec = _settle(
            spec, network, data, device, low=low, strategy=strategy, store=checkpointer.notes, reporter=reporter
        )
    method = method_of(spec.method)
    if packing:
        packing.quantise(network, device=device)
    with fault.of_model(network, f"cannot be trained by method.type {spec.method.type}", hint=OTHER_METHOD):
        base = base_of(local, stored, earlier, changed=vocabulary is not None, output=spec.output.uri)
        attached = method.attach(network, seed=training.seed, base=base)
    rows = rows_of(vocabulary, attached, network, local, device)
    trainable = {**attached.trainable, **(rows.trainable if rows else {})}
    prompt = attached if isinstance(attached, HasPrompt) else None
    weights = strategy.weights(network, trainable, weight_decay=training.weight_decay, optimizer=training.optimizer)
    capabilities = probe(network, device, strategy=strategy, in_front=prompt.in_front if prompt else 0)
    if prompt:  # a prefix takes over the masks
        with prompt.off():
            capabilities = capabilities.common(probe(network, device, strategy=strategy))
    if rows:  # the probes look at the network with another head
        rows.install(network)
    below = None if data.variants or rows else frozen_cache.below(spec, network, attached, device, strategy)
    if low and spec.method.traits.trains == "blocks" and strategy.name not in SHARDED:
        as_stored(network, stored)
    compiled = 0
    if training.compile:
        compiled = compile_blocks(network, lowest=attached.lowest_layer, cache=cache, device=device)
    again = recompute_blocks(network, lowest=attached.lowest_layer) if training.activation_checkpointing else 0
    # All weights in training keep full precision, and only products are cheap; a frozen base is cheap as a whole.
    autocast = torch.bfloat16 if low and not frozen_base else None
    model = LanguageModel(network, device, autocast, capabilities, strategy, below, rows=rows)

    train = data.train.after(prompt.ids) if prompt else data.train
    with prompt.off() if prompt else nullcontext():
        base_model = origin.model(model) if origin else model
        data = own_text(spec, base_model, data, local.path, store=checkpointer.notes, reporter=reporter)
        shown = origin.measured_on(data) if origin else data
        spec, replayed = settle_replay(spec, base_model, shown, store=checkpointer.notes, reporter=reporter)
    replay = replay_of(spec, data, prompt.ids if prompt else None)
    layout = fitting_layout(
        spec,
        data,
        train,
        shape,
        device,
        low=low,
        replay=replay,
        isolates=capabilities.isolates,
        processes=strategy.place.world_size,
        spread=spread,
    )
    model = replace(model, kernels=chosen(spec, model, layout, train, store=checkpointer.notes, say=reporter.say))
    start = frozen_cache.digest_of(local.path) + (earlier.digest if earlier and earlier.adapter else "")
    held = held_to(spec, attached, model, layout, data.replay, cache=cache, of_model=start, reporter=reporter)
    terms = regularization_of(spec, attached, replay, strategy.place).and_penalties(held)
    course = _course(spec, rows=data.mixture, hidden_size=model.hidden_size)
    if plan.trial is not None:
        course = replace(course, peak_rate=plan.trial.factor * course.peak_rate)
    resolved = ResolvedPlan(
        method=spec.method.type,
        strategy=strategy.name,
        world_size=strategy.place.world_size,
        precision="bfloat16" if low else "float32",
        learning_rate=course.peak_rate,
        batch_size=course.batch_size,
        micro_batch_tokens=layout.max_tokens,
        longest_row=int(train.lengths.max(initial=1)),
        total_steps=course.total_steps,
        parameters=parameters,
        trainable_parameters=sum(map(_numel, trainable.values())),
        trained_layers=spec.method.measured,
        model_revision=local.revision,
        train_rows=len(data.train),
        trained_tokens_per_epoch=data.trained_tokens_per_epoch,
    )
    reporter.resolved = resolved
    reporter.steps_per_epoch = steps_per_epoch(data.mixture, batch_size=course.batch_size)
    blocks = f"{compiled} blocks compiled" if compiled else "no blocks compiled"
    blocks += f", {again} run again for their gradients" if again else ""
    optimizer = named(training.optimizer, strategy=strategy.name)
    reporter.say(f"{model.describe(reasons=True)}, optimizer {optimizer}, {blocks}")
    reporter.say(_describe(resolved, attached))
    record = data_record(spec, data, train.lengths, course, layout, world_size=strategy.place.world_size)
    more = {
        "drawn_from": drawn_from,
        "max_rows": spec.evaluation.max_rows,
        "replayed": replayed,
        "vocabulary": vocabulary.record if vocabulary else None,
    }
    record = record.model_copy(update=more)
    for topic, line in record.lines():
        reporter.say(f"{topic}: {line}")
    validation = data.validation if data.validation is not None and len(data.validation) else None
    if validation is not None and (plan.rung is not None or plan.publishes is not None):
        validation = tune_half(validation)
    if below:
        shelf = frozen_cache.StateCache(model, layout, cache / "frozen", start)
        train, validation = frozen_cache.kept(train, validation, shelf, plan, course=course, reporter=reporter)
    trainer = Trainer(
        course=course,
        model=model,
        weights=weights,
        train=train,
        validation=validation,
        layout=layout,
        strategy=strategy,
        checkpointer=checkpointer,
        reporter=reporter,
        stop_requested=lambda: run_dir.stop_requested,
        prompt=prompt,
        mixture=data.mixture,
        varied=varied(data, prompt.ids if prompt else None),
        regularization=terms,
        skipped_step=plan.skipped_step,
        pause=pause_of(plan.trial, total=course.total_steps, every=course.evaluate_every),
    )
    spec = resolve_spec(
        spec,
        resolved=resolved,
        course=course,
        layout=layout,
        data_format=data.statistics.format,
        processes_per_node=gang.place.local_world_size,
        hidden_size=model.hidden_size,
    )
    return Setup(
        plan, local, data, attached, trainer, resolved, record, spec, references, vocabulary, rows, earlier, tests,
        origin,
    )  # fmt: skip


def _settle(
    spec: FineTuneJobSpec,
    network: torch.nn.Module,
    data: Datasets,
    device: torch.device,
    *,
    low: bool,
    strategy: Strategy,
    store: CheckpointStore | None,
    reporter: Reporter,
) -> FineTuneJobSpec:
    """With what the method leaves open decided by the data."""
    model = LanguageModel(network, device, torch.bfloat16 if low else None, probe(network, device), strategy)
    method = resolve_layers(
        spec.method,
        model,
        data.train,
        layout=Layout(
            max_tokens=spec.data.sequence_length,
            sequence_length=spec.data.sequence_length,
            packing=False,
            pad_id=data.pad_id,
        ),
        seed=spec.training.seed,
        batch_size=spec.training.batch_size,
        gang=strategy,
        store=store,
        alive=reporter.alive,
    )
    return spec.model_copy(update={"method": method})


def _packing(method: Method) -> PacksWeights | None:
    """The method, where it keeps the base in fewer bits."""
    made = None if method.is_open else method_of(method)
    return made if isinstance(made, PacksWeights) else None


def _numel(parameter: torch.nn.Parameter) -> int:
    """The size of the whole; DeepSpeed leaves nothing of a parameter whose shards it keeps; 4 bits are half a byte."""
    return int(getattr(parameter, "ds_numel", getattr(parameter, "unpacked_numel", parameter.numel())))


def _course(spec: FineTuneJobSpec, *, rows: Mixture, hidden_size: int) -> Course:
    training = spec.training
    total = total_steps(rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    if not spec.method.traits.steps:
        total = 0
    stopping = training.early_stopping
    return Course(
        total_steps=total,
        batch_size=training.batch_size,
        seed=training.seed,
        peak_rate=training.learning_rate or default_peak(method=spec.method.type, hidden_size=hidden_size),
        warmup_ratio=training.warmup_ratio,
        schedule=training.schedule,
        max_grad_norm=training.max_grad_norm,
        evaluate_every=training.evaluate_every or max(1, total // _EVALUATIONS),
        patience=stopping.patience if stopping else None,
        min_delta=stopping.min_delta if stopping else 0.0,
    )


def _describe(resolved: ResolvedPlan, attached: Attached) -> str:
    if not attached.trainable:
        return f"{resolved.method}: all {resolved.parameters:,} parameters stay as they are"
    without = without_adapter(attached)
    experts = f"; {without:,} (experts, for instance) have no adapter" if without else ""
    return (
        f"{resolved.method}: {resolved.trainable_parameters:,} of {resolved.parameters:,} parameters train, "
        f"from layer {attached.lowest_layer}; {resolved.total_steps} steps of {resolved.batch_size} rows "
        f"at {resolved.learning_rate:.2e} on {resolved.world_size} processes{experts}"
    )
