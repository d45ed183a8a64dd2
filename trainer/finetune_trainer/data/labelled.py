"""Texts with labels for single tokens, for the concept probes of spec.diagnostics.

    {"text": "The river rose.", "spans": [{"start": 4, "end": 9, "label": "noun"}, …]}

Offsets count characters. With labels pythonTokens, pythonNames or wordnet a row is {"text": …}, and the labels are
made from it. The state of a span is that of its last token, which has seen all of it. What is read is bounded: a sample
by seed of about `SPANS` spans, at most `EACH` of a window of 256 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import numpy as np

from finetune_api.diagnostics import ConceptProbe
from finetune_api.failures import FinetuneError, Reason
from finetune_api.names import PREFIX_DATA
from finetune_trainer.random_streams import LABELLED
from finetune_trainer.store.sources import find_files

from .corpus import Numbers, Tokens, corpus_of
from .python_labels import FAULTS, Span, python_names, python_tokens
from .read import ENDINGS, Row, iter_rows
from .token_sample import TOKENS, TokenSample
from .tokenizer import Tokenizer
from .wordnet import wordnet_words

ROWS = 20_000
"""Of a source, that are read at most."""
CHARACTERS = 100_000
"""Of a row: what follows is not looked at."""
ALL_CHARACTERS = 10_000_000
"""Of a source."""
SPANS = 2_000
EACH = 32
"""Spans of a window: further ones depend on these."""
FEWEST_SPANS, FEWEST_ROWS, MOST_LABELS = 100, 10, 64

_FORM: Final = 'Rows are {"text": …, "spans": [{"start": 0, "end": 3, "label": "noun"}]}; offsets count characters.'
_Labeller = Callable[[str], list[Span]]
_BUILT_IN: Mapping[str, Callable[[ConceptProbe], _Labeller]] = {
    "pythonTokens": lambda _: partial(_of_python, python_tokens),
    "pythonNames": lambda _: partial(_of_python, python_names),
    "wordnet": lambda probe: wordnet_words(probe.dictionary),
}
"""By `labels`: what makes the spans of a text."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """The tokens of one concept probe."""

    name: str
    sample: TokenSample
    gold: Numbers
    """(tokens,): the label of each, a place in `labels`."""
    labels: tuple[str, ...]
    words: Numbers
    """(tokens,): equal for spans of the same text."""
    groups: Numbers
    """(tokens,): the row that each is of, from 0."""


@dataclass(frozen=True)
class _Window:
    row: int
    tokens: Tokens
    positions: tuple[int, ...]
    spans: tuple[tuple[str, str], ...]
    """(label, text) at each position."""


def labelled(probe: ConceptProbe, tokenizer: Tokenizer, *, seed: int, fewer: int = 1) -> Labelled:
    """`fewer`: 2 takes half as many spans. DataUnreadable for rows of another form, InvalidSpec where there are too few
    labels or too many, and where WordNet's files are missing."""
    windows = _drawn(list(_windows(probe, tokenizer)), SPANS // fewer, seed)
    spans = [span for window in windows for span in window.spans]
    names = tuple(sorted({label for label, _ in spans}))
    rows = {window.row for window in windows}
    _check(probe, spans=len(spans), rows=len(rows), labels=names)
    corpus = corpus_of(
        [window.tokens for window in windows], [np.zeros(len(each.tokens), np.bool_) for each in windows],
        [0] * len(windows),
    )  # fmt: skip
    _, words = np.unique([text for _, text in spans], return_inverse=True)
    _, groups = np.unique([window.row for window in windows for _ in window.spans], return_inverse=True)
    return Labelled(
        name=probe.name,
        sample=TokenSample.at(corpus, [np.array(window.positions, np.int64) for window in windows]),
        gold=np.array([names.index(label) for label, _ in spans], np.int64),
        labels=names,
        words=words.astype(np.int64),
        groups=groups.astype(np.int64),
    )


def _check(probe: ConceptProbe, *, spans: int, rows: int, labels: tuple[str, ...]) -> None:
    told = f"diagnostics.probes {probe.name}: {probe.uri} has "
    if len(labels) > MOST_LABELS:
        raise FinetuneError(
            Reason.InvalidSpec, f"{told}more than {MOST_LABELS} labels, such as {', '.join(labels[:5])}",
            "Use fewer and larger classes.",
        )  # fmt: skip
    if spans < FEWEST_SPANS or rows < FEWEST_ROWS or len(labels) < 2:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"{told}{spans} labelled spans with {len(labels)} labels in {rows} rows, and a probe needs "
            f"{FEWEST_SPANS} spans, two labels and {FEWEST_ROWS} rows",
            "Add rows, or remove the probe.",
        )


