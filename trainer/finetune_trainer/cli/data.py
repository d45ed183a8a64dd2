"""`finetune data inspect FILE…`: the rows of a manifest, or of files of data, as the model will see them, without
training: counts and problems, lengths, copies, a guess at the languages, and the first rows with their trained tokens
marked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.init import MODEL

if TYPE_CHECKING:
    from finetune_api.data import Data
    from finetune_api.job import FineTuneJob
    from finetune_trainer.data.corpus import Corpus
    from finetune_trainer.data.load import Datasets
    from finetune_trainer.data.tokenizer import Tokenizer

BINS = 8
BAR = 40
"""Characters of the longest bar."""
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
MARKS = ("⟦", "⟧")
"""Around trained tokens where there are no colours."""

SAMPLE = 500
"""Rows whose language is guessed."""
MANIFESTS = ("", ".yaml", ".yml", ".json")
"""Endings of a manifest; any other file is data."""

NO_TEXT = ("role", "from", "label")
"""Keys whose values are names rather than text."""

Segment = tuple[str, bool]
"""Text, and whether it is trained."""


@dataclass(frozen=True)
class Wish:
    """Options of the command."""

    files: tuple[str, ...]
    part: str = "train"
    rows: int = 3
    model: str | None = None
    as_json: bool = False
    cache: Path = Path(".finetune/cache")


def add_commands(commands: Any, home_option: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds `data` to the subparsers of the program. `home_option` adds --home, which all commands share."""
    data = commands.add_parser("data", help="show training data as the model will see it")
    actions = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inspect = actions.add_parser("inspect", help="show counts, lengths, and the first rows with trained tokens marked")
    inspect.add_argument("files", metavar="FILE", nargs="+",
                         help="manifest with one FineTuneJob (- for standard input), or data: rows.jsonl, "
                         "s3://corp/rows-*.parquet, hf://datasets/org/name/data/*")  # fmt: skip
    inspect.add_argument("--set", dest="part", default="train", metavar="NAME",
                         help="train, validation, test, general or the name of a slice (default: train)")  # fmt: skip
    inspect.add_argument("--rows", type=int, default=3, help="rows to print (default: 3)")
    inspect.add_argument("--model", metavar="MODEL", help="folder with the tokenizer, or URI of a model (default: "
                         f"model.uri of the manifest; for files of data {MODEL})")  # fmt: skip
    inspect.add_argument("-o", "--output", choices=("text", "json"), default="text")
    home_option(inspect)
    inspect.set_defaults(handler=lambda options: show_data(_wish(options)))


def _wish(options: argparse.Namespace) -> Wish:
    return Wish(
        tuple(options.files), options.part, options.rows, options.model, options.output == "json",
        options.home.absolute() / "cache",
    )  # fmt: skip


def show_data(wish: Wish) -> int:
    """Prints what there is; FinetuneError for everything that is wrong with the files, as in a run."""
    from finetune_api.manifest import ManifestError
    from finetune_trainer.cli.text import problems_text
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.tokenizer import Tokenizer
    from finetune_trainer.planning.positions import fitted
    from finetune_trainer.statistics.language import shares
    from finetune_trainer.store.models import resolve_model

    try:
        spec = _manifest(wish).spec
    except ManifestError as error:
        print(problems_text(" ".join(wish.files), error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    if spec.command is not None:
        message = "the job runs a custom script, which reads its own data"
        raise FinetuneError(Reason.InvalidSpec, message, "Inspect a manifest that has data.")
    is_folder = wish.model is not None and Path(wish.model).is_dir()
    folder = Path(wish.model or "") if is_folder else resolve_model(spec.model, cache=wish.cache).path
    data = fitted(spec.data, folder, spec.method) if (folder / "config.json").exists() else spec.data
    datasets = load_datasets(
        data, tokenizer_path=folder, cache=wish.cache, seed=spec.training.seed, group_by=spec.evaluation.group_by
    )
    corpus = _chosen(datasets, wish.part)
    tokenizer = Tokenizer.load(folder)
    rows = [list(segments(corpus, number, tokenizer)) for number in range(min(wish.rows, len(corpus)))]
    found = Found(
        template=next(iter(tokenizer.templates), "") if datasets.statistics.format == "chat" else "",
        repeated=0 if corpus.marks is None else len(corpus) - len(set(corpus.marks.rows.tolist())),
        languages=shares(_texts(data, wish.part)),
    )
    if wish.as_json:
        print(json.dumps(_as_json(datasets, wish.part, corpus, rows, found), indent=2, ensure_ascii=False))
        return ExitCode.OK
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print("\n".join([*datasets.statistics.lines(), *found.lines(wish.part)]))
    print(f"\n{wish.part}: tokens per row\n" + "\n".join(bars(corpus.lengths.tolist())))
    for number, row in enumerate(rows):
        tokens, trained = corpus.row(number)
        print(f"\n{wish.part}, row {number + 1} of {len(corpus):,}: {len(tokens)} tokens, {int(trained.sum())} trained")
        print(marked(row, colour=colour))
    return ExitCode.OK


def _manifest(wish: Wish) -> FineTuneJob:
    """What the options name; files of data as the manifest that `finetune init` would write for them."""
    from finetune_api.manifest import load
    from finetune_trainer.cli.paths import resolved, uri_of
    from finetune_trainer.cli.validate import read_manifest

    first = wish.files[0]
    if len(wish.files) == 1 and (first == "-" or ("://" not in first and Path(first).suffix in MANIFESTS)):
        job = read_manifest(first)
        if wish.model is None or job.spec.command is not None or Path(wish.model).is_dir():
            return job
        model = job.spec.model.model_copy(update={"uri": wish.model, "revision": None})
        return job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})
    spec = {
        "model": {"uri": wish.model or MODEL},
        "data": {"train": [{"uri": uri_of(file)} for file in wish.files]},
        "output": {"uri": "./inspected"},
    }
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "inspected"}}
    raw = {**head, "spec": spec}
    return load(json.dumps(raw), given=lambda raw: resolved(raw, Path()))


