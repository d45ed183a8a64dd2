"""An evaluation in as few bytes as it takes: the results of a run pass through a termination message of 4 KiB.

    packed(evaluation)     columns as JSON, four significant digits, deflated, base85: 32 slices in about 2 KiB
    unpacked(text)         the same evaluation, or ValueError
    packed_ladder(ladder), unpacked_ladder(text)     the same of a ladder

A pod writes the text and the operator reads it, so reading is bounded: nothing is inflated beyond `LARGEST` bytes, and
what is read is judged by the model like any other part of a message.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

from .base import ApiModel
from .calibration import Calibration, ScaleSweep
from .generated_text import Collapse, CollapseFigure, Ending, Figure, Generation, GenerationScore, Mode
from .generation import GenerationMetric
from .ladder import LadderStatus
from .measurements import (
    Continual,
    DataKind,
    Divergence,
    Evaluation,
    GuardName,
    GuardResult,
    Measurement,
    Metric,
    NegativeTransfer,
    PriorGain,
    RemedyName,
    RemedyOutcome,
    RemedyRun,
)
from .verdicts import GuardVerdict, Verdict

LARGEST = 32 * 1024
"""Bytes of inflated JSON; 32 slices with names of 63 characters are 6 KiB."""

DIGITS = 4
"""Significant ones."""

_Columns = dict[str, tuple[str, ...]]
"""Fields in the order of columns; those written as their place in a list of words with the list. New fields and words
go to the end."""

_DATA: _Columns = {
    "name": (),
    "kind": get_args(DataKind),
    "metric": get_args(Metric),
    **dict.fromkeys(("base", "tuned", "difference", "low", "high", "minimum_detectable"), ()),
    "verdict": get_args(Verdict),
    "rows": (),
    "groups": (),
}
_GUARDS: _Columns = {
    "name": get_args(GuardName),
    **dict.fromkeys(("bound", "value", "low", "high"), ()),
    "verdict": get_args(GuardVerdict),
    "rows_needed": (),
}
_REMEDIES: _Columns = {
    "name": get_args(RemedyName),
    "settings": (),
    "outcome": get_args(RemedyOutcome),
    **dict.fromkeys(("cost", "reason"), ()),
}
_TRANSFER: _Columns = dict.fromkeys(("slice", "reference", "difference", "p_value"), ())
_SCORES: _Columns = {
    "metric": get_args(GenerationMetric),
    **dict.fromkeys(("base", "tuned", "difference", "low", "high", "minimum_detectable"), ()),
    "verdict": get_args(Verdict),
}
_FIGURES: _Columns = {
    "name": get_args(Figure),
    "mode": get_args(Mode),
    **dict.fromkeys(("base", "tuned", "drop", "low", "high"), ()),
}
_ENDINGS: _Columns = {
    "mode": get_args(Mode),
    **dict.fromkeys(("base_length", "tuned_length", "base_stops", "tuned_stops"), ()),
}


def packed(evaluation: Evaluation) -> str:
    """ASCII without quotes and backslashes, so that JSON leaves it as it is."""
    told: dict[str, Any] = {
        "d": _told(evaluation.data, _DATA),
        "g": _told(evaluation.guards, _GUARDS),
        "o": evaluation.omitted,
    }
    if evaluation.remedies:
        told["r"] = _told(evaluation.remedies, _REMEDIES)
    if evaluation.negative_transfer:
        told["n"] = _told(evaluation.negative_transfer, _TRANSFER)
    if evaluation.kl_to_base is not None:
        told["k"] = _short(evaluation.kl_to_base.to_json())
    if evaluation.prior_gain is not None:
        told["p"] = _short(evaluation.prior_gain.to_json())
    if evaluation.calibration is not None:
        told["c"] = _short(evaluation.calibration.to_json())
    if evaluation.generation is not None:
        told["t"] = [*_short([evaluation.generation.name, evaluation.generation.rows, evaluation.generation.groups])]
        told["t"] += [_told(evaluation.generation.scores, _SCORES)]
    if (collapse := evaluation.collapse) is not None:
        told["l"] = [*_short([collapse.verdict, collapse.bound, collapse.rows])]
        told["l"] += [_told(collapse.figures, _FIGURES), _told(collapse.endings, _ENDINGS)]
    if evaluation.scale is not None:
        told["s"] = _short(evaluation.scale.to_json())
    if evaluation.continual is not None:
        told["q"] = _short(evaluation.continual.to_json())
    return _deflated(told)


def unpacked(text: str) -> Evaluation:
    """ValueError for whatever `packed` did not write, and for more than `LARGEST` bytes."""
    try:
        return _evaluation(json.loads(_inflated(text), parse_constant=_refused))
    except (ValidationError, RecursionError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not an evaluation: {type(error).__name__}") from None


def packed_ladder(ladder: LadderStatus) -> str:
    """As `packed`."""
    return _deflated(_short(ladder.to_json()))


def unpacked_ladder(text: str) -> LadderStatus:
    """As `unpacked`."""
    try:
        return LadderStatus.model_validate_json(_inflated(text))
    except ValidationError:
        raise ValueError("not a ladder") from None


def _deflated(told: Any) -> str:
    text = json.dumps(told, separators=(",", ":"), allow_nan=False)
    return base64.b85encode(zlib.compress(text.encode(), 9)).decode()


def _inflated(text: str) -> bytes:
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(base64.b85decode(text), LARGEST)
    except zlib.error as error:
        raise ValueError(f"not deflated: {error}") from None
    if not inflate.eof or inflate.unused_data:
        raise ValueError(f"more than {LARGEST} bytes, cut off, or followed by something else")
    return data


def _evaluation(told: Any) -> Evaluation:
    data = tuple(Measurement(**row) for row in _read(told["d"], _DATA))
    guards = tuple(GuardResult(**row) for row in _read(told.get("g"), _GUARDS))
    transfer = tuple(NegativeTransfer(**row) for row in _read(told.get("n"), _TRANSFER))
    calibration, scale, divergence = told.get("c"), told.get("s"), told.get("k")
    generation, collapse, continual, prior = told.get("t"), told.get("l"), told.get("q"), told.get("p")
    return Evaluation(
        data=data,
        guards=guards,
        remedies=tuple(RemedyRun(**row) for row in _read(told.get("r"), _REMEDIES)),
        negative_transfer=transfer,
        kl_to_base=None if divergence is None else Divergence.model_validate_json(json.dumps(divergence)),
        prior_gain=None if prior is None else PriorGain.model_validate_json(json.dumps(prior)),
        calibration=None if calibration is None else Calibration.model_validate_json(json.dumps(calibration)),
        scale=None if scale is None else ScaleSweep.model_validate_json(json.dumps(scale)),
        generation=None if generation is None else _generation(*generation),
        collapse=None if collapse is None else _collapse(*collapse),
        continual=None if continual is None else Continual.model_validate_json(json.dumps(continual)),
        omitted=told.get("o"),
    )


def _generation(name: Any, rows: Any, groups: Any, scores: Any) -> Generation:
    given = (GenerationScore(**row) for row in _read(scores, _SCORES))
    return Generation(name=name, rows=rows, groups=groups, scores=tuple(given))


def _collapse(verdict: Any, bound: Any, rows: Any, figures: Any, endings: Any) -> Collapse:
    given = tuple(CollapseFigure(**row) for row in _read(figures, _FIGURES))
    ends = tuple(Ending(**row) for row in _read(endings, _ENDINGS))
    return Collapse(verdict=verdict, bound=bound, rows=rows, figures=given, endings=ends)


def _told(rows: Sequence[ApiModel], columns: _Columns) -> list[list[Any]]:
    return [[_brief(getattr(row, field), words) for row in rows] for field, words in columns.items()]


def _read(told: Any, columns: _Columns) -> Iterator[dict[str, Any]]:
    for row in zip(*told, strict=True) if told else ():
        yield {field: _word(value, words) for (field, words), value in zip(columns.items(), row, strict=True)}


def _brief(value: Any, words: tuple[str, ...]) -> Any:
    if isinstance(value, float):
        short = float(f"{value:.{DIGITS}g}")
        if not math.isfinite(short):  # the largest numbers are rounded to infinity
            return None
        return int(short) if short == int(short) else short
    return words.index(value) if words and value is not None else value


def _short(told: Any) -> Any:
    """The same JSON with fewer digits."""
    if isinstance(told, dict):
        return {name: _short(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_short(value) for value in told]
    return _brief(told, ())


def _word(value: Any, words: tuple[str, ...]) -> Any:
    if not words or value is None:
        return value
    if not isinstance(value, int) or value < 0:
        raise TypeError(value)
    return words[value]


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
