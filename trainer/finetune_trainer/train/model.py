"""The language model as training and evaluation see it: micro-batches in, summed nats out.

What a model can do is found out and not believed (see `capabilities`): where packed documents would see each other, or
logits are more than hidden states times one matrix, the slower way that is right is taken, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.pack import IGNORED, MicroBatch
from finetune_trainer.decoder_blocks import text_only
from finetune_trainer.kernels.attention import named, starts, takes_starts
from finetune_trainer.kernels.selected import Kernels
from finetune_trainer.methods import fault
from finetune_trainer.parallel.base import Packed, Strategy
from finetune_trainer.parallel.single import Single
from finetune_trainer.parallel.weight_names import account, class_of
from finetune_trainer.regularization.kl_to_base import KlToBase, logit_divergences, token_divergences
from finetune_trainer.transfer.features import token_states
from finetune_trainer.vocabulary.base_head import BaseHead
from finetune_trainer.vocabulary.rows import VocabularyRows

from .capabilities import Capabilities, hidden_states
from .frozen_layers import FrozenLayers
from .loss import fused_cross_entropy, logits_cross_entropy, token_nats, trained_cross_entropy

Array = np.ndarray[Any, Any]
T = TypeVar("T")

_OfHidden = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden states (targets, dim), head (vocab, dim), targets)"""
_OfLogits = Callable[[Tensor, Tensor], Tensor]
"""(logits (targets, vocab) in fp32, targets)"""

_DRAWN_AT_ONCE = 128
"""Tokens whose logits are there while labels are drawn."""

_OTHER_MODEL = "Its class in transformers does not do what training asks of it: use another model."


