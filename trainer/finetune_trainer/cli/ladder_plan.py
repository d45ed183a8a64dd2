"""A ladder before its first run, for `finetune plan` and `finetune run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.ladder import Price, refused_on_cluster
from finetune_api.rung_pods import describe_pods, for_rung, most_nodes
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.text import table
from finetune_trainer.planning.forecast import Forecast


def planned(found: Forecast, spec: FineTuneJobSpec, price: Price | None = None) -> dict[str, Any]:
    """As JSON, with the pods of each rung."""
    content = found.to_json(price)
    for each in content["rungs"]:
        own = for_rung(spec, each["method"])
        each["pods"] = {"nodes": own.max_nodes, "processesPerNode": own.processes, **own.resources.to_json()}
    return content


def forecast_text(found: Forecast, spec: FineTuneJobSpec, price: Price | None = None) -> str:
    """The rungs with what is reserved for each, and where they run. price: of an hour of one process."""
    priced = (f"reserved {price.currency}",) if price else ()
    rows = []
    for each in found.choice.rungs:
        reserved, own = _reserved(found.estimates.get(each.method), price), for_rung(spec, each.method)
        rows.append((each.method, *reserved, describe_pods(own), each.why))
    skipped = [f"{each.rung.method} is left out: it {each.reason}" for each in found.choice.skipped]
    head = f"ladder, by the rule {found.choice.rule!r}: {found.choice.reason}"
    refused = refused_on_cluster(nodes=most_nodes(spec), skips=spec.training.skip_bad_batch)
    where = "all rungs run in one pod, one after the other"
    if spec.ladder.overrides:
        where = "consecutive rungs with the same pods share an attempt"
    if refused:
        where = f"only with finetune run: {refused}"
    told = table(("rung", "reserved GPU hours", *priced, "pods", "why"), rows)
    fitted = [_CROSS_FITTED.format(found.folds)] if found.folds else []
    return "\n".join([head, told, *fitted, *skipped, *_budget(spec, price), f"on a cluster, {where}"])


_CROSS_FITTED = (
    "few rows, so decisions are cross-fitted: each rung trains {0} times more, each time without 1/{0} of the rows"
)


def _reserved(hours: float | None, price: Price | None) -> tuple[str, ...]:
    costs = [hours] if price is None else [hours, None if hours is None else hours * price.per_hour]
    return tuple("unknown" if cost is None else f"{cost:.3g}" for cost in costs)


def _budget(spec: FineTuneJobSpec, price: Price | None) -> list[str]:
    budget = spec.ladder.budget
    if budget is None:
        return []
    hours = [f"{budget.gpu_hours:g} GPU hours"] if budget.gpu_hours is not None else []
    money = [f"{budget.money:g} {price.currency if price else 'of money'}"] if budget.money is not None else []
    unknown = "" if not money or price else "; no price is known here: pass --prices FILE"
    return [f"budget: {' and '.join([*hours, *money])}{unknown}"]


def is_labelled(spec: FineTuneJobSpec) -> bool:
    """Whether rows are classifications: by the manifest, else by the first row of a local file."""
    data = spec.data
    if data.format != "auto":
        return data.format == "classification"
    return data.classification is not None or _first_keys(data.train[0].uri) >= {"text", "label"}


def _first_keys(uri: str) -> set[str]:
    from finetune_trainer.data.read import ENDINGS
    from finetune_trainer.store.sources import local_paths

    if not uri.startswith("file:///"):
        return set()
    for path in local_paths(uri, endings=ENDINGS):
        if Path(path).suffix == ".jsonl":
            try:
                with Path(path).open("rb") as file:
                    row = json.loads(file.readline() or b"null")
            except (OSError, ValueError):  # the run says what is wrong with it
                return set()
            return set(row) if isinstance(row, dict) else set()
    return set()
