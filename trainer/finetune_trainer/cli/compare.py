"""`finetune compare A [B]`: what two artifacts differ by, on the rows that both were measured on; base and tuned model
of one artifact, if there is no second."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.measurements import shown
from finetune_api.text import printable
from finetune_trainer.cli.jobs import Where

if TYPE_CHECKING:
    from finetune_api.calibration import ScalePoint
    from finetune_api.generated_text import Generation, GenerationScore
    from finetune_trainer.statistics.differences import Difference
    from finetune_trainer.transfer.compare import Comparison, Line, Side


@dataclass(frozen=True, kw_only=True)
class Request:
    """first, second: URIs, folders or names of jobs."""

    first: str
    second: str | None
    first_model: str | None
    second_model: str
    only: Sequence[str]
    as_json: bool


def show_comparison(request: Request, *, where: Where) -> int:
    from finetune_trainer.transfer.compare import compare
    from finetune_trainer.transfer.records import BASE, TUNED

    alone = request.second is None
    first = _side(request.first, where, request.first_model or (BASE if alone else TUNED))
    second = _side(request.second if request.second is not None else request.first, where, request.second_model)
    found = compare(first, second, only=frozenset(request.only))
    print(
        json.dumps(_plain(first, second, found), indent=2)
        if request.as_json
        else printable(_text(first, second, found))
    )
    return ExitCode.OK


def _side(target: str, where: Where, model: str) -> Side:
    """Reads every file of records, checked against the artifact's manifest."""
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.transfer.compare import Side
    from finetune_trainer.transfer.generated.files import read_answers
    from finetune_trainer.transfer.records import ANSWERS, ENDING, decode
    from finetune_trainer.transfer.references import record_files

    uri = uri_of(target, where)
    data, answers = {}, {}
    for path, content in record_files(open_folder(uri, prefix=names.PREFIX_OUTPUT)):
        where_from = f"{uri}/{path}"
        if path.startswith(ANSWERS):
            name = path.removeprefix(ANSWERS).removesuffix(ENDING)
            answers[name] = read_answers(content, name=name, where=where_from)
        else:
            read = decode(content, where=where_from)
            data[read.kind, read.name] = read
    return Side(uri=uri, data=data, model=model, answers=answers)


def uri_of(target: str, where: Where) -> str:
    """Of an artifact by its URI, its folder or the name of its job. NotFound, also for a path without a folder."""
    from finetune_trainer.cli.report import artifact_uri

    if "://" in target:
        return target
    folder = Path(target)
    if folder.is_dir():
        return folder.absolute().as_uri()
    if "/" in target:  # no job's name
        hint = "Give the folder of an artifact, its URI, or the name of its job."
        raise FinetuneError(Reason.NotFound, f"there is no folder {target}", hint)
    return artifact_uri(target, where)


def _plain(first: Side, second: Side, found: Comparison) -> dict[str, Any]:
    return {
        "first": {"uri": first.uri, "model": first.model},
        "second": {"uri": second.uri, "model": second.model},
        "data": [
            {"name": line.name, "kind": line.kind, **as_json(line.difference), **_flag(line)} for line in found.lines
        ],
        "leftOut": list(found.left_out),
        **{
            name: part.to_json()
            for name, part in (
                ("calibration", found.calibration),
                ("klToBase", found.divergence),
                ("generation", found.generation),
                ("collapse", found.collapse),
            )
            if part is not None
        },
        **({"scale": {"curve": [each.to_json() for each in found.scales]}} if found.scales else {}),
    }


def _flag(line: Line) -> dict[str, Any]:
    """Of a slice by its main measure."""
    if line.transfer is None:
        return {}
    return {"negativeTransfer": line.transfer.flagged, "adjustedPValue": line.transfer.p_value}


def as_json(found: Difference) -> dict[str, Any]:
    """The fields of status.evaluation.data, and how the interval was made."""
    return {
        "metric": found.measure.name,
        "base": found.base,
        "tuned": found.tuned,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "minimumDetectable": found.minimum_detectable,
        "verdict": str(found.verdict) if found.measure.judged else None,
        "rows": found.rows,
        "groups": found.groups,
        "method": str(found.method),
        "confidence": 1 - found.alpha,
        "margin": found.margin,
        "pValue": found.p_value,
        **({"reason": found.reason} if found.reason else {}),
    }


def _text(first: Side, second: Side, found: Comparison) -> str:
    from finetune_trainer.cli.text import aligned, table

    head = ("", "first", "second", "change", "interval", "visible from", "rows", "verdict")
    sides = aligned([("first", f"{first.uri} ({first.model})"), ("second", f"{second.uri} ({second.model})")])
    rows = [*map(_row, found.lines), *(_answered(found.generation) if found.generation is not None else ())]
    lines = [sides, "", table(head, rows)]
    if found.collapse is not None:
        lines += ["", f"  collapse: {found.collapse.told()}"]
    lines += [f"  scale {each.scale:g}: {_point(each)}" for each in found.scales]
    notes = [f"{line.name}: {line.difference.reason}" for line in found.lines if line.difference.reason]
    if found.left_out or notes:
        lines += ["", *(f"  {note}" for note in dict.fromkeys((*notes, *found.left_out)))]
    return "\n".join(lines)


def _row(line: Line) -> tuple[str, ...]:
    found = line.difference
    verdict = (str(found.verdict) if found.measure.judged else "") + (
        ", negative transfer" if line.transfer is not None and line.transfer.flagged else ""
    )
    return _cells(f"{shown(line.kind, line.name)} {found.measure.name}", found, found.rows, verdict)


def _answered(generation: Generation) -> Iterator[tuple[str, ...]]:
    for score in generation.scores:
        yield _cells(f"{generation.name}, generated {score.metric}", score, generation.rows, score.verdict or "")


def _cells(name: str, found: Difference | GenerationScore, rows: int, verdict: str) -> tuple[str, ...]:
    return (
        name,
        _number(found.base),
        _number(found.tuned),
        "" if found.difference is None else f"{found.difference:+.4f}",
        "" if found.low is None or found.high is None else f"{found.low:+.4f} … {found.high:+.4f}",
        _number(found.minimum_detectable),
        f"{rows:,}",
        verdict,
    )


def _point(point: ScalePoint) -> str:
    gain = "" if point.gain is None else f"gain {point.gain:+.4f}"
    rise = "" if point.forgetting is None else f"general text {point.forgetting:+.4f}"
    return ", ".join(part for part in (gain, rise) if part)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
