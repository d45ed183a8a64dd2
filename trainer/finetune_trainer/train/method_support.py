"""Whether a method can train a model, before anything is held: the model's class is built without memory, from its
config.json alone, and the method is attached to it as a run would.

    python -m finetune_trainer.train.method_support --model FOLDER --method JSON [--device cpu]

A process of its own, for the preflight and `finetune plan`, which load no torch. It prints one line of JSON: {}, or of
what a run would refuse {"reason": …, "message": …, "hint": …}.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method
from finetune_trainer.methods import fault
from finetune_trainer.methods.base import Base, PacksWeights
from finetune_trainer.methods.registry import method_of
from finetune_trainer.vocabulary.rows import check_embeddings

from .process_exit import exit_process

OTHER_METHOD = "Choose another method.type, or another model."


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune_trainer.train.method_support")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--method", required=True, help="as JSON")
    parser.add_argument("--device", help="where it would run: what its kernels cannot do is refused too")
    parser.add_argument("--vocabulary", action="store_true", help="whether rows of the embeddings can train too")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    device = torch.device(options.device) if options.device else None
    method = Method.model_validate_json(options.method)
    print(json.dumps(answer(options.model, method, device, vocabulary=options.vocabulary)), flush=True)
    return 0


def answer(
    folder: Path, method: Method, device: torch.device | None = None, *, vocabulary: bool = False
) -> dict[str, Any]:
    """What the process prints."""
    try:
        check(folder, method, device, vocabulary=vocabulary)
    except FinetuneError as error:
        return {"reason": error.reason, "message": error.message, "hint": error.hint}
    return {}


def check(folder: Path, method: Method, device: torch.device | None = None, *, vocabulary: bool = False) -> None:
    """The FinetuneError that a run would end with. `device`: None where it is not here. `vocabulary`: rows of the
    embeddings train too."""
    if method.is_open:  # any number of layers is as good as another
        method = method.settled(1)
    with torch.device("meta"):
        network = network_of(folder, torch.float32)
        if vocabulary:
            check_embeddings(network)
        try:
            with fault.of_model(network, f"cannot be trained by method.type {method.type}", hint=OTHER_METHOD):
                _attach(network, method, device, Base("model", torch.float32, folder=folder))
        except RuntimeError:  # what a network without values cannot be asked: a run will see
            return


def _attach(network: nn.Module, method: Method, device: torch.device | None, base: Base) -> None:
    made = method_of(method)
    if isinstance(made, PacksWeights):
        with torch.device("cpu"):  # the kernel is tried on values
            made.packed_layers(network, device=device)
        made = made.on_paper()
    made.attach(network, seed=1, base=base)


def network_of(folder: Path, dtype: torch.dtype) -> nn.Module:
    """The class that config.json names, on the device that is set. ModelUnsupported where there is none, or where it
    cannot be made from this config."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        kind = getattr(transformers, (config.architectures or ["?"])[0])
        if getattr(config, "attn_logit_softcapping", None):  # as load_network
            config._attn_implementation = "eager"
        config.use_cache = False
        network: nn.Module = kind(config)
    except (ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        said = str(error).partition("\n")[0].partition(". ")[0]
        raise FinetuneError(
            Reason.ModelUnsupported,
            f"the model cannot be made from its config.json by transformers {transformers.__version__}: {said}",
            "Use a model whose class that release has, or a trainer image with a newer one.",
        ) from error
    return network.to(dtype)


if __name__ == "__main__":
    exit_process(main())
