"""Exceptions of libraries as failures that have a class."""

from __future__ import annotations

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.train.main import explain, words

EXCEPTIONS = [
    (FinetuneError(Reason.DataEmpty, "x"), Reason.DataEmpty),
    (MemoryError(), Reason.OutOfMemory),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes"), Reason.OutOfMemory),
    (RuntimeError("CUDA error: out of memory"), Reason.OutOfMemory),
    (RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:4242"), Reason.PeerLost),
    (RuntimeError("[pair.cc:547] Read error [127.0.0.1]:4242: Connection reset by peer"), Reason.PeerLost),
    (RuntimeError("Timed out waiting 1800000ms for recv operation to complete"), Reason.PeerLost),
    (RuntimeError("NCCL communicator was aborted on rank 1"), Reason.PeerLost),
    (ValueError("Connection closed by peer"), Reason.UnexpectedError),
    (KeyError("lm_head"), Reason.UnexpectedError),
]


@pytest.mark.parametrize(("error", "reason"), EXCEPTIONS, ids=[f"{type(e).__name__}-{r}" for e, r in EXCEPTIONS])
def test_exceptions_have_a_reason(error: Exception, reason: Reason) -> None:
    assert explain(error).reason is reason


def test_out_of_memory_on_a_gpu() -> None:
    import torch

    assert explain(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")).reason is Reason.OutOfMemory


def test_an_unexpected_error_says_where() -> None:
    try:
        raise KeyError("lm_head")
    except KeyError as error:
        failure = explain(error)
    assert "KeyError: 'lm_head'" in failure.message
    assert "test_train_main.py" in failure.message


def test_termination_message_carry_class_and_exit_code() -> None:
    said = words(FinetuneError(Reason.LossNonFinite, "step 3"), rank=2, step=2)
    assert (said.failure_class, said.exit_code, said.rank, said.step) == ("NonFinite", 81, 2, 2)
