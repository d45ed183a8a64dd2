"""From a manifest to a trainer: model, method, data layout and the defaults that depend on them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from finetune_api import durations, names, uris
from finetune_api.methods import Method
from finetune_api.plan import RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import ResolvedPlan
from finetune_api.strategy import SHARDED
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.order import Mixture, steps_per_epoch, total_steps
from finetune_trainer.methods.base import Attached, Base
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.methods.needs import check_compile, check_recompute, check_strategy, is_open
from finetune_trainer.methods.qlora import QLora, packed_layers
from finetune_trainer.methods.registry import method_of
from finetune_trainer.methods.soft import SoftAttached
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.planning.positions import fitted
from finetune_trainer.rundir import RunDir
from finetune_trainer.statistics import DataRecord
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.folder import Folder
from finetune_trainer.store.models import LocalModel
from finetune_trainer.transfer.evaluate import Layout

from . import frozen
from .choose import settled
from .compiled import compile_blocks
from .device import fitting_layout, fitting_strategy, low_precision
from .inputs import Inputs
from .keeper import Keeper
from .kernels import chosen
from .loop import Course, Trainer
from .model import LanguageModel, as_stored, load_network, probe
from .optimizer import default_peak, named
from .recompute import recompute_blocks
from .reporter import Reporter
from .rows import data_record, varied

_EVALUATIONS = 10
"""Of the validation rows in a run, where the manifest does not say."""


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

    @property
    def spec(self) -> FineTuneJobSpec:
        return self.plan.spec


def choose_device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def prepare(plan: RunPlan, *, gang: Strategy, device: torch.device, output: Folder, run_dir: RunDir) -> Setup:
    """Collective: every rank loads model and data by itself, from caches that a node shares, and all the same ones."""
    spec = plan.spec_of_attempt
    training = spec.training
    cache = Path(os.environ.get(names.ENV_CACHE) or names.CACHE_DIR)
    reporter = Reporter(run_dir, plan, gang.place)
    reporter.phase("loading", f"loading {spec.model.uri}")
    inputs = Inputs.of(plan, gang, output)
    local = inputs.model(spec.model, cache=cache)
    spec = spec.model_copy(update={"given_data": fitted(spec.data, local.path, spec.method)})
    data = inputs.data(spec.data, tokenizer_path=local.path, cache=cache, seed=training.seed)
    reporter.alive()

    low = low_precision(spec, device)
    frozen_base = not spec.method.trains_the_model
    strategy = fitting_strategy(spec, local, gang, device, low=low)
    check_strategy(spec.method, strategy.name)
    if training.compile:
        check_compile(spec.method, strategy.name)
    if training.activation_checkpointing:
        check_recompute(spec.method, compiled=training.compile)
    network, stored = load_network(
        local.path,
        dtype=torch.bfloat16 if low and frozen_base else torch.float32,
        strategy=strategy,
        device=device,
        frozen=frozen_base,
        packed=partial(packed_layers, device=device) if spec.method.type == "qlora" else None,
    )
    parameters = sum(map(_numel, network.parameters()))
    reporter.alive()
    keeper = _keeper(plan, strategy, output)
    if is_open(spec.method):
        spec = _settle(spec, network, data, device, low=low, strategy=strategy, store=keeper.notes, reporter=reporter)
    method = method_of(spec.method)
    if isinstance(method, QLora):
        method.quantise(network, device=device)
    attached = method.attach(network, seed=training.seed, base=_base(local, stored))
    prompt = attached if isinstance(attached, SoftAttached) else None
    weights = strategy.weights(
        network, attached.trainable, weight_decay=training.weight_decay, optimizer=training.optimizer
    )
    abilities = probe(network, device, strategy=strategy)
    if prompt:  # a prefix takes over the masks
        with prompt.off():
            abilities = abilities.common(probe(network, device, strategy=strategy))
    below = None if data.variants else frozen.below(spec, network, attached, device, strategy)
    if low and spec.method.type == "partial" and strategy.name not in SHARDED:
        as_stored(network, stored)
    compiled = 0
    if training.compile:
        compiled = compile_blocks(network, lowest=attached.lowest_layer, cache=cache, device=device)
    again = recompute_blocks(network, lowest=attached.lowest_layer) if training.activation_checkpointing else 0
    # All weights in training keep full precision, and only products are cheap; a frozen base is cheap as a whole.
    autocast = torch.bfloat16 if low and not frozen_base else None
    model = LanguageModel(network, device, autocast, abilities, strategy, below)

    train = data.train.after(prompt.ids) if prompt else data.train
    layout = fitting_layout(spec, data, train, local, device, low=low, isolates=abilities.isolates, strategy=strategy)
    model = replace(model, kernels=chosen(spec, model, layout, train, store=keeper.notes, say=reporter.say))
    course = _course(spec, rows=data.mixture, hidden_size=model.hidden_size)
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
        trainable_parameters=sum(map(_numel, attached.trainable.values())),
        trained_layers=_trained_layers(spec.method),
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
    for topic, line in record.lines():
        reporter.say(f"{topic}: {line}")
    validation = data.validation if data.validation is not None and len(data.validation) else None
    if below:
        shelf = frozen.Shelf(model, layout, cache / "frozen", frozen.digest_of(local.path))
        train, validation = frozen.kept(train, validation, shelf, plan, course=course, reporter=reporter)
    trainer = Trainer(
        course=course,
        model=model,
        weights=weights,
        train=train,
        validation=validation,
        layout=layout,
        strategy=strategy,
        keeper=keeper,
        reporter=reporter,
        stop_requested=lambda: run_dir.stop_requested,
        prompt=prompt,
        mixture=data.mixture,
        varied=varied(data, prompt.ids if prompt else None),
        skipped_step=plan.skipped_step,
    )
    return Setup(plan, local, data, attached, trainer, resolved, record)


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
    method = settled(
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


def _trained_layers(method: Method) -> int | None:
    layers = method.partial.layers if method.type == "partial" and method.partial else None
    return layers if isinstance(layers, int) else None


def _numel(parameter: torch.nn.Parameter) -> int:
    """Of the whole; DeepSpeed leaves nothing of a parameter whose shards it keeps, and 4 bits are half a byte."""
    return int(getattr(parameter, "ds_numel", getattr(parameter, "unpacked_numel", parameter.numel())))


def _course(spec: FineTuneJobSpec, *, rows: Mixture, hidden_size: int) -> Course:
    training = spec.training
    total = total_steps(rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    if spec.method.type == "probe":
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


def _keeper(plan: RunPlan, strategy: Strategy, output: Folder) -> Keeper:
    every = plan.spec.checkpoint.every
    return Keeper(
        strategy=strategy,
        store=CheckpointStore(output, plan.job),
        keep=plan.spec.checkpoint.keep,
        every_steps=every if isinstance(every, int) else None,
        every_seconds=None if isinstance(every, int) else durations.seconds(every),
    )


def _base(local: LocalModel, stored: torch.dtype) -> Base:
    uri = uris.parse(local.uri)
    loadable = {"hf": f"{uri.authority}/{uri.path}", "file": f"/{uri.path.lstrip('/')}"}
    return Base(loadable.get(uri.scheme, local.uri), stored, local.revision, local.path)


def _describe(resolved: ResolvedPlan, attached: Attached) -> str:
    if not attached.trainable:
        return f"{resolved.method}: all {resolved.parameters:,} parameters stay as they are"
    without = attached.without if isinstance(attached, LoraAttached) else 0
    experts = f"; {without:,} (experts, for instance) have no adapter" if without else ""
    return (
        f"{resolved.method}: {resolved.trainable_parameters:,} of {resolved.parameters:,} parameters train, "
        f"from layer {attached.lowest_layer}; {resolved.total_steps} steps of {resolved.batch_size} rows "
        f"at {resolved.learning_rate:.2e} on {resolved.world_size} processes{experts}"
    )
