"""Runs kubectl. A verb is a generator that yields what to run and receives the answer, so that one description of it
serves both a plain program and an event loop."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason

T = TypeVar("T")

RESOURCE = f"{names.PLURAL}.{names.GROUP}"


class Call(NamedTuple):
    """One run of kubectl."""

    arguments: tuple[str, ...]
    stdin: str | None = None
    seconds: float | None = None
    """How long it may take. Default: as long as it does."""


class Pause(NamedTuple):
    """Time to wait before the next call."""

    seconds: float


class Answer(NamedTuple):
    """What kubectl printed, and its exit status."""

    status: int = 0
    out: str = ""
    err: str = ""


Steps = Generator[Call | Pause, Answer, T]


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which cluster and namespace to use. Default: those of the kubeconfig's current context."""

    namespace: str | None = None
    context: str | None = None

    def command(self, *arguments: str) -> list[str]:
        command = ["kubectl", *(["--context", self.context] if self.context else [])]
        return [*command, *(["--namespace", self.namespace] if self.namespace else []), *arguments]

    def run(self, steps: Steps[T]) -> T:
        """Runs a verb in this thread."""
        answer = None
        try:
            while True:
                asked = next(steps) if answer is None else steps.send(answer)
                answer = self._answer(asked)
        except StopIteration as ended:
            result: T = ended.value
            return result

    async def run_async(self, steps: Steps[T]) -> T:
        """Runs a verb without blocking the event loop."""
        answer = None
        try:
            while True:
                asked = next(steps) if answer is None else steps.send(answer)
                answer = await self._answer_async(asked)
        except StopIteration as ended:
            result: T = ended.value
            return result

    def _answer(self, asked: Call | Pause) -> Answer:
        if isinstance(asked, Pause):
            time.sleep(asked.seconds)
            return Answer()
        try:
            done = subprocess.run(
                self.command(*asked.arguments), input=asked.stdin, capture_output=True, text=True, check=False,
                timeout=asked.seconds,
            )  # fmt: skip
        except FileNotFoundError:
            raise not_installed() from None
        except subprocess.TimeoutExpired:
            return _no_answer(asked)
        return Answer(done.returncode, done.stdout, done.stderr)

    async def _answer_async(self, asked: Call | Pause) -> Answer:
        import asyncio

        if isinstance(asked, Pause):
            await asyncio.sleep(asked.seconds)
            return Answer()
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command(*asked.arguments), stdin=pipe, stdout=pipe, stderr=pipe
            )
        except FileNotFoundError:
            raise not_installed() from None
        try:
            async with asyncio.timeout(asked.seconds):
                out, err = await process.communicate((asked.stdin or "").encode())
        except asyncio.CancelledError:
            process.kill()
            raise
        except TimeoutError:
            process.kill()
            await process.wait()
            return _no_answer(asked)
        return Answer(process.returncode or 0, out.decode(), err.decode())


def _no_answer(asked: Call) -> Answer:
    return Answer(1, "", f"the API server did not answer within {asked.seconds:g} seconds")


def not_installed() -> FinetuneError:
    return FinetuneError(Reason.ClusterUnavailable, "kubectl is not installed", "Install kubectl.")


def refused(answer: Answer) -> FinetuneError:
    """The error that kubectl's message means, whichever object it is about."""
    lines = answer.err.strip().splitlines()
    message = lines[-1] if lines else f"kubectl exited with status {answer.status}"
    if "the server doesn't have a resource type" in message or "no matches for kind" in message:
        hint = "Install the CustomResourceDefinition and the operator first."
        return FinetuneError(Reason.ClusterUnavailable, message, hint)
    if "denied request" in answer.err or "exceeded quota" in answer.err:
        hint = "The cluster's rules refuse this job. Change it, or ask the cluster's administrator."
        return FinetuneError(Reason.PolicyViolated, message, hint)
    if " is invalid" in answer.err or "(BadRequest)" in answer.err or "strict decoding error" in answer.err:
        return FinetuneError(Reason.InvalidSpec, " ".join(line.strip() for line in lines))
    return FinetuneError(Reason.ClusterUnavailable, message)
