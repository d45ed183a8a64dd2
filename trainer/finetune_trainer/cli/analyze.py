"""`finetune analyze FILE`: the options of the command. `analysis` measures before training, `against` after it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_commands(commands: Any, home_option: Callable[[argparse.ArgumentParser], None]) -> None:
    """Adds `analyze` to the subparsers of the program. `home_option` adds --home, which all commands share."""
    analyze = commands.add_parser("analyze", help="measure shift and layers before training, and recommend settings")
    analyze.add_argument("file", metavar="FILE", help="manifest with one FineTuneJob")
    analyze.add_argument(
        "--documents", type=_at_least(4), default=64, metavar="N",
        help="of the training rows and of data.general, for the shift (default: 64)",
    )  # fmt: skip
    analyze.add_argument(
        "--rows",
        type=_at_least(20),
        default=800,
        metavar="N",
        help="of labelled rows, for probes of the layers (default: 800)",
    )
    analyze.add_argument(
        "--against", metavar="ARTIFACT", help="compare the base with this tuned model instead: URI, folder or job"
    )
    analyze.add_argument(
        "--tokens",
        type=_at_least(1024),
        default=4096,
        metavar="N",
        help="of each data set, with --against (default: 4096)",
    )
    analyze.add_argument("--save", type=Path, metavar="FILE", help="also write a page with curves over the layers")
    analyze.add_argument("-o", "--output", choices=("text", "json"), default="text")
    home_option(analyze)
    analyze.set_defaults(handler=_analyze)


def _at_least(least: int) -> Callable[[str], int]:
    """An argument's type: an integer from `least` on."""

    def parsed(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least {least:,}")
        return int(text)

    return parsed


def _analyze(options: argparse.Namespace) -> int:
    from finetune_trainer.cli.against import show_change
    from finetune_trainer.cli.analysis import Request, show_analysis

    request = Request(
        file=options.file, cache=options.home.absolute() / "cache", documents=options.documents, rows=options.rows,
        as_json=options.output == "json", save=options.save,
    )  # fmt: skip
    if options.against is not None:
        return show_change(request, artifact=options.against, tokens=options.tokens)
    return show_analysis(request)
