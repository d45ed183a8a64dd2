"""`finetune plan FILE`: estimates memory, time and cost of a job before it runs. It downloads nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from finetune_api import names, uris, yaml_text
from finetune_api.base import ApiModel
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.ladder import Price
from finetune_api.manifest import ManifestError
from finetune_api.progress_text import span
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.cli.continued import continued, replayed_text
from finetune_trainer.cli.ladder_plan import forecast_text, is_labelled, planned, rule_json, rule_text
from finetune_trainer.cli.remedy_plan import remedies_json, remedies_text
from finetune_trainer.cli.text import problems_text, table
from finetune_trainer.cli.validate import read_manifest
from finetune_trainer.cli.workload import workload_of
from finetune_trainer.methods.needs import check_inputs
from finetune_trainer.planning.advice import Advice, recommended, smallest_change
from finetune_trainer.planning.devices import Device, gpu, this_machine
from finetune_trainer.planning.forecast import Forecast, forecast, on_other_devices, with_method
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape, check_on_experts, check_tensors, read_shape
from finetune_trainer.planning.positions import fitted
from finetune_trainer.planning.remedies import foreseen
from finetune_trainer.planning.suits import check_suits
from finetune_trainer.planning.table import Planner, Row, Workload
from finetune_trainer.store.models import check_config
from finetune_trainer.store.tensors import weight_files

if TYPE_CHECKING:
    from collections.abc import Mapping


class Prices(ApiModel):
    """The user's price table. None is included, since public prices for the same machine differ."""

    currency: Annotated[str, Field(min_length=1, max_length=16)]
    date: str
    per_gpu_hour: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]

    def of(self, device: str) -> Price | None:
        """By its name, in any case; None for one that is not in the table."""
        hourly = {name.lower(): price for name, price in self.per_gpu_hour.items()}.get(device.lower())
        return None if hourly is None else Price(per_hour=hourly, currency=self.currency)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Options of the command."""

    file: str
    gpu: str | None = None
    memory: str | None = None
    """A quantity: `80Gi`."""
    prices: Path | None = None
    model: Path | None = None
    rows: int | None = None
    tokens: int | None = None
    longest: int | None = None
    network: float = 100.0
    """Inter-node bandwidth in Gbit/s."""
    exact: bool = False
    as_json: bool = False
    everything: bool = False
    """Whether the table also has what does not fit."""
    cache: Path = Path(names.CACHE_DIR)


def show_plan(wish: Wish) -> int:
    try:
        job = read_manifest(wish.file)
    except ManifestError as error:
        print(problems_text(wish.file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    spec = job.spec
    folder = wish.model or model_folder(spec.model, cache=wish.cache)
    shape = shape_of(folder)
    config = json.loads((folder / "config.json").read_bytes())
    check_config(config, spec.model.uri)
    check_tensors(folder)
    auto = spec.method.is_auto
    spec = with_method(spec) if auto else spec
    check_inputs(spec.method, config)
    spec = spec.model_copy(update={"given_data": fitted(spec.data, folder, spec.method)})
    if shape.passed:
        check_on_experts(spec.method, shape)
    device = None if wish.gpu else "cpu"
    check_suits(folder, spec.method, device=device, vocabulary=spec.vocabulary is not None)
    shape, frozen = continued(spec, shape)
    planner = _planner(wish, spec, shape)
    rows = planner.rows()
    advice = recommended(rows, planner)
    answering = planner.answering(advice.row)
    ladder = None if spec.continue_from is not None else _ladder(planner)
    prices = read_prices(wish.prices) if wish.prices else None
    price = prices.of(planner.device.name) if prices else None
    remedies = foreseen(planner)
    content: dict[str, Any] = {
        "job": job.metadata.name,
        "device": {"name": planner.device.name, "memoryBytes": planner.device.memory},
        "processes": spec.world_size,
        "precision": planner.precision,
        "model": {
            "parameters": shape.parameters,
            "activeParameters": shape.active,
            "layers": shape.layers,
            "withoutAdapter": shape.unreached,
        },
        "rows": planner.workload.rows,
        "tokens": planner.workload.tokens,
        "longestRow": planner.longest_row,
        "steps": planner.steps,
        "currency": prices.currency if prices else None,
        "priceDate": prices.date if prices else None,
        "plans": [_as_json(row, advice) for row in rows],
        "reasons": list(advice.reasons),
        "hint": _hint(planner, rows),
        "exactBytes": exact(folder, planner) if wish.exact else None,
        "mergedBytes": _merged_bytes(folder, planner) if spec.output.merged else None,
        "ladder": planned(ladder, spec, price) if ladder and auto else None,
        "ladderRule": rule_json(ladder.choice, ladder.folds) if ladder else None,
        "generation": asdict(answering) if answering else None,
        "remedies": remedies_json(remedies, price) if remedies else None,
    }
    text = _text(content, rows, advice, planner, all_rows=wish.everything)
    text += f"\n\n{frozen}" if frozen else ""
    text += f"\n\n{answering.told}" if answering else ""
    text += f"\n\n{_copied(planner)}" if spec.evaluation.prior_gain else ""
    text += f"\n\n{remedies_text(remedies, price)}" if remedies else ""
    if ladder is not None:
        told = forecast_text(ladder, spec, price) if auto else rule_text(ladder.choice, ladder.folds, spec)
        text += f"\n\n{told}"
    print(json.dumps(content, indent=2) if wish.as_json else text)
    return ExitCode.OK


def _ladder(planner: Planner) -> Forecast:
    """Of method.type auto on this data, whatever the job's method is."""
    spec = planner.spec
    return forecast(
        spec, planner, planner.workload, labelled=is_labelled(spec),
        elsewhere=lambda method: on_other_devices(spec, method),
    )  # fmt: skip