@dataclass(frozen=True)
class LanguageModel:
    network: nn.Module
    """transformers' `…ForCausalLM`, with or without adapters in it."""
    device: torch.device
    autocast: torch.dtype | None
    """The dtype of products, where it is not that of the parameters."""
    capabilities: Capabilities
    strategy: Strategy = field(default_factory=Single)
    """Knows where the weights lie, and brings embeddings and head where they are used."""
    below: FrozenLayers | None = None
    """The layers that batches with states leave out."""
    kernels: Kernels = field(default_factory=Kernels)
    rows: VocabularyRows | None = None
    """Rows of embeddings and head that train although the others do not."""
    base_head: BaseHead | None = None
    """Of the model as it came, where it is measured without the tokens that the network has besides."""

    @property
    def hidden_size(self) -> int:
        return int(cast(Any, self.network).config.get_text_config().hidden_size)

    @property
    def head(self) -> Tensor:
        """(vocab, dim)"""
        weight = cast(Tensor, cast(Any, self.network).get_output_embeddings().weight)
        return self.base_head.of_weight(weight) if self.base_head else weight

    def own_logits(self) -> AbstractContextManager[None]:
        """Inside, the network itself has the logits of this model."""
        return self.base_head.on(self.network) if self.base_head else nullcontext()

    @property
    def shares_prompts(self) -> bool:
        return self.capabilities.shares_prompts

    @property
    def shared_within(self) -> int | None:
        return self.capabilities.shared_within

    def nats(self, batch: MicroBatch) -> Tensor:
        """Summed over the batch's targets, with gradients where the network trains."""
        return self._of_targets(batch, self._summed, logits_cross_entropy)

    def _summed(self, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        if self.rows is None or not torch.is_grad_enabled():
            return (self.kernels.summed or trained_cross_entropy)(hidden, head, targets)
        return fused_cross_entropy(hidden, head, targets, rows=self.rows.wanted, places=self.rows.places)

    @torch.no_grad()
    def outputs(self, batch: MicroBatch) -> Tensor:
        """(targets, dim): the states that the head makes logits of; or the logits, where that is not all it does."""
        return self._of_targets(batch, lambda hidden, _head, _targets: hidden, lambda logits, _targets: logits)

    def nats_and_divergence(self, batch: MicroBatch, base: Tensor, kl: KlToBase) -> Tensor:
        """(2,): the sum of `nats`, and that of the divergence from `base`, the `outputs` of another model."""
        nats = self.kernels.summed or trained_cross_entropy

        def of_hidden(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
            return torch.stack([nats(hidden, head, targets), kl.divergence(hidden, base, head, targets)])

        def of_logits(logits: Tensor, targets: Tensor) -> Tensor:
            return torch.stack([logits_cross_entropy(logits, targets), kl.of_logits(logits, base, targets)])

        return self._of_targets(batch, of_hidden, of_logits)

    def nats_of_drawn(self, batch: MicroBatch, draw: Callable[[Tensor], Tensor]) -> Tensor:
        """Summed, of other targets at the places of the batch's: those that `draw` takes from the model's own logits,
        (tokens, vocab) to (tokens,)."""

        def of_hidden(hidden: Tensor, head: Tensor, _targets: Tensor) -> Tensor:
            with torch.no_grad():
                drawn = [draw((part @ head.T).float()) for part in torch.split(hidden, _DRAWN_AT_ONCE)]
            return trained_cross_entropy(hidden, head, torch.cat(drawn))

        def of_logits(logits: Tensor, _targets: Tensor) -> Tensor:
            return logits_cross_entropy(logits, draw(logits.detach()))

        return self._of_targets(batch, of_hidden, of_logits)

    @torch.no_grad()
    def target_nats(self, batch: MicroBatch) -> Array:
        """(targets,): of each target of the batch, line by line. It costs what their sum costs."""
        each = self._of_targets(batch, token_nats, partial(nn.functional.cross_entropy, reduction="none"))
        return each.float().cpu().numpy()

    @torch.no_grad()
    def target_divergences(self, batch: MicroBatch, base: Tensor) -> Array:
        """(targets,): KL(base ‖ this model) of each target's distribution, in nats; base: the `outputs` of the base
        model."""
        each = self._of_targets(
            batch,
            lambda hidden, head, _targets: token_divergences(hidden, base, head),
            lambda logits, _targets: logit_divergences(logits, base.float()),
        )
        return each.float().cpu().numpy()

    def _of_targets(self, batch: MicroBatch, of_hidden: _OfHidden, of_logits: _OfLogits) -> Tensor:
        tokens, positions = self._tensor(batch.tokens), self._tensor(batch.positions)
        bounds = self._bounds(batch.positions)
        # Known here: a GPU that was asked which tokens are trained would be waited for.
        trained = np.flatnonzero(batch.targets != IGNORED)
        chosen, targets = self._tensor(trained), self._tensor(batch.targets.reshape(-1)[trained])

        def work() -> Tensor:
            with self._begun(batch):
                if not self.capabilities.fused_head:
                    answer = self._answer(tokens, positions, bounds)
                    return of_logits(answer.logits.flatten(0, 1).index_select(0, chosen).float(), targets)
                hidden = hidden_states(self.network, tokens, positions, bounds).flatten(0, 1)
            if len(trained) < len(hidden):
                hidden = hidden.index_select(0, chosen)
            return of_hidden(hidden, self.head, targets)

        return self._inside(work)

    @torch.no_grad()
    def token_nats(self, tokens: Array, positions: Array, targets: Array, mask: Array | None = None) -> Array:
        """Nats of each token, 0 without a target; all (rows, length). mask: (rows, length, length), True = sees."""
        seen = self._bounds(positions) if mask is None else self._tensor(mask)[:, None]
        given, places, wanted = self._tensor(tokens), self._tensor(positions), self._tensor(targets)
        out = torch.zeros(targets.shape, dtype=torch.float32, device=self.device)
        chosen = wanted != IGNORED

        def work() -> Tensor:
            if self.capabilities.fused_head:
                hidden = hidden_states(self.network, given, places, seen)
                return token_nats(hidden[chosen], self.head, wanted[chosen])
            answer = self._answer(given, places, seen)
            return nn.functional.cross_entropy(answer.logits[chosen].float(), wanted[chosen], reduction="none")

        out[chosen] = self._inside(work)
        return out.cpu().numpy()

    def _answer(self, tokens: Tensor, positions: Tensor, mask: Tensor | None) -> Any:
        with text_only(self.network):
            return self.network(input_ids=tokens, position_ids=positions, attention_mask=mask, use_cache=False)

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

    @torch.no_grad()
    def layer_states(self, batch: MicroBatch, layers: Sequence[int], wanted: Array) -> Array:
        """(layers, wanted tokens, dim), see `transfer.features`; wanted: (rows, length). The batch has no states."""
        return self._inside(lambda: token_states(self.network, batch, layers, wanted))

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
        kernels, fused = self.kernels, "fused" if self.capabilities.fused_head else "from logits"
        attention = kernels.attention or named(self.network)
        why = [f" ({because})" if because and reasons else "" for because in kernels.reasons]
        return (
            f"parameters {'+'.join(stored)}, compute {compute}, "
            f"attention {attention}{why[0]}, loss {kernels.loss or fused}{why[1]}, "
            # Compared with what an earlier attempt, perhaps of an earlier release, wrote.
            # words: allow one document a row
            f"{'documents share rows' if self.capabilities.isolates else 'one document a row'}"
        )

    def _bounds(self, positions: Array) -> Tensor | None:
        """For attention that goes by them; known here, too."""
        return self._tensor(starts(positions)) if takes_starts(self.network) else None

    def _tensor(self, array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, non_blocking=True)

    def _inside(self, work: Callable[[], T]) -> T:
        def cheaply() -> T:
            with cheap_products(self.device, self.autocast), self.own_logits():
                return work()

        with fault.of_model(self.network, "cannot compute a batch", hint=_OTHER_MODEL):
            return self.strategy.inside(self.network, cheaply)


def cheap_products(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Products in `dtype`, where there is one. Copies of weights are not shared between products: each is in one alone,
    and what is shared would outlive the blocks that run again, a whole model of copies."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_network(
    path: Path,
    *,
    dtype: torch.dtype,
    strategy: Strategy,
    device: torch.device,
    frozen: bool = False,
    packed: Packed | None = None,
    products: torch.dtype | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[nn.Module, torch.dtype]:
    """(the network in `dtype`, the dtype of its files). ModelUnsupported where transformers has no such class, or the
    files do not hold it; `say` gets what a reader should know of the weights. `products`: their dtype, where it is not
    `dtype`."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(path)
    kind = class_of(config)
    name = kind.__name__
    found = account(kind, config, path)
    found.require_even()
    for line in found.lines():
        say(f"weights: {line}")
    stored = stored_dtype(config)
    build = partial(strategy.build, device=device, frozen=frozen, packed=packed, products=products)
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


def stored_dtype(config: Any) -> torch.dtype:
    """That config.json states, of the whole or of the text inside."""
    stated = (config.dtype, config.get_text_config().dtype)
    return next((dtype for dtype in stated if isinstance(dtype, torch.dtype)), torch.float32)


def as_stored(network: nn.Module, stored: torch.dtype) -> None:
    """Frozen weights of a model in 16 bits take 16 bits again: nothing is lost."""
    if stored is torch.bfloat16:
        for parameter in network.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(stored)
