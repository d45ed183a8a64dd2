"""One record for each prompt, model and mode: what the scores of generated text are computed from.

    evaluation/generated/<data set>.parquet      evaluation/generated/test.parquet

    row, group  string   as in the records of the data set
    model       string   base or tuned
    mode        string   greedy or sampled
    answer      string   the text; tokens: list of int32; stopped: bool, whether the model ended it by itself
    reference   string   the row's own answer; referenceTokens: list of int32, null where the model has other tokens
    <metric>    double   of greedy answers, each metric of evaluation.generate.metrics; null for sampled ones

Rows are sorted, so the file depends on no order of ranks.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np

from finetune_api.failures import FinetuneError, Reason
from finetune_api.generation import GenerationMetric
from finetune_trainer.data.corpus import Tokens
from finetune_trainer.transfer.records import ANSWERS, BASE, ENDING, TUNED
from finetune_trainer.transfer.tables import read_table

from .answers import Answered, Answers
from .evidence import MODES, Scored, Written
from .prompts import Name, Prompts


@dataclass(frozen=True, kw_only=True, eq=False)
class AnswerRecords:
    """What a file has, in the order of the prompts' digests."""

    prompts: Prompts
    """Without the tokens of the prompts."""
    references: Mapping[str, tuple[Tokens, ...]]
    """By model; empty ones where its tokens are others than the tuned model's, or an earlier release wrote none."""
    answers: Mapping[str, Answered]
    """By model."""
    scores: Mapping[str, Scored]
    """By model, of its greedy answers."""


def read_answers(content: bytes, *, name: str, where: str) -> AnswerRecords:
    """DataUnreadable where the content is not such a file."""
    try:
        rows = read_table(content).to_pylist()
        rows.sort(key=lambda row: (row["row"], row["group"], row["tokens"]))
        by: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for row in rows:
            by.setdefault((row["model"], row["mode"]), []).append(row)
        models, first = dict.fromkeys(model for model, _ in by), next(iter(by.values()))
        references = {model: _references(by[model, "greedy"]) for model in models}
        prompts = Prompts(
            name=cast(Name, name),
            tokens=tuple(np.zeros(0, np.int32) for _ in first),
            references=max(references.values(), key=lambda each: sum(map(len, each))),
            rows=tuple(row["row"] for row in first),
            groups=tuple(row["group"] for row in first),
        )
        answers = {model: {mode: _answers(by[model, mode], prompts) for mode in MODES} for model in models}
        return AnswerRecords(
            prompts=prompts,
            references=references,
            answers=answers,
            scores={model: _scores(by[model, "greedy"], metrics=first[0]) for model in models},
        )
    except (KeyError, ValueError, TypeError, StopIteration) as error:
        raise FinetuneError(
            Reason.DataUnreadable, f"{where} is not a file of answers ({error!r})", "Measure the model again."
        ) from error


def _answers(rows: list[dict[str, Any]], prompts: Prompts) -> Answers:
    if tuple(row["row"] for row in rows) != prompts.rows:
        raise ValueError("not all models answered the same prompts")
    tokens = tuple(tuple(row["tokens"]) for row in rows)
    return Answers(tokens, tuple(bool(row["stopped"]) for row in rows))


def _scores(rows: list[dict[str, Any]], *, metrics: Collection[str]) -> Scored:
    known = cast("tuple[GenerationMetric, ...]", get_args(GenerationMetric))
    found = {metric: np.array([row[metric] for row in rows], np.float64) for metric in known if metric in metrics}
    if not all(np.isfinite(each).all() for each in found.values()):
        raise ValueError("a score is not finite")
    return found


def _references(rows: list[dict[str, Any]]) -> tuple[Tokens, ...]:
    return tuple(np.array(row.get("referenceTokens") or (), np.int32) for row in rows)


def answer_files(written: Written) -> dict[str, bytes | Any]:
    """By their names in the artifact."""
    import pyarrow
    from pyarrow import parquet

    metrics = written.settings.metrics
    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in ("row", "group", "model", "mode", "answer")),
            ("tokens", pyarrow.list_(pyarrow.int32())),
            ("stopped", pyarrow.bool_()),
            ("reference", pyarrow.string()),
            ("referenceTokens", pyarrow.list_(pyarrow.int32())),
            *((name, pyarrow.float64()) for name in metrics),
        ]
    )
    rows = [
        row
        for model, answered in ((BASE, written.base), (TUNED, written.tuned))
        for mode in MODES
        if mode in answered
        for row in _rows(written, model, mode, answered[mode])
    ]
    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    return {f"{ANSWERS}{written.prompts.name}{ENDING}": sink.getvalue()}


def _rows(written: Written, model: str, mode: str, answers: Answers) -> list[dict[str, Any]]:
    prompts = written.prompts
    scores = written.scored(answers) if mode == "greedy" else {}
    others = model == BASE and prompts.spelled is not None
    return [
        {
            "row": prompts.rows[at],
            "group": prompts.groups[at],
            "model": model,
            "mode": mode,
            "answer": text,
            "tokens": answers.tokens[at],
            "stopped": answers.stopped[at],
            "reference": written.decode(tuple(prompts.references[at].tolist())),
            "referenceTokens": None if others else prompts.references[at].tolist(),
            **{name: float(values[at]) for name, values in scores.items()},
        }
        for at, text in enumerate(written.texts(answers))
    ]
