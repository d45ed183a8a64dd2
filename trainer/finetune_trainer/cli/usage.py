"""Wrong usage of a command line, explained: an unknown command, choice or option is answered with the most similar
one."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import Any, NoReturn

CHOICE = re.compile(r"invalid choice: '?([^']*?)'? \(choose from (.*)\)")


class Parser(argparse.ArgumentParser):
    """A parser whose errors suggest what was meant. Its subparsers are of this class too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Without those that it does not know, which are an error here: of the command that they were given to."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], options, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        super().error(explained(message))


def explained(message: str) -> str:
    """argparse's message, shorter and with a suggestion where a choice does not exist."""
    found = CHOICE.search(message)
    if found is None:
        return message
    choices = re.findall(r"[\w-]+", found[2])
    near = difflib.get_close_matches(found[1], choices, n=1)
    meant = f"did you mean {near[0]}?" if near else f"choose from {', '.join(choices)}"
    return f"{message[: found.start()]}{found[1]!r} does not exist; {meant}"
