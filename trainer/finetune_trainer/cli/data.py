"""`finetune data inspect FILE`: a manifest's rows as the model will see them, without training: counts and problems,
the lengths, and the first rows with their trained tokens marked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.failures import ExitCode, FinetuneError, Reason

if TYPE_CHECKING:
    from finetune_trainer.data.corpus import Corpus
    from finetune_trainer.data.load import Datasets
    from finetune_trainer.data.tokenizer import Tokenizer

BINS = 8
BAR = 40
"""Characters of the longest bar."""
GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
MARKS = ("⟦", "⟧")
"""Around trained tokens where there are no colours."""

Segment = tuple[str, bool]
"""Text, and whether it is trained."""


@dataclass(frozen=True)
class Wish:
    """Options of the command."""

    file: str
    part: str = "train"
    rows: int = 3
    model: Path | None = None
    as_json: bool = False
    cache: Path = Path(".finetune/cache")


def add_commands(commands: Any, home_option: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds `data` to the subparsers of the program. `home_option` adds --home, which all commands share."""
    data = commands.add_parser("data", help="show training data as the model will see it")
    actions = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inspect = actions.add_parser("inspect", help="show counts, lengths, and the first rows with trained tokens marked")
    inspect.add_argument("file", metavar="FILE", help="manifest with one FineTuneJob; - for standard input")
    inspect.add_argument("--set", dest="part", default="train", metavar="NAME",
                         help="train, validation, test, general or the name of a slice (default: train)")  # fmt: skip
    inspect.add_argument("--rows", type=int, default=3, help="rows to print (default: 3)")
    inspect.add_argument("--model", type=Path, metavar="FOLDER", help="folder with the tokenizer (default: model.uri)")
    inspect.add_argument("-o", "--output", choices=("text", "json"), default="text")
    home_option(inspect)
    inspect.set_defaults(handler=lambda options: show_data(_wish(options)))


def _wish(options: argparse.Namespace) -> Wish:
    return Wish(
        options.file, options.part, options.rows, options.model, options.output == "json",
        options.home.absolute() / "cache",
    )  # fmt: skip


def show_data(wish: Wish) -> int:
    """Prints what there is; FinetuneError for everything that is wrong with the files, as in a run."""
    from finetune_api.manifest import ManifestError
    from finetune_trainer.cli.text import problems_text
    from finetune_trainer.cli.validate import read_manifest
    from finetune_trainer.data.load import load_datasets
    from finetune_trainer.data.tokenizer import Tokenizer
    from finetune_trainer.planning.positions import fitted
    from finetune_trainer.store.models import resolve_model

    try:
        spec = read_manifest(wish.file).spec
    except ManifestError as error:
        print(problems_text(wish.file, error.problems), file=sys.stderr)
        return ExitCode.CONFIG
    if spec.command is not None:
        message = "the job runs a custom script, which reads its own data"
        raise FinetuneError(Reason.InvalidSpec, message, "Inspect a manifest that has data.")
    folder = wish.model or resolve_model(spec.model, cache=wish.cache).path
    data = fitted(spec.data, folder, spec.method) if (folder / "config.json").exists() else spec.data
    datasets = load_datasets(
        data, tokenizer_path=folder, cache=wish.cache, seed=spec.training.seed, group_by=spec.evaluation.group_by
    )
    corpus = _chosen(datasets, wish.part)
    tokenizer = Tokenizer.load(folder)
    rows = [list(segments(corpus, number, tokenizer)) for number in range(min(wish.rows, len(corpus)))]
    if wish.as_json:
        print(json.dumps(_as_json(datasets, wish.part, corpus, rows), indent=2, ensure_ascii=False))
        return ExitCode.OK
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print("\n".join(datasets.statistics.lines()))
    print(f"\n{wish.part}: tokens per row\n" + "\n".join(bars(corpus.lengths.tolist())))
    for number, row in enumerate(rows):
        tokens, trained = corpus.row(number)
        print(f"\n{wish.part}, row {number + 1} of {len(corpus):,}: {len(tokens)} tokens, {int(trained.sum())} trained")
        print(marked(row, colour=colour))
    return ExitCode.OK


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


def _as_json(datasets: Datasets, part: str, corpus: Corpus, rows: Sequence[Sequence[Segment]]) -> dict[str, Any]:
    return {
        "statistics": datasets.statistics.model_dump(mode="json", by_alias=True),
        "set": part,
        "lengths": corpus.lengths.tolist(),
        "rows": [[{"text": text, "trained": is_trained} for text, is_trained in row] for row in rows],
    }
