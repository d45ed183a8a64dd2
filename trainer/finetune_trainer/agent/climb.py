"""A ladder in pods: the agent of node 0 runs its rungs one after the other, as `finetune run` does.

It alone decides, and the other nodes follow (see lead and follow). All that outlives the pod is in the store (see
rungs), so the next attempt continues where this one ended: committed rungs do not run again, and a rung that was
interrupted resumes from its checkpoint. A rung that needs other pods (ladder.overrides) ends the attempt: the
termination message names it, and the operator starts the next attempt with its pods.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from finetune_api import names
from finetune_api.budget import Enough, next_attempt
from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.ladder import LadderStatus
from finetune_api.manifest import ManifestError
from finetune_api.plan import Publishes, RunPlan, Trial
from finetune_api.rung_pods import same_pods
from finetune_api.status import Restarts
from finetune_trainer.agent.follow import RunTurn
from finetune_trainer.agent.lead import Leading
from finetune_trainer.agent.rungs import LadderRun
from finetune_trainer.agent.turns import job_of
from finetune_trainer.agent.verdict import say
from finetune_trainer.ladder.derived import folder_uri
from finetune_trainer.planning.forecast import Forecast
from finetune_trainer.rundir import now
from finetune_trainer.store.folder import NotFound
from finetune_trainer.store.opening import open_folder

FORECAST = "forecast.json"
"""In the folder of the rungs."""

PATIENCE_SECONDS = 300.0
"""How long a decision waits for a store that is unavailable."""

TICK_SECONDS = 1.0


def climb(
    plan: RunPlan,
    *,
    foreseen: Forecast,
    run: RunTurn,
    tell: Callable[[str], None],
    show: Callable[[LadderStatus], None],
    stopped: Callable[[], bool] = lambda: False,
) -> TerminationMessage:
    """Returns the termination message of node 0. `run` runs the plan of a rung to its end; `show` gets each change of
    the ladder's status; `stopped`: whether the agent was asked to stop."""
    told: list[LadderStatus] = []

    def save(changed: FineTuneJob) -> None:
        if changed.status.ladder is not None:
            told.append(changed.status.ladder)
            show(changed.status.ladder)

    def run_one(
        made: FineTuneJob,
        *,
        rung: str | None = None,  # noqa: ARG001
        publishes: Publishes | None = None,
        trial: Trial | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> tuple[FineTuneJob, TerminationMessage]:
        with _ticking(tick):
            words = leading.run_turn(made, publishes=publishes, trial=trial)
        return made, words if publishes else _of_rung(words)

    leading = Leading.of(plan, run=run, stopped=stopped, patience=PATIENCE_SECONDS)
    ladder = LadderRun(
        job=job_of(plan), foresee=lambda: _kept(plan, foreseen), run_one=run_one, say=tell, save=save,
        final=lambda words: gives_up(plan, words), price=plan.price, patience=PATIENCE_SECONDS,
        elsewhere=lambda method: not same_pods(plan.spec, plan.pods_of, method), processes=plan.world_size,
        unavailable=plan.unavailable_rung,
    )  # fmt: skip
    words = leading.over(_to_the_end(ladder))
    return words.model_copy(update={"ladder": told[-1] if told else None})


def _to_the_end(ladder: LadderRun) -> TerminationMessage:
    try:
        return ladder.to_the_end()[1]
    except ManifestError as error:
        return say(Reason.InvalidSpec, "; ".join(map(str, error.problems)), time=now())
    except FinetuneError as error:
        return say(error.reason, error.message, hint=error.hint, time=now())


def _kept(plan: RunPlan, foreseen: Forecast) -> Forecast:
    """With ladder.overrides: the forecast of the first attempt. What fits depends on the pod, and attempts that plan
    different rungs could send the ladder back and forth between their pods."""
    if not plan.spec.ladder.overrides:
        return foreseen
    uri = folder_uri(plan.spec.output.uri, plan.job.uid)
    folder = open_folder(uri, prefix=names.PREFIX_OUTPUT, patience=PATIENCE_SECONDS)
    try:
        return Forecast.of_json(json.loads(folder.read(FORECAST)))
    except NotFound:
        folder.put(FORECAST, json.dumps(foreseen.to_json(), sort_keys=True).encode())
        return foreseen


def _of_rung(words: TerminationMessage) -> TerminationMessage:
    """Results of a rung are in the ladder: the job's are those of the run that publishes."""
    return words.model_copy(update={"evaluation": None, "artifact": None, "candidate": None})


def gives_up(plan: RunPlan, words: TerminationMessage) -> bool:
    """Whether the operator would not try again with a smaller micro-batch."""
    assert words.failure_class is not None
    verdict = next_attempt(
        words.failure_class, Restarts(), max_restarts=plan.spec.retry.max_restarts, plan=words.plan,
        micro_batch_tokens=plan.micro_batch_tokens,
    )  # fmt: skip
    return isinstance(verdict, Enough)


@contextmanager
def _ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Calls it in a thread, so that a store that is unavailable does not keep the agent from watching its ranks."""
    over = threading.Event()

    def loop() -> None:
        while not over.wait(TICK_SECONDS):
            with suppress(FinetuneError, OSError):
                tick()

    thread = threading.Thread(target=loop, name="costs", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
