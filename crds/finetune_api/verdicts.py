"""The words in which a result is judged; docs/evaluation.md says when each applies."""

from typing import Literal

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
GuardVerdict = Literal["passed", "violated", "inconclusive"]
