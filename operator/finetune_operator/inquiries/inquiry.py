"""What an inquiry is, and the loop over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from finetune_operator.kube.resources import Key
from finetune_operator.state.observe import Observed


@dataclass(frozen=True)
class Answer:
    again_in: float
    """Seconds until it should be asked again."""
    live: bool = False
    """The API server was just asked for the present attempt's Job and pods (see live_read)."""


class Inquiry(Protocol):
    """Asks the API server for something that the watches do not bring, and notes the answer in the cache."""

    async def ask(self, seen: Observed, now: datetime) -> Answer | None:
        """None if there is nothing to ask about this job.

        The API server is asked only when it is time to. An event or a Workload that cannot be read is logged, and
        nothing is noted. Errors of a live read are raised."""
        ...

    def forget(self, key: Key) -> None:
        """The job is gone."""
        ...


async def inquire(
    inquiries: Sequence[Inquiry], seen: Observed, now: datetime, observe: Callable[[], Observed | None]
) -> tuple[Observed, Answer | None]:
    """Asks them in order, each with what the one before has learnt. The job as it is known then, and their answers as
    one: None if there was nothing to ask."""
    answers = []
    for inquiry in inquiries:
        if (answer := await inquiry.ask(seen, now)) is not None:
            answers.append(answer)
            seen = observe() or seen
    if not answers:
        return seen, None
    return seen, Answer(min(each.again_in for each in answers), any(each.live for each in answers))
