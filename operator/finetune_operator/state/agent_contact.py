"""How long node 0 of a job has not answered: counted in requests that failed, not in time.

A clock says nothing about an agent that was not asked. To an operator that stood by, that was frozen, or whose own
network was cut, every agent would seem silent. So the silence grows only when a request fails while another job's agent
answered, by the pause before that request, and it is forgotten with the term of the operator in which it was counted.

Silence alone ends no attempt (see policies.deadline): the route to one pod can be closed while the pod works.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime


@dataclass(frozen=True)
class AgentContact:
    """Node 0 of an attempt that has answered at least once in this term."""

    job_uid: str
    attempt: int
    at: datetime
    """When it last answered."""
    silence: float = 0.0
    """Seconds: the pauses before the failed requests in a row since then, each while another job answered."""
    unsure: float = 0.0
    """The pause before the last failed request. It counts once another job has answered before the next one fails."""
    answers: int = 0
    """Answers of all jobs when it was last asked."""

    def missed(self, *, pause: float, answers: int) -> AgentContact:
        """A request after `pause` seconds failed; all jobs together have given so many answers by now."""
        counts = answers > self.answers and self.unsure > 0
        silence = self.silence + (self.unsure if counts else 0.0)
        return replace(self, silence=silence, unsure=pause, answers=answers)

    def is_of(self, job_uid: str, attempt: int) -> bool:
        return (self.job_uid, self.attempt) == (job_uid, attempt)
