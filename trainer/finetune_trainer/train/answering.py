"""Lets base and tuned model answer held-out prompts, where evaluation.generate or a guard asks for it.

The base model answers before step 1, when it is what it is in this run, and its answers are stored with the
checkpoints; the tuned model answers once its scale is chosen. Batches are cut before they are shared out over the
ranks, and each has random numbers of its own: so no number of ranks changes an answer. Where weights are sharded every
rank does as many passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune_api.generated_text import Mode
from finetune_api.generation import Generate
from finetune_api.strategy import SHARDED
from finetune_trainer.data.corpus import Corpus, Tokens
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.decoder_blocks import text_only
from finetune_trainer.methods import fault
from finetune_trainer.parallel.base import Strategy
from finetune_trainer.planning.positions import most_positions
from finetune_trainer.random_streams import ANSWERED
from finetune_trainer.transfer.evaluate import Stopped
from finetune_trainer.transfer.generated.answers import Answered, Answers, cut, of_json, to_json
from finetune_trainer.transfer.generated.evidence import MODES, Generated, Written, generated
from finetune_trainer.transfer.generated.prompts import Prompts, prompts_of
from finetune_trainer.transfer.generated.scores import Asked

from .generation_config import stop_tokens
from .model import LanguageModel, cheap_products
from .setup import Setup

_NOTE = "base-answers"
_ROWS = 16
"""Prompts of a batch, at most."""
_SUMMED = 1 << 16
"""Numbers that ranks sum at once."""
_HINT = "Remove evaluation.generate, guards.collapse and guards.generation, or use another model."

Ids = NDArray[np.int64]


@dataclass
class Answering:
    """The answers of one run. Every method is collective, and does nothing where nothing is asked for."""

    setup: Setup
    settings: Generate | None
    prompts: Prompts | None
    stops: frozenset[int] = frozenset()
    base: Answered | None = field(default=None, init=False)

    @classmethod
    def of(cls, setup: Setup, corpora: Mapping[str, Corpus]) -> Answering:
        """InvalidSpec for a schema or a pattern that is not one. Rungs of a ladder do not answer: the run that
        publishes the best one does."""
        settings = setup.spec.generates if setup.plan.rung is None else None
        if settings is None:
            return cls(setup, None, None)
        Asked(settings).check()
        stops = stop_tokens(setup.data.train, setup.local.path)
        known = most_positions(setup.local.path)
        prompts = prompts_of(
            corpora,
            most=settings.max_rows,
            seed=setup.spec.training.seed,
            stops=stops,
            context=None if known is None else known - setup.spec.method.virtual_tokens,
            new=settings.max_new_tokens,
        )
        count = 0 if prompts is None else len(prompts)
        gathering = ", for each token of which all weights are gathered" if _sharded(setup.trainer.strategy) else ""
        left_out = f"; {prompts.left_out} rows have no space for an answer" if prompts and prompts.left_out else ""
        every, most = 2 * len(MODES) * count, settings.max_new_tokens
        setup.trainer.reporter.say(
            f"evaluation.generate: {count} prompts, {every} answers of at most {most} tokens{gathering}{left_out}"
        )
        return cls(setup, settings, prompts if count else None, stops)

    def measure_base(self) -> None:
        """With the untouched model."""
        prompt = self.setup.trainer.prompt
        with prompt.off() if prompt else nullcontext():
            self.base = self._answered("base model", np.zeros(0, np.int32))

    def keep_base(self) -> None:
        """With the checkpoints: a run that resumes cannot ask the base model again."""
        notes = self.setup.trainer.checkpointer.notes
        if self.base is not None and self.prompts is not None and notes is not None:
            notes.note(_NOTE, to_json(self.base, self.prompts))

    def recall_base(self) -> None:
        """What `keep_base` kept; on rank 0 alone."""
        notes = self.setup.trainer.checkpointer.notes
        if self.prompts is not None and notes is not None:
            self.base = of_json(notes.noted(_NOTE), self.prompts)

    def judged(self) -> Generated | None:
        """With the model as it is published; None on ranks other than 0."""
        ids = self.setup.trainer.prompt.ids if self.setup.trainer.prompt else np.zeros(0, np.int32)
        tuned = self._answered("tuned model", ids)
        if tuned is None or self.settings is None or self.prompts is None:
            return None
        if not self.setup.trainer.strategy.place.first:
            return None
        backend = Tokenizer.load(self.setup.local.path).backend
        written = Written(
            prompts=self.prompts,
            settings=self.settings,
            base=self.base or {},
            tuned=tuned,
            decode=lambda tokens: str(backend.decode(list(tokens), skip_special_tokens=True)),
        )
        collapse = self.setup.spec.guards.collapse
        return generated(written, bound=collapse.max_drop if collapse else None)

    def _answered(self, who: str, before: Tokens) -> Answered | None:
        if self.settings is None or self.prompts is None:
            return None
        trainer, reporter = self.setup.trainer, self.setup.trainer.reporter
        most, count = self.settings.max_new_tokens, len(self.prompts)
        found: dict[Mode, Answers] = {}
        for mode in MODES:

            def progress(done: int, mode: Mode = mode) -> None:
                told = f"{who}: {done} of {count} prompts answered, {mode}, at most {most} tokens each"
                reporter.phase("evaluating", told)

            found[mode] = answers(
                trainer.model,
                [np.concatenate([before, each]) for each in self.prompts.tokens],
                mode=mode,
                new=most,
                stops=self.stops,
                pad=trainer.layout.pad_id,
                seed=self.setup.spec.training.seed,
                most_tokens=trainer.layout.max_tokens,
                alive=reporter.alive,
                stop_requested=trainer.stop_requested,
                compiled=self.setup.spec.training.compile,
                progress=progress,
            )
        return found


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
    with _answering(model.network, compiled=compiled):
        for done, (number, rows) in enumerate(strategy.in_step(mine, nothing)):
            if strategy.agreed(stop_requested()):
                raise Stopped
            if done % max(1, len(mine) // 4) == 0:
                progress(min(len(prompts), sum(len(batch) for batch in batches[: done * place.world_size])))
            torch.manual_seed(ANSWERED.number(seed, number) >> 1)
            given = [prompts[row] for row in rows] or [np.zeros(1, np.int32)]
            written = _generate(model, given, mode=mode, new=new, stops=stops, pad=pad, alive=alive)
            ids[rows, : written.shape[1]] = written[: len(rows)] + 1
    whole = _summed(ids, strategy)
    found = [cut(row[row > 0] - 1, stops) for row in whole]
    return Answers(tuple(tokens for tokens, _ in found), tuple(stopped for _, stopped in found))


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
            synced_gpus=_sharded(model.strategy),
        )
    return cast(Tensor, found)[:, longest:].cpu().numpy()


def _sharded(strategy: Strategy) -> bool:
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
