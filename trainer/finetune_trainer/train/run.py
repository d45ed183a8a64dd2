"""A run from its first measurement to its committed artifact.

    join the gang · load · resume · measure the base model · train · take the best weights · measure again · commit

Every part is skipped that an earlier attempt has done: the measurements of the base model lie in the checkpoint, and a
run whose artifact is committed says so and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from finetune_api import names
from finetune_api.failures import FinetuneError, LastWords, Reason
from finetune_api.plan import RunPlan
from finetune_api.status import Evaluation, Scores
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.methods.probe import ProbeAttached
from finetune_trainer.parallel.base import Place, Strategy
from finetune_trainer.parallel.join import join
from finetune_trainer.report.record import RECORD_FILE, AttemptRecord, decode
from finetune_trainer.rundir import RunDir, now
from finetune_trainer.store.artifact import describe, read_manifest
from finetune_trainer.store.folder import Folder, NotFound, open_folder
from finetune_trainer.transfer.evaluate import Stopped

from .finish import check_export, commit, computed_otherwise, evaluation_of, last_words, record_of
from .lean import leave_out_triton
from .probing import Probing, probed
from .setup import Setup, choose_device, prepare
from .state import State

_PATIENCE_SECONDS = 300.0
"""How long a checkpoint or a commit waits for a store that is away."""


def run(plan: RunPlan, run_dir: RunDir, environ: Mapping[str, str]) -> None:
    """Of one rank, all of it. result.json is rank 0's. FinetuneError, or whatever else went wrong."""
    place = Place.of(environ)
    device = choose_device(place.local_rank)
    leave_out_triton(device)
    output = open_folder(plan.spec.output.uri, prefix=names.PREFIX_OUTPUT, environ=environ, patience=_PATIENCE_SECONDS)
    gang = join(place, device)
    done = _committed(plan, output, gang)
    if done is None:
        setup = prepare(plan, gang=gang, device=device, output=output, run_dir=run_dir)
        check_export(setup)
        done = _work(setup, output)
        setup.trainer.reporter.phase("done")
    if place.first:
        run_dir.write_result(done)
    gang.barrier()  # rank 0 keeps the store of the gang: it leaves last
    gang.close()


def _work(setup: Setup, output: Folder) -> LastWords:
    if isinstance(setup.attached, ProbeAttached):
        return _probe(setup, setup.attached, output)
    trainer, reporter = setup.trainer, setup.trainer.reporter
    state = trainer.keeper.resume(trainer.weights)
    state = state.begun(_attempt(setup, state))
    reporter.resumed(state)
    if change := computed_otherwise(state.attempts[-2:]):
        reporter.say(change)
    if state.step:
        reporter.say(f"resuming after step {state.step} of {trainer.course.total_steps}")
    if state.base is None:
        reporter.phase("evaluating", "measuring the base model")
        state = state.update(base=_measure(setup, state, trainer.measure_base))
    base = state.base or {}
    reporter.evaluation = evaluation_of(base, {})
    reporter.phase("training")
    state = trainer.run(state)
    state = trainer.keeper.restore_best(state, trainer.weights)
    if state.passed_over:
        reporter.say(state.passed_over)
    with trainer.weights.editable():
        setup.attached.settle()
    reporter.phase("evaluating", "measuring the tuned model")
    return _finish(setup, state, evaluation_of(base, _measure(setup, state, trainer.measure)), output)


def _probe(setup: Setup, attached: ProbeAttached, output: Folder) -> LastWords:
    """No steps, and no checkpoints: a fit."""
    trainer, state = setup.trainer, State()
    state = state.begun(_attempt(setup, state))
    probing = Probing(trainer, attached, setup.data.labels)
    base, tuned, seconds = probed(probing, dict(_held_out(setup)), trainer.measure_base)
    assert attached.classifier is not None
    parameters = attached.classifier.weight.size + attached.classifier.bias.size
    setup = replace(setup, resolved=setup.resolved.model_copy(update={"trainable_parameters": parameters}))
    trainer.reporter.resolved = setup.resolved
    state = state.update(base=base, train_seconds=seconds, stopped_early=f"fitted on {len(trainer.train)} rows")
    return _finish(setup, state, evaluation_of(base, tuned), output)


def _finish(setup: Setup, state: State, evaluation: Evaluation, output: Folder) -> LastWords:
    """Describe and commit what is there now."""
    trainer, reporter, strategy = setup.trainer, setup.trainer.reporter, setup.trainer.strategy
    reporter.evaluation = evaluation
    reporter.phase("saving", f"committing the artifact to {output.uri}")
    record = record_of(setup, state.ended("finished"), evaluation)
    trainer.keeper.wait()
    words = None
    strategy.collect(trainer.model.network, everything=setup.attached.kind == "model")
    if strategy.place.first:
        words = last_words(record, commit(setup, record, output)).model_dump_json(by_alias=True, exclude_none=True)
        trainer.keeper.clear()
    done = LastWords.model_validate_json(strategy.broadcast_json(words))
    reporter.artifact = done.artifact
    return done


def _measure(setup: Setup, state: State, measure: Callable[[Corpus], Scores]) -> dict[str, Scores]:
    """Every held-out data set, by name. Interrupted when a rank was asked to stop."""
    try:
        return {name: measure(corpus) for name, corpus in _held_out(setup)}
    except Stopped:
        setup.trainer.keeper.wait()
        setup.trainer.strategy.barrier()  # none must end before all have saved
        raise FinetuneError(
            Reason.Interrupted, f"stopped on request while measuring, after step {state.step}"
        ) from None


def _held_out(setup: Setup) -> Iterator[tuple[str, Corpus]]:
    data = setup.data
    named = {"validation": data.validation, "test": data.test, "general": data.general}
    named |= {f"slice/{name}": corpus for name, corpus in data.slices.items()}
    yield from ((name, corpus) for name, corpus in named.items() if corpus is not None and len(corpus))


def _attempt(setup: Setup, state: State) -> AttemptRecord:
    plan = setup.plan
    return AttemptRecord(
        attempt=plan.attempt,
        first_step=state.step,
        last_step=state.step,
        nodes=plan.nodes,
        world_size=setup.trainer.strategy.place.world_size,
        start_time=now(),
        computed=setup.trainer.model.describe(),
    )


def _committed(plan: RunPlan, output: Folder, strategy: Strategy) -> LastWords | None:
    """The end of this run, if an earlier attempt has committed it and only could not say so any more."""
    found = _read_committed(plan, output) if strategy.place.first else None
    told = strategy.broadcast_json(found and found.model_dump_json(by_alias=True, exclude_none=True))
    return LastWords.model_validate_json(told) if told else None


def _read_committed(plan: RunPlan, output: Folder) -> LastWords | None:
    try:
        manifest = read_manifest(output)
        if manifest.run.uid != plan.job.uid:
            return None
        return last_words(decode(output.read(RECORD_FILE)), describe(output, manifest))
    except (NotFound, ValueError):
        return None
    except FinetuneError as error:
        if error.reason is Reason.DataUnreadable:
            return None
        raise
