"""`finetune plan FILE`: what a job would need, take and cost, before anything is held. Nothing is downloaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError

from finetune_api import names, uris
from finetune_api.base import ApiModel
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.manifest import ManifestError
from finetune_api.spec import FineTuneJobSpec, ModelSource
from finetune_trainer.cli.text import problems_text, span, table
from finetune_trainer.cli.validate import read_manifest
from finetune_trainer.planning.advice import Advice, recommended, smallest_change
from finetune_trainer.planning.devices import Device, gpu, this_machine
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape, check_on_experts, read_shape
from finetune_trainer.planning.table import Planner, Row, Workload

if TYPE_CHECKING:
    from collections.abc import Mapping

BYTES_A_TOKEN = 4.0
"""Of English text: 0.23 to 0.25 tokens a byte."""


class Prices(ApiModel):
    """The user's own price table; none is shipped, for public sources disagree on the same machine."""

    currency: Annotated[str, Field(min_length=1, max_length=16)]
    date: str
    per_gpu_hour: dict[str, Annotated[float, Field(ge=0)]]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """The command's options."""

    file: str
    gpu: str | None = None
    memory: str | None = None
    """A quantity: `80Gi`."""
    prices: Path | None = None
    model: Path | None = None
    rows: int | None = None
    tokens: int | None = None
    network: float = 100.0
    """Between nodes, in gigabits a second."""
    exact: bool = False
    as_json: bool = False
    cache: Path = Path(names.CACHE_DIR)