@dataclass(frozen=True)
class Found:
    """What the rows of a set say about themselves."""

    template: str
    """Name of the chat template, for the format chat."""
    repeated: int
    languages: dict[str, float]

    def lines(self, part: str) -> Iterator[str]:
        if self.template:
            yield f"chat template: {self.template}, of the model"
        if self.repeated:
            yield f"{part}: {self.repeated:,} rows are copies of earlier ones"
        guessed = ", ".join(f"{language} {share:.0%}".replace("%", " %") for language, share in self.languages.items())
        yield f"{part}: language, a guess by frequent words: {guessed}"


def _texts(data: Data, part: str) -> Iterator[str]:
    """The first rows of a data set as they are in its files, without the words of the chat template."""
    from finetune_trainer.data.read import ENDINGS, iter_rows
    from finetune_trainer.store.sources import find_files

    named = {"test": data.test, "general": data.general, "validation": data.validation}
    sources = [*(each for each in data.slices if each.name == part), named.get(part)]
    uris = [each.uri for each in sources if each and each.uri] or [each.uri for each in data.train]
    left = SAMPLE
    for file in (file for uri in uris for file in find_files(uri, prefix=names.PREFIX_DATA, endings=ENDINGS)):
        with closing(iter_rows(file)) as rows:
            for row in islice(rows, left):
                left -= 1
                yield " ".join(_strings(row.fields))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for key, below in value.items() if key not in NO_TEXT for text in _strings(below))
    elif isinstance(value, list):
        yield from (text for below in value for text in _strings(below))


def _chosen(datasets: Datasets, name: str) -> Corpus:
    known = {
        "train": datasets.train, "validation": datasets.validation, "test": datasets.test,
        "general": datasets.general, **datasets.slices,
    }  # fmt: skip
    present = {key: corpus for key, corpus in known.items() if corpus is not None}
    if name not in present:
        message = f"the job has no data set {name}"
        raise FinetuneError(Reason.NotFound, message, f"Choose one of {', '.join(present)}.")
    return present[name]


def segments(corpus: Corpus, number: int, tokenizer: Tokenizer) -> Iterator[Segment]:
    """A row's text, cut where training begins and ends."""
    tokens, trained = corpus.row(number)
    pairs = zip(tokens.tolist(), trained.tolist(), strict=True)
    for is_trained, group in groupby(pairs, key=lambda pair: pair[1]):
        ids = [token for token, _ in group]
        yield tokenizer.backend.decode(ids, skip_special_tokens=False), bool(is_trained)


def marked(row: Sequence[Segment], *, colour: bool) -> str:
    """[("Q: ", False), ("yes", True)] → 'Q: ⟦yes⟧'"""
    before, after = (GREEN, PLAIN) if colour else MARKS
    return "".join(f"{before}{text}{after}" if is_trained else text for text, is_trained in row)


def bars(lengths: Sequence[int]) -> list[str]:
    """A histogram with at most eight ranges of equal width: `  1 to  10  ████ 4`."""
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // BINS)
    counts = [0] * -(-(high - low + 1) // width)
    for length in lengths:
        counts[(length - low) // width] += 1
    digits = len(f"{high:,}")
    return [
        f"  {low + number * width:>{digits},} to {min(high, low + (number + 1) * width - 1):>{digits},}  "
        f"{'█' * -(-count * BAR // max(counts))} {count:,}"
        for number, count in enumerate(counts)
    ]


def _as_json(
    datasets: Datasets, part: str, corpus: Corpus, rows: Sequence[Sequence[Segment]], found: Found
) -> dict[str, Any]:
    return {
        "statistics": datasets.statistics.model_dump(mode="json", by_alias=True),
        "set": part,
        "template": found.template or None,
        "repeated": found.repeated,
        "languages": found.languages,
        "lengths": corpus.lengths.tolist(),
        "rows": [[{"text": text, "trained": is_trained} for text, is_trained in row] for row in rows],
    }