def _planner(wish: Wish, spec: FineTuneJobSpec, shape: ModelShape) -> Planner:
    from finetune_trainer.planning.quantity import quantity

    memory = quantity(wish.memory) if wish.memory else None
    device = _device(wish, spec, memory)
    price = read_prices(wish.prices).of(device.name) if wish.prices else None
    workload = (
        Workload(rows=wish.rows, tokens=wish.tokens, longest=wish.longest)
        if wish.rows or wish.tokens
        else workload_of(spec, longest=wish.longest)
    )
    return Planner(
        spec=spec,
        shape=shape,
        device=device,
        network=wish.network * 1e9 / 8,
        workload=workload,
        hourly=price.per_hour if price else None,
    )


def _device(wish: Wish, spec: FineTuneJobSpec, memory: int | None) -> Device:
    """Returns the named GPU, or this machine's CPUs. Raises InvalidSpec if the job needs GPUs and none is named."""
    if wish.gpu:
        return gpu(wish.gpu, memory=memory)
    if any(name.endswith("/gpu") for name in spec.resources.limits):
        raise FinetuneError(
            Reason.InvalidSpec,
            "the job requests GPUs, but their type is not known",
            "Set --gpu to H100, A100-80 or L40S.",
        )
    from finetune_trainer.planning.machine import memory_limit

    return this_machine(memory=memory or memory_limit(), processes=spec.world_size)