def _drawn(windows: list[_Window], spans: int, seed: int) -> list[_Window]:
    """About so many spans; windows stay in the order of the file."""
    order = np.argsort(LABELLED.raw(len(windows), seed), kind="stable")
    counts = np.cumsum([len(windows[at].spans) for at in order])
    return [windows[at] for at in sorted(order[: int(np.searchsorted(counts, spans)) + 1])]


def _windows(probe: ConceptProbe, tokenizer: Tokenizer) -> Iterator[_Window]:
    built_in = _BUILT_IN.get(probe.labels)
    keys = ("text", "spans") if built_in is None else ("text",)
    files = find_files(probe.uri, prefix=PREFIX_DATA, endings=ENDINGS)
    rows = (row for file in files for row in _closed(file, keys))
    make, read = built_in and built_in(probe), 0
    for number, row in enumerate(islice(rows, ROWS)):
        text = row.fields.get("text")
        if not isinstance(text, str):
            raise row.problem(Reason.DataUnreadable, "the row of a concept probe has no text", _FORM)
        text = text[:CHARACTERS]
        read += len(text)
        yield from _cut(number, text, _spans(row, len(text)) if make is None else make(text), tokenizer)
        if read > ALL_CHARACTERS:
            return


def _closed(file: Any, keys: tuple[str, ...]) -> Iterator[Row]:
    with closing(iter_rows(file, keys)) as rows:
        yield from rows


def _of_python(make: _Labeller, text: str) -> list[Span]:
    """None of text that is not Python, such as the start of a long file."""
    try:
        return make(text)
    except FAULTS:
        return []


def _spans(row: Row, length: int) -> list[Span]:
    found, spans = [], row.fields.get("spans") or []
    if not isinstance(spans, list):
        raise row.problem(Reason.DataUnreadable, "the spans of the row are not a list", _FORM)
    for each in spans:
        values = [each.get(name) for name in ("start", "end", "label")] if isinstance(each, dict) else [None]
        start, end, label = values if len(values) == 3 else (None, None, None)
        if type(start) is not int or type(end) is not int or not isinstance(label, str) or not 0 <= start < end:
            raise row.problem(Reason.DataUnreadable, f"{str(each)[:80]} is not a labelled span", _FORM)
        if end <= length:
            found.append(Span(start, end, label[:128]))
    return sorted(found)


def _cut(row: int, text: str, spans: list[Span], tokenizer: Tokenizer) -> Iterator[_Window]:
    """Windows of a text that have labelled tokens. Of spans that end in one token the longest has it. The first token
    of a window is left out: its state is the same for any text."""
    [encoded] = tokenizer.encode([text])
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    at: dict[int, Span] = {}
    for span in spans:
        last = int(np.searchsorted(starts, span.end)) - 1
        if last >= 0 and ends[last] >= span.end:
            at.setdefault(last, span)
    before = np.array([] if tokenizer.bos is None else [tokenizer.bos], np.int32)
    size = TOKENS - len(before)
    for first in range(0, len(encoded.ids), size):
        own = [place for place in sorted(at) if max(first, first + 1 - len(before)) <= place < first + size]
        own = own[:: max(1, -(-len(own) // EACH))]
        if own:
            yield _Window(
                row,
                np.concatenate([before, encoded.ids[first : first + size]]),
                tuple(place - first + len(before) for place in own),
                tuple((at[place].label, text[at[place].start : at[place].end]) for place in own),
            )
