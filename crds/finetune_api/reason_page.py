"""Generates docs/reasons.md: every reason of a failure, with its fix and the section that explains it."""

from __future__ import annotations

from .classes import CLASSES, Cause
from .reasons import FailureClass, Reason

HEAD = """# Reasons

Generated from `finetune_api.classes` by `make generate`; do not edit.

Every failure has a reason, in `status.lastFailure.reason`, in the conditions, and in the output of `finetune`. Search
this page for it. The link leads to what happens, what is retried, and more ways to fix it. `finetune` exits with the
code of the reason; 0 means done, and 64 a wrong option.

| reason | class | exit code | first thing to do |
|---|---|---|---|
"""


def page() -> str:
    """docs/reasons.md."""
    causes = {reason: (name, cause) for name, traits in CLASSES.items() for reason, cause in traits.causes.items()}
    return HEAD + "".join(_row(reason, *causes[reason]) for reason in sorted(causes))


def _row(reason: Reason, name: FailureClass, cause: Cause) -> str:
    code = CLASSES[name].exit_code if cause.exit_code is None else cause.exit_code
    return f"| `{reason}` | [{name}](runbooks.md#{name.lower()}) | {code} | {cause.hint} |\n"