def show_plan(wish: Wish) -> int:
    try:
        job = read_manifest(wish.file)
    except ManifestError as error:
        print(problems_text(wish.file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    spec = job.spec
    folder = wish.model or model_folder(spec.model, cache=wish.cache)
    shape = _shape(folder)
    if shape.passed:
        check_on_experts(spec.method, shape)
    planner = _planner(wish, spec, shape)
    rows = planner.rows()
    advice = recommended(rows, planner)
    prices = read_prices(wish.prices) if wish.prices else None
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
        "steps": planner.steps,
        "currency": prices.currency if prices else None,
        "priceDate": prices.date if prices else None,
        "plans": [_as_json(row, advice) for row in rows],
        "reasons": list(advice.reasons),
        "hint": _hint(planner, rows),
        "exactBytes": exact(folder, planner) if wish.exact else None,
        "mergedBytes": _merged_bytes(folder, planner) if spec.output.merged else None,
    }
    print(json.dumps(content, indent=2) if wish.as_json else _text(content, rows, advice, planner))
    return ExitCode.OK


def _planner(wish: Wish, spec: FineTuneJobSpec, shape: ModelShape) -> Planner:
    from finetune_trainer.planning.quantity import quantity

    memory = quantity(wish.memory) if wish.memory else None
    device = _device(wish, spec, memory)
    hourly = None
    if wish.prices:
        known = {name.lower(): price for name, price in read_prices(wish.prices).per_gpu_hour.items()}
        hourly = known.get(device.name.lower())
    workload = _workload(wish, spec)
    return Planner(
        spec=spec, shape=shape, device=device, network=wish.network * 1e9 / 8, workload=workload, hourly=hourly
    )


def _device(wish: Wish, spec: FineTuneJobSpec, memory: int | None) -> Device:
    """The GPU that was named, else this machine's processors. InvalidSpec where the job wants one of no name."""
    if wish.gpu:
        return gpu(wish.gpu, memory=memory)
    if any(name.endswith("/gpu") for name in spec.resources.limits):
        raise FinetuneError(
            Reason.InvalidSpec, "the job asks for GPUs and does not say which", "Name one: --gpu H100, A100-80 or L40S."
        )
    from finetune_trainer.planning.machine import memory_limit

    return this_machine(memory=memory or memory_limit(), processes=spec.world_size)


def _workload(wish: Wish, spec: FineTuneJobSpec) -> Workload:
    """As told; else from the size of local files."""
    if wish.rows or wish.tokens:
        return Workload(rows=wish.rows, tokens=wish.tokens)
    from finetune_trainer.data.read import ENDINGS
    from finetune_trainer.store.sources import local_paths

    rows, size = 0, 0.0
    for source in spec.data.train:
        files = local_paths(source.uri, endings=ENDINGS) if source.uri.startswith("file:///") else []
        if not files or any(path.suffix not in (".jsonl", ".txt") for path in files):
            return Workload()
        try:
            texts = [path.read_bytes() for path in files]
        except OSError:
            return Workload()
        given = sum(text.count(b"\n") for text in texts)
        taken = min(given, source.max_rows or given)
        rows += taken
        size += sum(map(len, texts)) * taken / max(1, given)
    return Workload(rows=rows, tokens=int(size / BYTES_A_TOKEN))


def model_folder(source: ModelSource, *, cache: Path, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the model's config.json lies on this machine: in place, or in a cache of an earlier run. ModelNotFound."""
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
        f"{source.uri} is not on this machine, and a plan downloads nothing",
        "Give a folder with its config.json: finetune plan --model FOLDER.",
    )


def _shape(folder: Path) -> ModelShape:
    if not folder.is_dir():
        raise FinetuneError(Reason.ModelNotFound, f"there is no folder {folder} with a model's config.json")
    try:
        return read_shape(folder, weightless=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"the model in {folder} cannot be planned: {error}",
            "Its config.json must name its sizes; with safetensors files beside it any family can be planned.",
        ) from error


def read_prices(file: Path) -> Prices:
    """InvalidSpec for a file that is not {currency, date, perGpuHour: {NAME: price}}."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text())
        if isinstance(content, dict) and "date" in content:
            content["date"] = str(content["date"])  # YAML makes a date of it
        return Prices.model_validate(content, strict=False)
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"{file} is no price table: {str(error).splitlines()[0]}",
            "Write {currency: EUR, date: 2026-01-31, perGpuHour: {H100: 2.5}}.",
        ) from error


def exact(folder: Path, planner: Planner) -> int:
    """The tracked peak of the job's own method, on one process that holds everything. A minute for large models."""
    method = planner.spec.method
    row = planner.row(method, planner.spread("ddp"))
    done = subprocess.run(
        [
            sys.executable, "-m", "finetune_trainer.train.exact", "--model", str(folder),
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
        answer = {"error": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it ended without a word"}
    if "peak" not in answer:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{method.type} cannot be followed tensor by tensor: {answer['error']}",
            "Plan without --exact.",
        )
    return int(answer["peak"])


def _merged_bytes(folder: Path, planner: Planner) -> int:
    """As large as the base's files, or as they are in 16 bits where only config.json is here."""
    sizes = [file.stat().st_size for file in folder.glob("*.safetensors")]
    return sum(sizes) or 2 * planner.shape.parameters


def _hint(planner: Planner, rows: list[Row]) -> str | None:
    """What to change, if the job as it is written fits with no strategy that it allows."""
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


def _text(content: dict[str, Any], rows: list[Row], advice: Advice, planner: Planner) -> str:
    spec, shape = planner.spec, planner.shape
    load = planner.workload
    known = f"{load.rows:,} rows, about {load.tokens:,} tokens an epoch" if load.rows and load.tokens else None
    head = (
        f"{content['job']}: {shape.parameters:,} parameters in {shape.layers} layers, {planner.precision}; "
        f"{spec.world_size} x {planner.device.name} with {human(planner.device.memory)} each\n"
        + (
            f"(elastic: the most; the fewest are {spec.min_nodes * spec.processes})\n"
            if spec.min_nodes < spec.max_nodes
            else ""
        )
        + (known or "how many tokens there are is not known here: --rows and --tokens tell")
        + (f", {planner.steps:,} steps" if planner.steps else "")
    )
    paid = content["currency"] if planner.hourly is not None else None
    columns = ("method, strategy", "trains", "states", "activations", "loss", "peak", "fits", "tokens/s", "time")
    lines = []
    for row in rows:
        mark = "* " if row is advice.row else "  "
        time = "" if row.seconds is None else span(row.seconds)
        lines.append((
            f"{mark}{row.method.type}, {row.spread.label}", f"{row.trained:,}", human(row.need.least),
            human(row.need.activations), human(row.need.loss), human(row.need.total), "yes" if row.fits else "no",
            f"{row.tokens_per_second:,.0f}", time, *(() if paid is None else (f"{row.cost or 0:,.2f}",)),
        ))  # fmt: skip
    if shape.passed:
        head += f"\n{shape.experts_line()}" + (", and qlora is not for them" if shape.mostly_experts else "")
    parts = [head, table((*columns, *(() if paid is None else (paid,))), lines, indent="")]
    if content["exactBytes"] is not None:
        parts.append(f"tracked tensor by tensor, {spec.method.type} on one process: {human(content['exactBytes'])}")
    name = "nothing fits" if advice.row is None else f"* {advice.row.method.type}, {advice.row.spread.label}"
    parts.append(f"{name}: " + "; ".join(advice.reasons))
    if content["hint"] is not None:
        parts.append(f"the job as it is written does not fit. {content['hint']}")
    if content["mergedBytes"] is not None and spec.method.low_rank:
        size = human(content["mergedBytes"])
        parts.append(f"output.merged adds {size} to the artifact, and the first pod's disk needs as much")
    if content["priceDate"] is not None:
        known = f"prices of {content['priceDate']}"
        parts.append(known if paid else f"{known} have none for {planner.device.name}")
    return "\n\n".join(parts)
