"""One record for each prompt, model and mode: what the scores of generated text are computed from.

    evaluation/generated/<data set>.parquet      evaluation/generated/test.parquet

    row, group  string   as in the records of the data set
    model       string   base or tuned
    mode        string   greedy or sampled
    answer      string   the text; tokens: list of int32; stopped: bool, whether the model ended it by itself
    reference   string   the row's own answer
    <metric>    double   of greedy answers, each metric of evaluation.generate.metrics; null for sampled ones

Rows are sorted, so the file depends on no order of ranks.
"""

from __future__ import annotations

import io
from typing import Any

from finetune_trainer.transfer.records import ANSWERS, ENDING

from .answers import Answers
from .evidence import MODES, Written


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
            *((name, pyarrow.float64()) for name in metrics),
        ]
    )
    rows = [
        row
        for model, answered in (("base", written.base), ("tuned", written.tuned))
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
            **{name: float(values[at]) for name, values in scores.items()},
        }
        for at, text in enumerate(written.texts(answers))
    ]
