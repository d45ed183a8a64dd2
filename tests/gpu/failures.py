"""What goes wrong on purpose: memory that runs out, and a loss that is not finite."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from tests.gpu.arithmetic import apart
from tests.gpu.judge import ALL_STEPS
from tests.gpu.kit import Kit
from tests.gpu.notes import Check, at_most, holds
from tests.gpu.workshop import Desk, documents, small_model

_DOCUMENT, _STEPS, _BAD_STEP = 32, 2, 2


def failures(kit: Kit) -> None:
    _memory(kit)
    _not_finite(kit)


def _memory(kit: Kit) -> None:
    """N tokens at once do not fit, which is OutOfMemory; the attempt that follows has N/2 and the same losses."""
    from finetune_api.budget import Again, next_attempt
    from finetune_api.failures import CLASSES
    from finetune_api.status import FailureClass, Restarts
    from finetune_trainer.train.main import explain

    tokens = 128 if kit.rehearsal else 65536  # there activations have to be more than all else
    desk = _wide_desk(kit, tokens)
    options = {"microBatchTokens": tokens, "batchSize": tokens // _DOCUMENT, "kernels": "reference"}
    plenty = _peak_of(kit, desk, "plenty", options)
    half = _peak_of(kit, desk, "half", {**options, "microBatchTokens": tokens // 2})
    kit.notes.fact("peaks", [plenty[0], half[0]])
    with _less_memory(kit, limit=(plenty[0] + half[0]) // 2, tokens=tokens):
        try:
            desk.run("short", training=options)
        except Exception as error:
            failure = explain(error)
        else:
            kit.notes.check(Check("memory runs out", "failed", words="the run went through"))
            return
        known = failure.failure_class is FailureClass.OutOfMemory
        kit.notes.check(
            holds("memory that ran out is OutOfMemory", known, f"{failure.reason}: {failure.message}"[:200])
        )
        kit.notes.check(holds("which is tried again", CLASSES[failure.failure_class].retried))
        again = next_attempt(failure.failure_class, Restarts(), max_restarts=3, plan=None, micro_batch_tokens=tokens)
        smaller = again.micro_batch_tokens if isinstance(again, Again) else None
        kit.notes.check(holds("with half of the tokens", smaller == tokens // 2, str(smaller)))
        _let_go(kit)
        second = desk.run("short", plan={"attempt": 2, "micro_batch_tokens": smaller}, training=options)
    name = "the second attempt learns what one with room learns"
    kit.notes.check(at_most(name, apart(second.losses, plenty[1]), ALL_STEPS))


def _wide_desk(kit: Kit, tokens: int) -> Desk:
    folder = kit.folder("wide")
    small_model(folder / "model", kit.sizes.small)
    documents(folder, count=_STEPS * tokens // _DOCUMENT, length=_DOCUMENT)
    (folder / "validation.jsonl").rename(folder / "heldout.jsonl")
    return Desk(folder, _STEPS)


def _peak_of(kit: Kit, desk: Desk, name: str, options: dict[str, Any]) -> tuple[int, list[float]]:
    """(bytes, losses)"""
    import torch

    _let_go(kit)
    if kit.on_gpu:
        torch.cuda.reset_peak_memory_stats(kit.device)
    losses = desk.run(name, training=options).losses
    return (torch.cuda.max_memory_reserved(kit.device) if kit.on_gpu else 0), losses


def _let_go(kit: Kit) -> None:
    import torch

    gc.collect()
    if kit.on_gpu:
        torch.cuda.empty_cache()


@contextmanager
def _less_memory(kit: Kit, *, limit: int, tokens: int) -> Iterator[None]:
    """Of the card, for this process; in the rehearsal a model that refuses more than half of the tokens."""
    import torch

    from finetune_trainer.train.model import LanguageModel

    _let_go(kit)
    if kit.on_gpu:
        torch.cuda.set_per_process_memory_fraction(
            limit / torch.cuda.get_device_properties(kit.device).total_memory, kit.device
        )
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, kit.device)
        return
    plain = LanguageModel.nats

    def nats(model: LanguageModel, batch: Any) -> Any:
        if batch.tokens.size > tokens // 2:
            raise torch.OutOfMemoryError("a double of: CUDA out of memory")
        return plain(model, batch)

    with patch.object(LanguageModel, "nats", nats):
        yield


def _not_finite(kit: Kit) -> None:
    """The step is named, and its rows."""
    from finetune_api.failures import FinetuneError, Reason
    from finetune_trainer.train.loop import Trainer
    from finetune_trainer.train.model import LanguageModel

    desk = Desk.of(kit.folder("desk"), kit.sizes, steps=4)
    plain_nats, plain_seed, now = LanguageModel.nats, Trainer._seed, [0]

    def seed(trainer: Trainer, step: int, index: int) -> None:
        now[0] = step + 1
        plain_seed(trainer, step, index)

    def nats(model: LanguageModel, batch: Any) -> Any:
        made = plain_nats(model, batch)
        return made * float("nan") if now[0] == _BAD_STEP else made

    with ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "_seed", seed))
        stack.enter_context(patch.object(LanguageModel, "nats", nats))
        try:
            desk.run("bad")
        except FinetuneError as error:
            named = error.reason is Reason.LossNonFinite and f"step {_BAD_STEP} " in error.message
            kit.notes.check(holds("a loss that is not finite is named by its step", named, error.message[:200]))
            return
    kit.notes.check(Check("a loss that is not finite ends the run", "failed", words="the run went through"))
