"""Rows of the embeddings that train while all others stay as they are.

The parameters are copies of the rows in fp32, so optimizer, gradients and checkpoints have nothing of the whole matrix:

    embedding    what it returns for these tokens comes from the parameter, which so gets its gradient
    head         its matrix gets the parameter's values before each pass, and so does a tied one; the gradient of the
                 rows comes from the loss (`train.loss`), or from the logits where the head is more than one matrix

With weights in shards the matrices are whole while the network runs, and the parameters always are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.parallel.weight_names import DTYPES
from finetune_trainer.store.tensors import StoredTensor

from . import derived
from .derived import Floats


@dataclass(frozen=True)
class VocabularyRows:
    ids: Tensor
    """(rows,)"""
    places: Tensor
    """(vocabulary,): the row of a token, or the number of rows for a token whose row does not train."""
    given: nn.Parameter
    """(rows, dim): of the embeddings."""
    wanted: nn.Parameter
    """(rows, dim): of the head; the same parameter where they are tied."""
    stored: Mapping[str, StoredTensor]
    """In the model's files: the embeddings and, unless they are tied, the head."""
    names: Mapping[str, str]
    """`given` or `wanted`, by the tensor's name in the files."""

    @classmethod
    def of(cls, network: nn.Module, folder: Path, ids: tuple[int, ...], *, device: torch.device) -> VocabularyRows:
        """As they are in the files of the model in `folder`, which `network` was loaded from. ModelUnsupported where
        its embeddings are computed in another way."""
        check_embeddings(network)
        stored = derived.by_token(folder)
        matrices = {name: tensor for name, tensor in stored.items() if len(tensor.shape) == 2}
        tied = bool(cast(Any, network).config.tie_word_embeddings)
        names = {name: "wanted" if is_head(name) and not tied else "given" for name in matrices}
        made: dict[str, nn.Parameter] = {}
        for name, role in names.items():
            values = torch.from_numpy(derived.read_rows(matrices[name], ids)).to(device)
            made.setdefault(role, nn.Parameter(values))
        places = torch.full((next(iter(matrices.values())).shape[0],), len(ids), dtype=torch.int64)
        places[list(ids)] = torch.arange(len(ids))
        return cls(
            ids=torch.tensor(ids, device=device),
            places=places.to(device),
            given=made["given"],
            wanted=made.get("wanted", made["given"]),
            stored=matrices,
            names=names,
        )

    @property
    def tied(self) -> bool:
        return self.given is self.wanted

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """By name, as `Attached.trainable`."""
        named = {"vocabulary.embeddings": self.given}
        return named if self.tied else {**named, "vocabulary.head": self.wanted}

    def install(self, network: nn.Module) -> None:
        """From now on the network computes with these rows."""
        hugging = cast(Any, network)
        embedding, head = hugging.get_input_embeddings(), hugging.get_output_embeddings()

        def before(*_: Any) -> None:
            self._put(embedding.weight, self.given)
            if not self.tied:
                self._put(head.weight, self.wanted)

        embedding.register_forward_pre_hook(before)
        embedding.register_forward_hook(lambda module, given, out: self._embedded(module, given[0], out))
        head.register_forward_hook(lambda _, given, out: self._scored(given[0], out))

    def settle(self) -> None:
        """The values that `written` would write, so that what is measured is what is shipped."""
        with torch.no_grad():
            for name, role in self.names.items():
                parameter = cast(nn.Parameter, getattr(self, role))
                parameter.copy_(parameter.to(DTYPES[self.stored[name].dtype]))

    def written(self) -> dict[str, dict[int, Floats]]:
        """The rows by the tensor's name in the files, then by the token, as `derived.overwrite` takes them."""
        found = {}
        for name, role in self.names.items():
            values = cast(nn.Parameter, getattr(self, role)).detach().float().cpu().numpy()
            found[name] = dict(zip(self.ids.tolist(), values, strict=True))
        return found

    @torch.no_grad()
    def _put(self, weight: Tensor, rows: Tensor) -> None:
        """Into a matrix that does not train itself; autograd need not know."""
        weight.data.index_copy_(0, self.ids, rows.to(weight.dtype))

    def _embedded(self, embedding: Any, tokens: Tensor, out: Tensor) -> Tensor:
        """(…, dim): with the rows of the tokens that have one here."""
        return with_rows(embedding, out, self.places[tokens], self.given)

    def _scored(self, hidden: Tensor, out: Tensor) -> Tensor:
        """(…, vocabulary): the same logits, with a gradient of the rows."""
        if out.shape[-1] != len(self.places):  # a smaller head, in its place to be looked at
            return out
        logits = F.linear(hidden, self.wanted.to(hidden.dtype))
        return out.index_copy(-1, self.ids, logits)


def with_rows(embedding: nn.Module, out: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """What an embedding returned, (…, dim), with other rows: places (…,) says which, out of their range means none."""
    mine = (places >= 0) & (places < len(rows))
    found = F.embedding(places.clamp(0, len(rows) - 1), rows.to(out.dtype))
    if (scale := getattr(embedding, "embed_scale", None)) is not None:
        found = found * scale.to(out.dtype)
    return torch.where(mine[..., None], found, out)


def check_embeddings(network: nn.Module) -> None:
    """ModelUnsupported where rows of the embeddings cannot train alone. The network may be on the meta device."""
    hugging = cast(Any, network)
    embedding, head = hugging.get_input_embeddings(), hugging.get_output_embeddings()
    scaled = isinstance(getattr(embedding, "embed_scale", None), Tensor)  # Gemma 3
    if (type(embedding).forward is not nn.Embedding.forward and not scaled) or type(head) is not nn.Linear:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"vocabulary trains rows of nn.Embedding, and {type(network).__name__} has {type(embedding).__name__} "
            f"with {type(head).__name__}",
            "Remove vocabulary, or use another model.",
        )


def is_head(name: str) -> bool:
    """Of a tensor of `derived.by_token`."""
    return "lm_head" in name or "embed_out" in name
