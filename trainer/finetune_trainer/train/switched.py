"""output.switchTest: the new adapter in one network with earlier ones, after everything else has been done with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason
from finetune_api.strategy import SHARDED
from finetune_api.switching import SwitchTest
from finetune_trainer.methods.lora import LoraAttached
from finetune_trainer.store.fingerprints import fingerprint_of
from finetune_trainer.switching.artifacts import find_all, rank_bound
from finetune_trainer.switching.files import Adapter, ServedBase
from finetune_trainer.switching.pool import shapes_of
from finetune_trainer.switching.protocol import switch_test

from .setup import Setup


def check_unsharded(setup: Setup) -> None:
    """InvalidSpec where strategy auto came to one that splits the weights."""
    strategy = setup.trainer.strategy.name
    if setup.spec.output.switch_test and strategy in SHARDED:
        raise FinetuneError(
            Reason.InvalidSpec,
            f"output.switchTest needs the whole base model in one process, and strategy auto chose {strategy}, because "
            "the model does not fit otherwise",
            "Remove output.switchTest, and use finetune switch-test on the artifacts.",
        )


def switched(setup: Setup, exported: Path) -> SwitchTest | None:
    """Of rank 0 alone. `exported`: the folder of the new adapter. The network serves for nothing afterwards.

    Nothing that goes wrong here costs the run its artifact: it becomes the reason of the verdict `failed`."""
    earlier = setup.spec.output.switch_test
    if not earlier:
        return None
    attached = cast(LoraAttached, setup.attached)
    cache = Path(os.environ.get(names.ENV_CACHE) or names.CACHE_DIR)
    setup.trainer.reporter.phase("saving", f"switching between {len(earlier) + 1} adapters")
    network: Any = attached.adapter.unload().eval()
    network.requires_grad_(False)
    try:
        weights = fingerprint_of(setup.local.path)
        base = ServedBase(
            name=setup.local.loadable, revision=setup.local.revision, weights=weights, shapes=shapes_of(network)
        )
        new = Adapter(name=f"{setup.plan.job.name} (new)", folder=exported, base_weights=weights)
        adapters = [new, *(found.adapter for found in find_all(earlier, cache=cache))]
        bound = rank_bound(adapters)
        found = switch_test(network, base, adapters, largest_rank=bound, alive=setup.trainer.reporter.alive)
    except Exception as error:  # such as a full disk, or adapters that do not fit next to the model
        reason = error.message if isinstance(error, FinetuneError) else f"{type(error).__name__}: {error}"
        found = SwitchTest(verdict="failed", reason=reason[:600], adapters=len(earlier) + 1, switches=0)
    setup.trainer.reporter.say(f"switch test {found.told()}")
    return found
