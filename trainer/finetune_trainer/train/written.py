"""What a model writes after prompts: greedy, or drawn from its own distribution.

Batches are cut before they are shared out over the ranks, and each has random numbers of its own: so no number of ranks
changes an answer. Where weights are sharded every rank does as many passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune_api.generated_text import Mode
from finetune_api.strategy import SHARDED
from finetune_trainer.data.corpus import Tokens
from finetune_trainer.decoder_blocks import text_only
from finetune_trainer.methods import fault
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.random_streams import ANSWERED, Stream
from finetune_trainer.transfer.evaluate import Stopped
from finetune_trainer.transfer.generated.answers import Answers, cut

from .model import LanguageModel, cheap_products

_ROWS = 16
"""Prompts of a batch, at most."""
_SUMMED = 1 << 16
"""Numbers that ranks sum at once."""
_HINT = "Remove evaluation.generate, guards.collapse, guards.generation and replay.source: self, or use another model."

Ids = NDArray[np.int64]


def answers(
    model: LanguageModel,
    prompts: list[Tokens],
    *,
    mode: Mode,
    new: int,
    stops: frozenset[int],
    pad: int,
    seed: int,
    most_tokens: int,
    stream: Stream = ANSWERED,
    alive: Callable[[], None] = lambda: None,
    stop_requested: Callable[[], bool] = lambda: False,
    compiled: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Collective: all ranks get the answers to all prompts. At most `new` tokens each; the most likely token, or one
    drawn at temperature 1. most_tokens: of a batch, answers included. compiled: blocks are, but not for lengths that
    change with each token. Stopped if a rank was asked to stop."""
    strategy = model.strategy
    place = strategy.place
    batches = list(_batches([len(each) for each in prompts], new=new, most_tokens=most_tokens))
    mine = list(enumerate(batches))[place.rank :: place.world_size]
    ids = np.zeros((len(prompts), new), np.int64)  # 0: nothing, else the token + 1
    nothing = (0, np.zeros(0, np.int64))
    with _answering(model.network, compiled=compiled), model.own_logits():
        for done, (number, rows) in enumerate(strategy.in_step(mine, nothing)):
            if strategy.agreed(stop_requested()):
                raise Stopped
            if done % max(1, len(mine) // 4) == 0:
                progress(min(len(prompts), sum(len(batch) for batch in batches[: done * place.world_size])))
            torch.manual_seed(stream.number(seed, number) >> 1)
            given = [prompts[row] for row in rows] or [np.zeros(1, np.int32)]
            written = _generate(model, given, mode=mode, new=new, stops=stops, pad=pad, alive=alive)
            ids[rows, : written.shape[1]] = written[: len(rows)] + 1
    whole = _summed(ids, strategy)
    found = [cut(row[row > 0] - 1, stops) for row in whole]
    made = Answers(tuple(tokens for tokens, _ in found), tuple(stopped for _, stopped in found))
    # Ids that the base model had to spare have no text in its tokenizer, and another one's in the run's.
    return made.below(model.base_head.first) if model.base_head else made


def _batches(lengths: list[int], *, new: int, most_tokens: int) -> Iterator[Ids]:
    """Prompts of similar length, the longest first."""
    order = np.argsort(-np.array(lengths), kind="stable")
    start = 0
    while start < len(order):
        count = min(_ROWS, max(1, most_tokens // (lengths[order[start]] + new)))
        yield order[start : start + count]
        start += count


def _generate(
    model: LanguageModel,
    prompts: list[Tokens],
    *,
    mode: Mode,
    new: int,
    stops: frozenset[int],
    pad: int,
    alive: Callable[[], None],
) -> Ids:
    """(prompts, at most new): what follows each prompt, with padding after an end token."""
    from transformers import GenerationConfig

    longest = max(len(each) for each in prompts)
    tokens = np.full((len(prompts), longest), pad, np.int64)
    mask = np.zeros_like(tokens)
    for line, each in enumerate(prompts):  # padding in front: all answers begin at one position
        tokens[line, longest - len(each) :] = each
        mask[line, longest - len(each) :] = 1

    def go_on(ids: Tensor, _scores: Any, **_more: Any) -> Tensor:
        alive()
        return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

    drawn = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if mode == "sampled" else {}
    settings = GenerationConfig(
        max_new_tokens=new, use_cache=True, eos_token_id=sorted(stops) or None, pad_token_id=pad, **drawn
    )
    with (
        cheap_products(model.device, model.autocast),
        fault.of_model(model.network, "cannot generate text", hint=_HINT),
    ):
        found = cast(Any, model.network).generate(
            input_ids=torch.from_numpy(tokens).to(model.device),
            attention_mask=torch.from_numpy(mask).to(model.device),
            generation_config=settings,
            stopping_criteria=[go_on],
            synced_gpus=sharded(model.strategy),
        )
    return cast(Tensor, found)[:, longest:].cpu().numpy()


def sharded(strategy: Strategy) -> bool:
    """Whether passes are collective."""
    return strategy.name in SHARDED and strategy.place.world_size > 1


@contextmanager
def _answering(network: nn.Module, *, compiled: bool) -> Iterator[None]:
    """Inside, nothing is trained or compiled, and no setting of the model's own decides how it generates."""
    from transformers import GenerationConfig

    hugging, training = cast(Any, network), network.training
    own, hugging.generation_config = hugging.generation_config, GenerationConfig()
    network.eval()
    try:
        # Asked for only where it is needed: it imports the compiler, which takes seconds.
        with text_only(network), torch.compiler.set_stance("force_eager") if compiled else nullcontext():
            yield
    finally:
        hugging.generation_config = own
        network.train(training)


def _summed(ids: Ids, strategy: Strategy) -> Ids:
    """Of all ranks; each row is another's zeros."""
    flat = ids.reshape(-1).astype(np.float64)
    for start in range(0, len(flat), _SUMMED):
        flat[start : start + _SUMMED] = strategy.sum_counters(flat[start : start + _SUMMED].tolist())
    return flat.astype(np.int64).reshape(ids.shape)
