"""Output of a local run: a live display on a terminal, otherwise one line per event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TextIO

from finetune_api.progress_text import percent, progress_line, span
from finetune_trainer.rundir import TrainerReport

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LINE_SECONDS = 15.0
"""Interval between two progress lines."""


class View(Protocol):
    """Where `run` shows its progress."""

    def say(self, line: str) -> None:
        """Shows one event."""

    def show(self, report: TrainerReport, *, ranks: str) -> None:
        """Shows the current state. `ranks` is text such as `2 of 2`."""


@dataclass
class Lines:
    """Plain lines, for logs, pipes and CI."""

    name: str
    out: TextIO
    clock: Callable[[], float] = time.monotonic
    _last: TrainerReport | None = field(default=None, repr=False)
    _told_at: float = field(default=0.0, repr=False)

    def say(self, line: str) -> None:
        print(f"{self.name}: {line}", file=self.out, flush=True)

    def show(self, report: TrainerReport, *, ranks: str) -> None:
        for line in self._events(report, ranks):
            self.say(line)
        self._last = report

    def _events(self, report: TrainerReport, ranks: str) -> Iterator[str]:
        last = self._last
        if last is None or last.phase != report.phase:
            yield progress_line(report.phase, report.progress) + f"  ({ranks} ranks)"
            self._told_at = self.clock()
        elif report.progress.eval_loss != last.progress.eval_loss and report.progress.eval_loss is not None:
            yield progress_line("evaluated", report.progress)
            self._told_at = self.clock()
        elif report.progress.step != last.progress.step and self.clock() - self._told_at >= LINE_SECONDS:
            yield progress_line(report.phase, report.progress)
            self._told_at = self.clock()
        if report.last_checkpoint_step is not None and (
            last is None or report.last_checkpoint_step != last.last_checkpoint_step
        ):
            yield f"saved checkpoint at step {report.last_checkpoint_step}"


class Screen:
    """A live display for terminals; events scroll above it."""

    def __init__(self, name: str, console: Console) -> None:
        from rich.live import Live

        self.name, self.console = name, console
        self.live = Live(console=console, refresh_per_second=4, transient=True)

    def say(self, line: str) -> None:
        self.live.console.print(f"{self.name}: {line}", highlight=False, markup=False)

    def show(self, report: TrainerReport, *, ranks: str) -> None:
        self.live.update(self._drawn(report, ranks))

    def _drawn(self, report: TrainerReport, ranks: str) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = report.progress
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(self.name, style="bold"),
            Text(report.phase, style="cyan"),
            ProgressBar(total=max(1, done.total_steps or 1), completed=done.step, width=32),
            f"{done.step}/{done.total_steps or '?'} ({percent(done)} %)",
            f"{span(done.eta_seconds)} left" if done.eta_seconds is not None else "",
        )
        pairs = [Text.assemble((f"{label} ", "dim"), value) for label, value in _facts(report, ranks)]
        facts = Text("   ").join(pairs)
        note = Text(report.message or "Ctrl-C saves a checkpoint and stops; run again to resume", style="dim")
        return Group(head, facts, note)


def _facts(report: TrainerReport, ranks: str) -> list[tuple[str, str]]:
    done = report.progress
    facts = [("ranks", ranks)]
    if done.loss is not None:
        facts.append(("loss", f"{done.loss:.4f}"))
    if done.eval_loss is not None:
        facts.append(("eval", f"{done.eval_loss:.4f}"))
    if done.tokens_per_second:
        facts.append(("tok/s", f"{done.tokens_per_second:,.0f}"))
    if report.learning_rate is not None:
        facts.append(("rate", f"{report.learning_rate:.2e}"))
    if report.last_checkpoint_step is not None:
        facts.append(("checkpoint", f"step {report.last_checkpoint_step}"))
    return facts


@contextmanager
def view_of(name: str, out: TextIO = sys.stderr) -> Iterator[View]:
    """Returns the view for `out`; restores the terminal afterwards."""
    if not out.isatty():
        yield Lines(name, out)
        return
    from rich.console import Console

    screen = Screen(name, Console(file=out))
    with screen.live:
        yield screen