def model_folder(source: ModelSource, *, cache: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Returns the local folder with the model's config.json: model.uri, or a cache. Raises ModelNotFound."""
    uri = uris.parse(source.uri)
    if uri.scheme == "file":
        return Path("/" + uri.path.lstrip("/"))
    if uri.scheme == "hf":
        revision = source.revision or "main"
        for hub in (cache / "hub", Path(environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"):
            folder = hub / f"models--{uri.authority}--{uri.path}"
            reference = folder / "refs" / revision
            snapshot = folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else revision)
            if (snapshot / "config.json").exists():
                return snapshot
    raise FinetuneError(
        Reason.ModelNotFound,
        f"{source.uri} is not on this machine, and `plan` does not download models",
        "Pass a folder with its config.json: finetune plan --model FOLDER.",
    )


def shape_of(folder: Path) -> ModelShape:
    if not folder.is_dir():
        raise FinetuneError(
            Reason.ModelNotFound, f"folder {folder} does not exist; it must contain the model's config.json"
        )
    try:
        return read_shape(folder, weightless=True)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"cannot plan the model in {folder}: {error}",
            "Its config.json must contain the model's dimensions. With safetensors files in the folder, any family "
            "works.",
        ) from error


def read_prices(file: Path) -> Prices:
    """Reads a price table. Raises InvalidSpec if it is not {currency, date, perGpuHour: {NAME: price}}."""
    try:
        content = yaml_text.document(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "date" in content:
            content["date"] = str(content["date"])  # YAML makes a date of it
        return Prices.model_validate(content, strict=False)
    except (OSError, ValueError) as error:  # not UTF-8, not YAML, not a table
        raise FinetuneError(
            Reason.InvalidSpec,
            f"{file} is not a valid price table: {str(error).splitlines()[0]}",
            "Write {currency: EUR, date: 2026-01-31, perGpuHour: {H100: 2.5}}.",
        ) from error


def exact(folder: Path, planner: Planner) -> int:
    """Returns the traced memory peak of the job's method, on one process without sharding. Takes up to a minute."""
    method = planner.spec.method
    row = planner.row(method, planner.spread("ddp"))
    done = subprocess.run(
        [
            sys.executable, "-m", "finetune_trainer.train.exact_memory", "--model", str(folder),
            "--method", method.model_dump_json(by_alias=True, exclude_none=True),
            "--precision", planner.precision, "--tokens", str(row.tokens),
            "--optimizer", planner.spec.training.optimizer,
            *(["--recomputed"] if planner.spec.training.activation_checkpointing else []),
        ],
        capture_output=True, text=True, check=False, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = {
            "error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the process ended without output"
        }
    if "peak" not in answer:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"cannot trace the memory of {method.type}: {answer['error']}",
            "Run the plan without --exact.",
        )
    return int(answer["peak"])


def _merged_bytes(folder: Path, planner: Planner) -> int:
    """Returns the size of the base model's files, or their size in 16 bits if only config.json is present."""
    sizes = [file.stat().st_size for file in weight_files(folder) if file.is_file()]
    return sum(sizes) or 2 * planner.shape.parameters


def _hint(planner: Planner, rows: list[Row]) -> str | None:
    """Returns a change that makes the job fit, if it fits with none of the strategies that it allows."""
    wanted = planner.spec.strategy.type
    spreads = [planner.spread(kind) for kind in (("ddp", "fsdp") if wanted == "auto" else (wanted,))]
    own = [row for row in rows if row.method.type == planner.spec.method.type]
    allowed = [row for row in own if row.spread in spreads] or own
    return None if any(row.fits for row in allowed) else smallest_change(planner, allowed[-1].spread)


def _as_json(row: Row, advice: Advice) -> dict[str, Any]:
    need = row.need
    return {
        "method": row.method.type,
        "strategy": row.spread.label,
        "trainableParameters": row.trained,
        "microBatchTokens": row.tokens,
        "bytes": {
            "weights": need.weights,
            "optimizer": need.optimizer,
            "gathered": need.gathered,
            "activations": need.activations,
            "loss": need.loss,
            "host": need.host,
            "total": need.total,
        },
        "fits": row.fits,
        "tokensPerSecond": round(row.tokens_per_second, 1),
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "cost": None if row.cost is None else round(row.cost, 2),
        "recommended": row is advice.row,
    }


def grouped(rows: list[Row], advice: Advice, method: str) -> tuple[list[Row], list[Row]]:
    """Returns the rows to show (recommended, then what fits, then the job's own method), and those that do not fit."""
    fits = [row for row in rows if row.fits and row is not advice.row]
    own = [row for row in rows if row.method.type == method and not row.fits]
    first = [advice.row] if advice.row is not None else []
    shown = [*first, *fits, *own]
    return shown, [row for row in rows if row not in shown]


def _copied(planner: Planner) -> str:
    width = 2 if planner.precision == "bfloat16" else 4
    copy, free = planner.shape.parameters * width, planner.device.memory - 2 * planner.shape.parameters * width
    more = "" if free > 0 else ", which is more than a device has: remove it"
    return (
        f"evaluation.priorGain: a second copy of the weights on each process before the first step of an attempt, "
        f"{human(copy)}{more}; passes over at most 2,000 training rows and the test rows, twice"
    )


def _text(content: dict[str, Any], rows: list[Row], advice: Advice, planner: Planner, *, all_rows: bool) -> str:
    spec, shape = planner.spec, planner.shape
    load = planner.workload
    known = f"{load.rows:,} rows, about {load.tokens:,} tokens per epoch" if load.rows and load.tokens else None
    head = (
        f"{content['job']}: {shape.parameters:,} parameters in {shape.layers} layers, {planner.precision}; "
        f"{spec.world_size} x {planner.device.name} with {human(planner.device.memory)} each\n"
        + (
            f"(elastic: this is the maximum; the minimum is {spec.min_nodes * spec.processes})\n"
            if spec.min_nodes < spec.max_nodes
            else ""
        )
        + (known or "number of tokens unknown: set --rows and --tokens")
        + (f", {planner.steps:,} steps" if planner.steps else "")
        + f"; memory is planned for rows of up to {planner.longest_row:,} tokens"
        + ("" if load.longest else " (data.sequenceLength; set --longest if they are shorter)")
        + replayed_text(spec)
    )
    paid = content["currency"] if planner.hourly is not None else None
    columns = ("method, strategy", "trainable", "states", "activations", "loss", "peak", "fits", "tokens/s", "time")
    shown, others = grouped(rows, advice, spec.method.type)
    lines = []
    for row in [*shown, *others] if all_rows else shown:
        mark = "* " if row is advice.row else "  "
        time = "" if row.seconds is None else span(row.seconds)
        lines.append((
            f"{mark}{row.method.type}, {row.spread.label}", f"{row.trained:,}", human(row.need.least),
            human(row.need.activations), human(row.need.loss), human(row.need.total), "yes" if row.fits else "no",
            f"{row.tokens_per_second:,.0f}", time, *(() if paid is None else (f"{row.cost or 0:,.2f}",)),
        ))  # fmt: skip
    if shape.passed:
        head += f"\n{shape.experts_line()}" + ("; qlora does not support them" if shape.mostly_experts else "")
    parts = [head, table((*columns, *(() if paid is None else (paid,))), lines, indent="")]
    if others and not all_rows:
        parts.append(f"{len(others)} combinations that do not fit are hidden; --all shows them")
    if content["exactBytes"] is not None:
        parts.append(f"traced peak of {spec.method.type} on one process: {human(content['exactBytes'])}")
    name = "nothing fits" if advice.row is None else f"* {advice.row.method.type}, {advice.row.spread.label}"
    parts.append(f"{name}: " + "; ".join(advice.reasons))
    if content["hint"] is not None:
        parts.append(f"the job does not fit as written. {content['hint']}")
    if content["mergedBytes"] is not None and spec.method.traits.mergeable:
        size = human(content["mergedBytes"])
        parts.append(f"output.merged adds {size} to the artifact, and needs as much disk space on the first pod")
    if content["priceDate"] is not None:
        known = f"prices of {content['priceDate']}"
        parts.append(known if paid else f"{known} do not include {planner.device.name}")
    return "\n\n".join(parts)
