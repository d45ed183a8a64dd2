"""training.microBatchTokens, where the manifest leaves it open: as many tokens as are fast, at least one sequence.

On a CPU more tokens at once buy nothing once the matrix products are tall: 1024, or the longest row. On a GPU the
tokens are what fits into 85 % of its memory, and no more than keep it busy.
"""

from __future__ import annotations

import math
from typing import Literal

from finetune_api.methods import Method
from finetune_api.regularization import NO_TERMS, Regularization
from finetune_api.spec import Optimizer
from finetune_api.vocabulary import Vocabulary
from finetune_trainer.planning.memory import Precision, estimate
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.spread import WHOLE, Spread

CPU_TOKENS = 1024
GPU_TOKENS = 32768
GPU_SHARE = 0.85


def micro_batch_tokens(
    shape: ModelShape | None,
    method: Method,
    *,
    precision: Precision,
    longest_row: int,
    device: Literal["cpu", "cuda"],
    device_memory: int | None = None,
    spread: Spread = WHOLE,
    recomputed: bool = False,
    optimizer: Optimizer = "adamw",
    most: int | None = None,
    regularization: Regularization = NO_TERMS,
    vocabulary: Vocabulary | None = None,
) -> int:
    """Tokens that one process computes at once. `longest_row`: tokens of the longest row, at most sequenceLength;
    `spread`: what the strategy leaves of the states on the process; `most`: what a step can give it, see
    `tokens_of_a_step`."""
    if device == "cpu":
        return max(longest_row, CPU_TOKENS)
    if shape is None or device_memory is None:
        return max(longest_row, min(GPU_TOKENS // 2, max(most or GPU_TOKENS, CPU_TOKENS)))

    def need(tokens: int) -> int:
        return estimate(
            shape,
            method,
            precision=precision,
            device=device,
            tokens=tokens,
            row=longest_row,
            spread=spread,
            recomputed=recomputed,
            optimizer=optimizer,
            regularization=regularization,
            vocabulary=vocabulary,
        ).total

    one, two = need(4096), need(8192)
    per_token = max(1.0, (two - one) / 4096)
    room = GPU_SHARE * device_memory - (one - 4096 * per_token)
    fitting = int(room / per_token) // 256 * 256
    return max(longest_row, min(fitting, GPU_TOKENS, max(most or GPU_TOKENS, CPU_TOKENS)))


def tokens_of_a_step(*, rows: int, processes: int, longest_row: int, row: float, packing: bool) -> int:
    """The most that one process has to compute in a step of `rows` rows, `row` tokens each on average: rows are dealt
    out by their tokens, and those that are not packed are padded."""
    mine = -(-rows // processes)
    padded = mine * longest_row
    return min(padded, math.ceil(mine * row) + longest_row) if packing else padded
