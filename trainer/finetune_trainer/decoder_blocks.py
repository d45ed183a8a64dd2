"""The language model of a network and its decoder blocks: found by structure, named by no architecture.

Many models are published as a class with towers for pictures or sound next to the language model. Text trains the
language model alone; towers and what projects their outputs stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from finetune_api.failures import FinetuneError, Reason


@dataclass(frozen=True)
class Layers:
    """The decoder blocks of a network: where they live and how many there are."""

    prefix: str
    count: int

    def index(self, name: str) -> int:
        """The block that a module or parameter belongs to; -1 outside of the blocks."""
        if not name.startswith(self.prefix + "."):
            return -1
        return int(name[len(self.prefix) + 1 :].split(".", 1)[0])


def has_towers(network: nn.Module) -> bool:
    """Whether the network is more than a language model: its config has one for the text inside."""
    config = getattr(network, "config", None)
    return config is not None and config.get_text_config() is not config


def body_of(network: nn.Module) -> nn.Module:
    """What turns tokens into hidden states: the network without its head, and without towers. ModelUnsupported where a
    class with towers does not say which of its parts that is.

    Where `base_model` is the network itself (its prefix names another class's child, as in Llama 4's text model), the
    child that holds the input embeddings.
    """
    hugging = cast(Any, network)
    if has_towers(network):
        decoder = hugging.get_decoder()
        if decoder is network:
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"{type(network).__name__} does not say which of its parts is the language model",
                "Use a model of the same family that is for text alone (…ForCausalLM).",
            )
        return decoder if decoder.get_output_embeddings() is None else body_of(decoder)
    body: nn.Module = hugging.base_model
    if body is not network:
        return body
    embeddings = hugging.get_input_embeddings()
    inside = (child for child in network.children() if any(module is embeddings for module in child.modules()))
    return next(inside, network)


def language_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the language model and of the head, by their names in the network; of a network without
    towers all. A tied weight appears once."""
    named = dict(network.named_parameters())
    if not has_towers(network):
        return named
    head = cast(Any, network).get_output_embeddings()
    inside = {id(p) for module in (body_of(network), head) for p in module.parameters()}
    return {name: parameter for name, parameter in named.items() if id(parameter) in inside}


@contextmanager
def text_only(network: nn.Module) -> Iterator[None]:
    """Inside, a network with towers takes tokens as in evaluation: training, some ask for what distinguishes text from
    pictures. Its layers are not touched."""
    outer = cast(nn.Module, cast(Any, network).base_model)
    training = outer.training
    if has_towers(network):
        outer.training = False
    try:
        yield
    finally:
        outer.training = training


def decoder_layers(network: nn.Module) -> Layers:
    """The list of as many blocks as the config counts, whatever their classes (hybrids alternate between two); where it
    counts none, the longest list of blocks of one class. ModelUnsupported where there is none."""
    inside = body_of(network) if has_towers(network) else network
    (prefix,) = (name for name, module in network.named_modules() if module is inside)
    lists = [
        Layers(f"{prefix}.{name}" if prefix else name, len(module))
        for name, module in inside.named_modules()
        if isinstance(module, nn.ModuleList) and len(module)
    ]
    config = getattr(network, "config", None)
    counted = getattr(config and config.get_text_config(), "num_hidden_layers", None)
    exact = [layers for layers in lists if layers.count == counted]
    if exact:
        return min(exact, key=lambda layers: layers.prefix.count("."))
    alike = [layers for layers in lists if _of_one_class(network, layers)]
    if not alike:
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"{type(network).__name__} has no list of decoder blocks that could be separated from its other parts",
            "Choose another model: methods need to know where a model's blocks begin and end.",
        )
    return max(alike, key=lambda layers: layers.count)


def decoder_of(network: nn.Module) -> nn.Module:
    """What holds the list of decoder blocks and runs them: `body_of` or a part of it, and the one of the two that a
    network which is called as a whole runs (OPT's passes its body by)."""
    return network.get_submodule(decoder_layers(network).prefix.rpartition(".")[0])


def _of_one_class(network: nn.Module, layers: Layers) -> bool:
    return len({type(block) for block in cast(nn.ModuleList, network.get_submodule(layers.prefix))}) == 1


def lowest_layer(trainable: Mapping[str, nn.Parameter], layers: Layers, *, embeddings: nn.Module) -> int:
    """The lowest block that trains; -1 when the input embeddings do, the number of blocks when only the head does."""
    at_the_input = {id(parameter) for parameter in embeddings.parameters()}
    if any(id(parameter) in at_the_input for parameter in trainable.values()):
        return -1
    inside = [index for name in trainable if (index := layers.index(name)) >= 0]
    return min(inside, default=layers.count)
