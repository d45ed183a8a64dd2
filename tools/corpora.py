"""Real text for the demo and the tests, as JSONL: movie reviews to train on, three other domains, and English prose.

    python tools/corpora.py DIR [--train N] [--heldout N] [--general N]

    DIR/movie-{train,validation,test}.jsonl   {"text", "label"}: snippets of movie reviews, positive or negative
    DIR/{tweets,amazon,nyt}.jsonl             the same in other domains: slices
    DIR/general.jsonl                         {"text"}: English prose that has nothing to do with the task
    DIR/SOURCES.md                            where it comes from, under which licence, whom to cite

Files are cut to N rows by taking the first ones, and every prefix of a labelled file is balanced to one row, so a small
set is always part of a larger one. No row is in two files. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import html
import io
import json
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from packages import cache_root, check_sha256, download, make_folder

PACKAGE = "vaderSentiment==3.3.2"
SDIST_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
DOMAINS = {
    "movie": "movieReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
}
CLEAR = 1.0
"""Mean rating on -4..+4 beyond which its raters agree well enough to call a text positive or negative."""
HELD_OUT_SHARE = 0.1
"""Of the movie rows, for validation and for test each."""
SCREENFUL = 800
"""Characters of prose in a row of general text, at least."""

Row = dict[str, str]

SOURCES = """# Sources

- `movie-*.jsonl`, `tweets.jsonl`, `amazon.jsonl`, `nyt.jsonl`: rated by 15 to 99 people each; from the source of
  the Python package vaderSentiment 3.3.2 (MIT licence). Cite: Hutto, C.J. & Gilbert, E.E. (2014). VADER: A
  Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text. Eighth International Conference on Weblogs
  and Social Media (ICWSM-14), Ann Arbor, MI. Kept: texts whose mean rating is beyond +1 or below -1, as many of each
  label, in an order made from their content.
- `general.jsonl`: prose paragraphs of the Python language reference as shipped in the interpreter
  (`pydoc_data.topics`), PSF licence 2.0. Code, tables and headings are left out.
"""


def write_corpora(
    target: Path, *, train: int | None = None, heldout: int | None = None, general: int | None = None
) -> None:
    """Write all files; `heldout` bounds validation, test and each slice. None takes every row there is."""
    target.mkdir(parents=True, exist_ok=True)
    files = _sentiment_files()
    movie = list(_labelled(files / DOMAINS["movie"], seen=set()))
    seen = {_key(row["text"]) for row in movie}
    share = 2 * int(len(movie) * HELD_OUT_SHARE / 2)
    _write(target / "movie-validation.jsonl", movie[:share], heldout)
    _write(target / "movie-test.jsonl", movie[share : 2 * share], heldout)
    _write(target / "movie-train.jsonl", movie[2 * share :], train)
    for domain in ("tweets", "amazon", "nyt"):
        rows = list(_labelled(files / DOMAINS[domain], seen=seen))
        seen |= {_key(row["text"]) for row in rows}
        _write(target / f"{domain}.jsonl", rows, heldout)
    _write(target / "general.jsonl", list(_prose()), general)
    (target / "SOURCES.md").write_text(SOURCES)


def _sentiment_files() -> Path:
    target = cache_root() / "corpora" / "vader-sentiment"
    make_folder(target, stamp=f"{SDIST_SHA256}\n", fill=_unpack_sentiment)
    return target


def _unpack_sentiment(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="corpora-") as scratch:
        sdist = download(PACKAGE, into=Path(scratch), source=True)
        check_sha256(sdist, SDIST_SHA256)
        with tarfile.open(sdist) as outer:
            inner = outer.extractfile(INNER)
            assert inner is not None, f"{INNER} is a file"
            packed = io.BytesIO(inner.read())
        with tarfile.open(fileobj=packed) as archive:
            for name in DOMAINS.values():
                member = archive.extractfile(f"hutto_ICWSM_2014/{name}")
                assert member is not None, f"{name} is a file"
                with (target / name).open("wb") as file:
                    shutil.copyfileobj(member, file)


def _labelled(path: Path, *, seen: set[str]) -> Iterator[Row]:
    """Clear-cut texts, once each, in an order that depends on nothing but the texts; labels take turns."""
    by_label: dict[str, dict[str, Row]] = {"positive": {}, "negative": {}}
    for line in path.read_text("utf-8").splitlines():
        _, rating, text = line.split("\t", 2)
        text = " ".join(html.unescape(text).split())
        if abs(float(rating)) > CLEAR and _key(text) not in seen:
            label = "positive" if float(rating) > 0 else "negative"
            by_label[label][_key(text)] = {"text": text, "label": label}
    disputed = by_label["positive"].keys() & by_label["negative"].keys()
    ordered = [[rows[key] for key in sorted(rows.keys() - disputed)] for rows in by_label.values()]
    return chain.from_iterable(zip(*ordered, strict=False))


def _key(text: str) -> str:
    """The same for texts that differ in case or punctuation only."""
    return hashlib.sha256(" ".join(re.findall(r"\w+", text.casefold())).encode()).hexdigest()


def _prose() -> Iterator[Row]:
    """Consecutive paragraphs of plain English, about a screenful a row."""
    from pydoc_data.topics import topics

    for _, text in sorted(topics.items(), key=lambda item: _key(item[0])):
        blocks = dict.fromkeys(" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if _is_prose(block))
        row: list[str] = []
        for block in blocks:
            row.append(block)
            if sum(map(len, row)) >= SCREENFUL:
                yield {"text": "\n\n".join(row)}
                row = []


def _is_prose(block: str) -> bool:
    lines = block.splitlines()
    looks_like_code = block[:1].isspace() or "::=" in block or ">>>" in block or "+--" in block or "|" in block
    letters = sum(character.isalpha() or character == " " for character in block)
    return not looks_like_code and len(lines) >= 2 and block.rstrip().endswith(".") and letters >= 0.9 * len(block)


def _write(path: Path, rows: Sequence[Row], limit: int | None) -> None:
    path.write_text("".join(_lines(rows[:limit])), "utf-8")


def _lines(rows: Iterable[Row]) -> Iterator[str]:
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, help="rows of movie-train.jsonl (default: all)")
    parser.add_argument("--heldout", type=int, help="rows of validation, test and each slice (default: all)")
    parser.add_argument("--general", type=int, help="rows of general.jsonl (default: all)")
    options = parser.parse_args()
    write_corpora(options.folder, train=options.train, heldout=options.heldout, general=options.general)
    for path in sorted(options.folder.glob("*.jsonl")):
        print(f"{len(path.read_text('utf-8').splitlines()):6d} rows  {path}")


if __name__ == "__main__":
    main()
