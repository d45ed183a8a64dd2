"""A ladder before its first run, for `finetune plan` and `finetune run`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.ladder import Price, refused_on_cluster
from finetune_api.rung_pods import describe_pods, for_rung
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.text import table
from finetune_trainer.cli.workload import workload_of
from finetune_trainer.ladder.rules import Choice, Facts, choose, folds_of
from finetune_trainer.planning.forecast import Forecast


def planned(found: Forecast, spec: FineTuneJobSpec, price: Price | None = None) -> dict[str, Any]:
    """As JSON, with the pods of each rung."""
    content = {**found.to_json(price), "fewShot": spec.ladder.few_shot}
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
    refused = refused_on_cluster(skips=spec.training.skip_bad_batch)
    where = "all rungs run in the same pods, one after the other"
    if spec.ladder.overrides:
        where = "consecutive rungs with the same pods share an attempt"
    if refused:
        where = f"only with finetune run: {refused}"
    told = table(("rung", "reserved GPU hours", *priced, "pods", "why"), rows)
    notes = [
        *_few_shot(spec),
        *_cross_fitted(spec, found.folds),
        *skipped,
        *_budget(spec, price),
        f"on a cluster, {where}",
    ]
    return "\n".join([_head(found.choice), told, *notes])


def rule_json(choice: Choice, folds: int) -> dict[str, Any]:
    return {
        "rule": choice.rule,
        "reason": choice.reason,
        "rungs": [each.method for each in choice.rungs],
        "folds": folds,
    }


def rule_text(choice: Choice, folds: int, spec: FineTuneJobSpec) -> str:
    """Which rungs are tried, and why; one line for a job with another method."""
    if not spec.method.is_auto:
        rungs = ", then ".join(each.method for each in choice.rungs) or "nothing"
        return f"method.type auto would try {rungs}, {_rule(choice)}"
    rungs = table(("rung", "why"), [(each.method, each.why) for each in choice.rungs])
    notes = [*_cross_fitted(spec, folds), "finetune plan shows which of them fit into memory"]
    return "\n".join([_head(choice), rungs, *notes])


def rule_of(spec: FineTuneJobSpec, *, rows: int, labelled: bool) -> tuple[Choice, int] | None:
    """The rule for rows that have been read, and its folds, whatever fits into memory. None with continueFrom, which
    needs one method."""
    if spec.continue_from is not None:
        return None
    tokens = workload_of(spec, longest=None).tokens
    chosen = choose(Facts(rows=rows, tokens=tokens, labelled=labelled, chosen=spec.ladder.rungs))
    return chosen, folds_of(spec, rows)


def _head(choice: Choice) -> str:
    return f"ladder, {_rule(choice)}"


def _rule(choice: Choice) -> str:
    return f"by the rule {choice.rule!r}: {choice.reason.removeprefix(f'{choice.rule}: ')}"


def _cross_fitted(spec: FineTuneJobSpec, folds: int) -> list[str]:
    if not folds:
        return []
    why = "few rows" if spec.ladder.folds is None else "ladder.folds is set"
    return [
        f"{why}, so decisions are cross-fitted: each rung trains {folds} times more, each time without 1/{folds} of "
        "the rows"
    ]


def _few_shot(spec: FineTuneJobSpec) -> list[str]:
    count = spec.ladder.few_shot
    if not count:
        return []
    return [f"the first rung also measures the base model with {count} examples in its prompt, if rows have prompts"]


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
