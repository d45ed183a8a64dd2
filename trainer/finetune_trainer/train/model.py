"""The language model as training and evaluation see it: micro-batches in, summed nats out.

What a model can do is found out and not believed: a few tokens are run through it, and where packed documents would see
each other, or logits are more than hidden states times one matrix, the slower way that is right is taken, and said.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.pack import IGNORED, MicroBatch
from finetune_trainer.kernels.attention import named, starts, takes_starts
from finetune_trainer.kernels.chosen import Kernels
from finetune_trainer.parallel.base import Packed, Strategy
from finetune_trainer.parallel.single import Single

from .below import Below
from .loss import logits_cross_entropy, token_nats, trained_cross_entropy

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Abilities:
    """What holds for one architecture."""

    fused_head: bool
    """Logits are hidden states times the head's weight, and nothing else."""
    isolates: bool
    """Documents in one row do not see each other when positions start anew."""
    shares_prompts: bool
    """A mask of our own is honoured, so several continuations may share one prompt."""

    def common(self, other: Abilities) -> Abilities:
        """What holds for both."""
        return Abilities(
            self.fused_head and other.fused_head,
            self.isolates and other.isolates,
            self.shares_prompts and other.shares_prompts,
        )


@dataclass(frozen=True)
class LanguageModel:
    network: nn.Module
    """transformers' `…ForCausalLM`, with or without adapters in it."""
    device: torch.device
    autocast: torch.dtype | None
    """Of the products, where it is not that of the parameters."""
    abilities: Abilities
    strategy: Strategy = field(default_factory=Single)
    """Knows where the weights lie, and brings embeddings and head where they are used."""
    below: Below | None = None
    """The layers that batches with states leave out."""
    kernels: Kernels = field(default_factory=Kernels)

    @property
    def hidden_size(self) -> int:
        return int(cast(Any, self.network).config.get_text_config().hidden_size)

    @property
    def head(self) -> Tensor:
        """(vocab, dim)"""
        return cast(Tensor, cast(Any, self.network).get_output_embeddings().weight)

    @property
    def shares_prompts(self) -> bool:
        return self.abilities.shares_prompts

    def nats(self, batch: MicroBatch) -> Tensor:
        """Summed over the batch's targets, with gradients where the network trains."""
        tokens, positions = self._tensor(batch.tokens), self._tensor(batch.positions)
        bounds = self._bounds(batch.positions)
        # Known here: a GPU that was asked which tokens are trained would be waited for.
        trained = np.flatnonzero(batch.targets != IGNORED)
        chosen, targets = self._tensor(trained), self._tensor(batch.targets.reshape(-1)[trained])

        def work() -> Tensor:
            with self._begun(batch):
                if not self.abilities.fused_head:
                    answer = self.network(
                        input_ids=tokens, position_ids=positions, attention_mask=bounds, use_cache=False
                    )
                    return logits_cross_entropy(answer.logits.flatten(0, 1).index_select(0, chosen), targets)
                hidden = hidden_states(self.network, tokens, positions, bounds).flatten(0, 1)
            if len(trained) < len(hidden):
                hidden = hidden.index_select(0, chosen)
            return (self.kernels.summed or trained_cross_entropy)(hidden, self.head, targets)

        return self._inside(work)

    @torch.no_grad()
    def token_nats(self, tokens: Array, positions: Array, targets: Array, mask: Array | None = None) -> Array:
        """Of each token, 0 where there is no target; all (rows, length). mask: (rows, length, length), True = sees."""
        seen = self._bounds(positions) if mask is None else self._tensor(mask)[:, None]
        given, places, wanted = self._tensor(tokens), self._tensor(positions), self._tensor(targets)
        out = torch.zeros(targets.shape, dtype=torch.float32, device=self.device)
        chosen = wanted != IGNORED

        def work() -> Tensor:
            if self.abilities.fused_head:
                hidden = hidden_states(self.network, given, places, seen)
                return token_nats(hidden[chosen], self.head, wanted[chosen])
            answer = self.network(input_ids=given, position_ids=places, attention_mask=seen, use_cache=False)
            return nn.functional.cross_entropy(answer.logits[chosen].float(), wanted[chosen], reduction="none")

        out[chosen] = self._inside(work)
        return out.cpu().numpy()

    @property
    def depth_below(self) -> int:
        """How many layers batches with states leave out."""
        return len(self.below.blocks) if self.below else 0

    @torch.no_grad()
    def states(self, batch: MicroBatch) -> Tensor:
        """(rows, length, dim), by the layers below alone."""
        below, tokens, positions = self.below, self._tensor(batch.tokens), self._tensor(batch.positions)
        if below is None:
            raise ValueError("no layers are known that could run alone")
        return self._inside(lambda: below.states(tokens, positions, self._bounds(batch.positions)))

    def _begun(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Inside, the network begins where the batch's states end."""
        if batch.states is None or self.below is None:
            return nullcontext()
        states = self._tensor(batch.states)
        return self.below.left_out(states.view(torch.bfloat16) if states.dtype is torch.int16 else states)

    def describe(self, *, reasons: bool = False) -> str:
        """One line: which dtypes and kernels run, and with `reasons` why no faster ones."""
        stored = sorted({_short(p.dtype) for p in self.network.parameters()})
        compute = _short(self.autocast or self.head.dtype)
        kernels, fused = self.kernels, "fused" if self.abilities.fused_head else "from logits"
        attention = kernels.attention or named(self.network)
        why = [f" ({because})" if because and reasons else "" for because in kernels.reasons]
        return (
            f"parameters {'+'.join(stored)}, compute {compute}, "
            f"attention {attention}{why[0]}, loss {kernels.loss or fused}{why[1]}, "
            f"{'documents share rows' if self.abilities.isolates else 'one document a row'}"
        )

    def _bounds(self, positions: Array) -> Tensor | None:
        """For attention that goes by them; known here, too."""
        return self._tensor(starts(positions)) if takes_starts(self.network) else None

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _inside(self, work: Callable[[], Tensor]) -> Tensor:
        def cheaply() -> Tensor:
            with cheap_products(self.device, self.autocast):
                return work()

        return self.strategy.inside(self.network, cheaply)


def cheap_products(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Products in `dtype`, where there is one. Copies of weights are not shared between products: each is in one alone,
    and what is shared would outlive the blocks that run again, a whole model of copies."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def hidden_states(network: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    """(rows, length, dim), after the last norm.

    Without a mask and without a cache, transformers reads from the positions where documents begin, and builds the mask
    itself; with either of the two it does not, and documents leak into each other without a word.
    """
    body = cast(Any, network).base_model
    answer = body(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)
    return cast(Tensor, answer.last_hidden_state)


def load_network(
    path: Path,
    *,
    dtype: torch.dtype,
    strategy: Strategy,
    device: torch.device,
    frozen: bool = False,
    packed: Packed | None = None,
) -> tuple[nn.Module, torch.dtype]:
    """(the network in `dtype`, the dtype of its files). ModelUnsupported where transformers has no such class."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    name = (config.architectures or ["?"])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise FinetuneError(Reason.ModelUnsupported, f"transformers {transformers.__version__} has no class {name}")
    stored = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    build = partial(strategy.build, device=device, frozen=frozen, packed=packed)
    # sdpa cannot cap attention scores (Gemma 2).
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
    try:
        network = build(kind, path, config=config, dtype=dtype, attn_implementation=attention)
    except ValueError as error:
        if "sdpa" not in str(error) and "scaled_dot_product" not in str(error):
            raise FinetuneError(Reason.ModelUnsupported, f"{name} cannot be loaded: {error}") from error
        network = build(kind, path, config=config, dtype=dtype, attn_implementation="eager")
    cast(Any, network).config.use_cache = False
    return network, stored


def as_stored(network: nn.Module, stored: torch.dtype) -> None:
    """Frozen weights of a model in 16 bits take 16 bits again: nothing is lost."""
    if stored is torch.bfloat16:
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(stored)


@torch.no_grad()
def probe(network: nn.Module, device: torch.device, *, strategy: Strategy | None = None) -> Abilities:
    """Run eight tokens through the network, in other arrangements, and see what stays the same."""
    was_training = network.training
    network.eval()
    try:
        return (strategy or Single()).inside(network, lambda: _probe(network, device))
    finally:
        network.train(was_training)


def _probe(network: nn.Module, device: torch.device) -> Abilities:
    vocabulary = int(cast(Any, network).get_input_embeddings().weight.shape[0])
    tokens = (torch.arange(8, device=device) * 7919 + 13)[None] % vocabulary
    counted = torch.arange(8, device=device)[None]
    first = _states(network, tokens[:, :5], counted[:, :5])
    other = _states(network, tokens[:, 5:], counted[:, :3])
    branch = _states(network, torch.cat([tokens[:, :3], tokens[:, 5:]], 1), counted[:, :6])

    packed = _states(network, tokens, torch.cat([counted[:, :5], counted[:, :3]], 1))
    isolates = _same(packed, torch.cat([first, other], 1))

    # One prompt of three tokens, continued by two and, instead, by three others.
    seen = torch.ones(8, 8, dtype=torch.bool, device=device).tril()
    seen[5:, 3:5] = False
    tree = _states(network, tokens, torch.cat([counted[:, :5], counted[:, 3:6]], 1), seen[None, None])
    shares = _same(tree, torch.cat([first, branch[:, 3:]], 1))

    logits = cast(Any, network)(input_ids=tokens, position_ids=counted, use_cache=False).logits
    head = cast(Any, network).get_output_embeddings().weight
    fused = _same(logits, _states(network, tokens, counted) @ head.T)
    return Abilities(fused_head=fused, isolates=isolates, shares_prompts=shares)


def _states(network: nn.Module, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
    try:
        return hidden_states(network, tokens, positions, mask)
    except (ValueError, TypeError, RuntimeError):  # a mask or positions that this architecture does not take
        return torch.full((), torch.nan)


def _same(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    precision = 1e-4 if left.dtype == torch.float32 else 5e-2
    return bool((left - right).abs().max() <= precision * right.abs().max())
