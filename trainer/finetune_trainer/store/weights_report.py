"""What a model's files contain compared with what its class needs: the verdict and messages of `parallel.weight_names`.

transformers would continue with random numbers for whatever is missing, so a model is loaded only if every weight has
a tensor of its shape, and every tensor a weight. Exceptions are those that the class declares: weights tied to others,
names that its conversions or its prefix map, and tensors that it computes itself or leaves out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from finetune_api.failures import FinetuneError, Reason

_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel or DataParallel",
    "base_model.model.": "PEFT",
    "language_model.": "a class with a vision tower",
    "_fsdp_wrapped_module.": "FSDP",
    "_forward_module.": "Lightning or DeepSpeed",
}
"""Prefixes that tools leave before the names, and whose."""

_SHOWN = 3
"""Names that a message lists."""


@dataclass(frozen=True)
class WeightsReport:
    """The files of a model against the weights of its class; what does not come out even is in four of the fields."""

    kind: str
    """The class, `LlamaForCausalLM`."""
    missing: tuple[str, ...] = ()
    """Weights (and saved buffers) that no tensor fills."""
    unexpected: tuple[str, ...] = ()
    """Tensors that fill nothing."""
    mismatched: tuple[str, ...] = ()
    """Each as `name (8, 4), config.json means (6, 4)`."""
    untied: tuple[str, ...] = ()
    """Pairs that config.json ties, and whose tensors differ."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Weight or saved buffer → the one tensor that it is read from, unchanged."""
    converted: tuple[str, ...] = ()
    """Weights that are made of several tensors, or of a part of one (experts, for instance)."""
    tied: tuple[str, ...] = ()
    """Weights that are another one and have no tensor of their own."""
    left_out: tuple[str, ...] = ()
    """Tensors that the class declares to leave out: what it computes itself, heads for other tasks."""

    def require_even(self) -> None:
        """ModelUnsupported names what does not fit."""
        wrong = [
            _listed("weight(s) are missing", self.missing),
            _listed("tensor(s) fit nothing", self.unexpected),
            _listed("tensor(s) have another shape", self.mismatched),
            _listed("pair(s) of weights are tied in config.json and differ in the files", self.untied),
        ]
        if text := "; ".join(part for part in wrong if part):
            message = f"the model's files do not hold a {self.kind}: {text}"
            raise FinetuneError(Reason.ModelUnsupported, message, self._hint())

    def _hint(self) -> str:
        for prefix, owner in _WRAPPERS.items():
            if self.unexpected and all(name.startswith(prefix) for name in self.unexpected) and self.missing:
                return (
                    f"The names begin with {prefix} of {owner}: save the model from inside the wrapper, "
                    "with its own save_pretrained, or rename the tensors."
                )
        if self.missing and all("lm_head" in name or "embed_out" in name for name in self.missing):
            return "Set tie_word_embeddings: true in config.json if the embeddings are the head, or add its tensor."
        if self.mismatched and not self.missing and not self.unexpected:
            return "Make config.json say what the files hold (vocab_size, for instance), or save the model again."
        if self.untied:
            return "Set tie_word_embeddings: false in config.json, or save the model again."
        return f"Save the model with {self.kind}.save_pretrained, or download it again."

    def lines(self) -> Iterator[str]:
        """What a reader should know of a model that does come out even."""
        if self.tied:
            yield f"{len(self.tied)} weight(s) are tied to others: {_some(self.tied)}"
        renamed = [(tensor, name) for name, tensor in sorted(self.sources.items()) if tensor != name]
        if renamed:
            tensor, name = renamed[0]
            yield f"{len(renamed)} tensor(s) are known by another name: {tensor} is {name}"
        if self.converted:
            yield f"{len(self.converted)} weight(s) are put together from other tensors: {_some(self.converted)}"
        if self.left_out:
            why = "which the model's class computes or declares unused"
            yield f"{len(self.left_out)} tensor(s) are left out, {why}: {_some(self.left_out)}"


def mismatched(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Tensors of another shape than is wanted, in words."""
    return tuple(
        f"{name} {tuple(found[name])}, config.json means {tuple(shape)}"
        for name, shape in sorted(wanted.items())
        if name in found and tuple(found[name]) != tuple(shape)
    )


def _listed(what: str, names: tuple[str, ...]) -> str:
    return f"{len(names)} {what}: {_some(names)}" if names else ""


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
