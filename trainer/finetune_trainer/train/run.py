"""A run from its first measurement to its committed artifact.

    join the gang · load · resume · measure the base model · train · take the best weights · measure again · commit

Every part is skipped that an earlier attempt has done: the measurements of the base model are in the checkpoint, and a
run whose artifact is committed says so and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from finetune_api import names
from finetune_api.failures import FinetuneError, Reason, TerminationMessage
from finetune_api.measurements import Scores
from finetune_api.plan import RunPlan, Trial
from finetune_api.status import Artifact
from finetune_api.text import redact
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.methods.base import FitsWithoutSteps
from finetune_trainer.parallel.base import Place, Strategy
from finetune_trainer.parallel.registry import join
from finetune_trainer.report.record import RECORD_FILE, AttemptRecord, RunRecord, decode
from finetune_trainer.rundir import RunDir, now
from finetune_trainer.store import candidate
from finetune_trainer.store.artifact import describe, read_manifest
from finetune_trainer.store.folder import Folder, NotFound
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.shared_leases import cache_outcome
from finetune_trainer.trackers.points import outcome_of
from finetune_trainer.transfer import kept
from finetune_trainer.transfer.by_source import with_sources
from finetune_trainer.transfer.diagnostics.inside import Layerwise, inside
from finetune_trainer.transfer.evaluate import Measured, Stopped
from finetune_trainer.transfer.evidence import SLICE, Evidence, evidence_of, subjects
from finetune_trainer.transfer.generated.evidence import Generated
from finetune_trainer.transfer.records import FEW_SHOT
from finetune_trainer.transfer.release import Release, judge

from .answering import Answering
from .artifact_commit import check_export, commit, computed_otherwise, record_of, refused_words, termination_message
from .continual import in_sequence, scores_of_original
from .device import choose_device
from .diagnosing import Diagnosing
from .divergence import divergence, rows_of_the_task
from .few_shot import few_shot_rows, with_few_shot
from .linear_probe import ProbeRun, probed
from .prior_gain import Prior
from .remedied import runs_so_far
from .reporter import Reporter
from .scale_sweep import Swept, swept
from .setup import Setup, prepare
from .state import State
from .tracking import ending_of, tracked
from .without_triton import disable_triton

T = TypeVar("T")

_BASE = "base-rows"
"""The note that has the base model's measurements by row."""

_PATIENCE_SECONDS = 300.0
"""How long a checkpoint or a commit waits for a store that is away."""


def run(plan: RunPlan, run_dir: RunDir, environ: Mapping[str, str]) -> None:
    """Runs one rank from start to end. result.json is rank 0's. FinetuneError, or whatever else went wrong."""
    place = Place.of(environ)
    device = choose_device(place.local_rank)
    disable_triton(device)
    output = open_folder(plan.spec.output.uri, prefix=names.PREFIX_OUTPUT, environ=environ, patience=_PATIENCE_SECONDS)
    gang = join(place, device)
    kept_back = Kept(plan, output, environ)
    done = _committed(plan, output, kept_back, gang)
    if done is not None and done.failure_class is not None:
        Reporter(run_dir, plan, place, evaluation=done.evaluation, candidate=done.candidate).phase("done")
    if done is None:
        setup = prepare(plan, gang=gang, device=device, output=output, run_dir=run_dir)
        check_export(setup)
        try:
            done = _work(setup, output, kept_back)
        except BaseException as error:
            setup.trainer.reporter.trackers.leave(ending_of(error))
            raise
        setup.trainer.reporter.phase("done")
    if place.first and done.failure_class is None:
        run_dir.write_result(done)
    gang.barrier()  # rank 0 keeps the store of the gang: it leaves last
    gang.close()
    if place.first and done.reason is not None and done.failure_class is not None:
        raise FinetuneError(done.reason, done.message, done.hint)  # of rank 0 alone: the others have no part in it


def _work(setup: Setup, output: Folder, kept_back: Kept) -> TerminationMessage:
    if isinstance(setup.attached, FitsWithoutSteps):
        return _probe(setup, setup.attached, output, kept_back)
    trainer, reporter, of_base = setup.trainer, setup.trainer.reporter, setup.of_base
    corpora, corpora_of_base = dict(_held_out(setup)), dict(_held_out(of_base))
    shown = few_shot_rows(of_base)
    corpora_of_base |= {} if shown is None else {FEW_SHOT: shown}
    answering = Answering.of(setup, corpora)
    untouched = _of_untouched(setup, corpora, answering)
    diagnosing, prior = Diagnosing.of(setup, corpora), Prior.of(of_base, corpora_of_base)
    _stoppable(setup, State(), diagnosing.measure_base)
    prior.measure()
    state = trainer.checkpointer.resume(trainer.weights)
    if untouched is not None:
        state = state.update(base={name: each.scores for name, each in untouched.items()})
    state = state.begun(_attempt(setup, state))
    reporter.trackers = tracked(setup, state, kept_back.environ)
    reporter.resumed(state)
    if change := computed_otherwise(state.attempts[-2:]):
        reporter.say(change)
    if state.step:
        reporter.say(f"resuming after step {state.step} of {trainer.course.total_steps}")
    if untouched is not None:
        base = untouched
    elif state.base is None:
        reporter.phase("evaluating", "measuring the base model")
        base = _measure(setup, state, of_base.trainer.measure_base, corpora_of_base)
        original = _stoppable(setup, state, lambda: scores_of_original(setup))
        _stoppable(setup, state, answering.measure_base)
        state = state.update(base={name: each.scores for name, each in base.items()} | original)
        if trainer.checkpointer.notes is not None:
            trainer.checkpointer.notes.note(_BASE, kept.to_json(base, corpora_of_base))
            answering.keep_base()
    else:
        told = trainer.checkpointer.notes.noted(_BASE) if trainer.checkpointer.notes is not None else None
        base = kept.of_json(told, corpora_of_base)
        answering.recall_base()
    before: dict[str, Measured | Scores] = {**(state.base or {}), **base}
    reporter.evaluation = evidence_of(
        subjects(corpora, before, {}, setup.labels_of_tests), setup.data.labels
    ).evaluation()
    reporter.phase("training")
    state = trainer.run(state)
    if setup.plan.trial is not None and setup.plan.trial.until is not None:
        return _paused(setup, state, setup.plan.trial)
    state = trainer.checkpointer.restore_best(state, trainer.weights)
    if state.passed_over:
        reporter.say(state.passed_over)
    with trainer.weights.editable():
        setup.attached.settle()
        if setup.rows is not None:
            setup.rows.settle()
    reporter.phase("evaluating", "measuring the tuned model")
    after = _measure(setup, state, trainer.measure, corpora)
    found = swept(
        setup,
        subjects(corpora, before, after, setup.labels_of_tests),
        lambda part: _measure(setup, state, trainer.measure, dict(part)),
    )
    if setup.spec.evaluation.kl_to_base and (task := rows_of_the_task(found.subjects)) is not None:
        reporter.phase("evaluating", "measuring KL to the base")
        mean, nats = _stoppable(setup, state, lambda: divergence(trainer, setup.attached, task))
        measured = tuple(replace(each, apart=nats) if each is task else each for each in found.subjects)
        found = replace(found, subjects=measured, divergence=mean)
    named = with_few_shot(with_sources(found.subjects, setup.data.origins), shown, base.get(FEW_SHOT))
    found = replace(found, subjects=named, prior=prior.judged())
    answers = _stoppable(setup, state, answering.judged)
    return _finish(setup, state, found, output, kept_back, answers, _stoppable(setup, state, diagnosing.compared))


def _paused(setup: Setup, state: State, trial: Trial) -> TerminationMessage:
    """Of a learning rate in a race: it resumes from its checkpoint, or never."""
    checkpointer, loss = setup.trainer.checkpointer, state.best.loss if state.best else None
    checkpointer.wait()
    if checkpointer.notes is not None:
        checkpointer.notes.note(trial.note, {"loss": loss})
    message = f"stopped after step {state.step} of {setup.trainer.course.total_steps} to compare learning rates"
    setup.trainer.reporter.say(message)
    setup.trainer.reporter.trackers.leave(ending_of(FinetuneError(Reason.Interrupted, message)))
    return TerminationMessage(reason=Reason.Succeeded, message=message, time=now(), step=state.step)


def _of_untouched(setup: Setup, corpora: Mapping[str, Corpus], answering: Answering) -> dict[str, Measured] | None:
    """For the run that publishes the best rung of a ladder, and is the first to measure all held-out rows: the base
    model, while its weights are what they were."""
    if setup.plan.publishes is None:
        return None
    setup.trainer.reporter.phase("evaluating", "measuring the base model on all held-out rows")
    _stoppable(setup, State(), answering.measure_base)
    return _measure(setup, State(), setup.trainer.measure_base, corpora)


def _probe(setup: Setup, attached: FitsWithoutSteps, output: Folder, kept_back: Kept) -> TerminationMessage:
    """No steps, and no checkpoints: a fit."""
    trainer, state = setup.trainer, State()
    state = state.begun(_attempt(setup, state))
    probing = ProbeRun(trainer, attached, setup.data.labels)
    corpora = dict(_held_out(setup))
    base, tuned, seconds = probed(probing, corpora, trainer.measure_base)
    shown = few_shot_rows(setup)
    prompted = None if shown is None else probing.measure_base(shown)
    assert attached.classifier is not None
    parameters = attached.classifier.weight.size + attached.classifier.bias.size
    setup = replace(setup, resolved=setup.resolved.model_copy(update={"trainable_parameters": parameters}))
    trainer.reporter.resolved = setup.resolved
    trainer.reporter.trackers = tracked(setup, state, kept_back.environ)
    before = {name: each.scores for name, each in base.items()}
    state = state.update(base=before, train_seconds=seconds, stopped_early=f"fitted on {len(trainer.train)} rows")
    measured = with_few_shot(with_sources(subjects(corpora, base, tuned), setup.data.origins), shown, prompted)
    return _finish(setup, state, Swept(measured), output, kept_back)


def _finish(
    setup: Setup,
    state: State,
    found: Swept,
    output: Folder,
    kept_back: Kept,
    generated: Generated | None = None,
    layerwise: Layerwise | None = None,
) -> TerminationMessage:
    """Describe and commit what is there now, or keep it back. Rank 0 alone knows the base model's rows, and what
    follows from them."""
    trainer, reporter, strategy = setup.trainer, setup.trainer.reporter, setup.trainer.strategy
    labels = setup.data.labels
    evidence = Evidence()
    if strategy.place.first:
        evidence = evidence_of(found.subjects, labels, found.sweep, setup.references)
        evidence = replace(evidence, divergence=found.divergence, prior=found.prior)
        evidence = in_sequence(evidence, setup, state, found.subjects)
    if generated is not None:
        evidence = replace(evidence, generation=generated.told, collapse=generated.collapse)
        reporter.say(generated.collapse.told())
    found_inside = inside(layerwise, evidence.evaluation(), rows=len(setup.data.train)) if layerwise else None
    release = judge(setup.spec.guards, evidence.evaluation()) if strategy.place.first else Release()
    processes = strategy.place.world_size
    runs = runs_so_far(setup.plan, release, scale=found.sweep, seconds=state.train_seconds, processes=processes)
    evidence = replace(evidence, remedies=runs)
    reporter.evaluation = evidence.evaluation(release.results)
    if evidence.continual is not None:
        reporter.say(evidence.continual.told())
    more = found_inside.sentences() if found_inside else ()
    for sentence in (*release.sentences(), *(each.told() for each in reporter.evaluation.negative_transfer), *more):
        reporter.say(sentence)
    refused = release.refused
    where = f"keeping the artifact as a candidate in {kept_back.uri}" if refused else f"committing to {output.uri}"
    reporter.phase("saving", where)
    ended = state.ended("held back by a guard" if refused else "finished")
    record = record_of(setup, ended, evidence, release, generated, found_inside)
    trainer.checkpointer.wait()
    words = None
    strategy.collect(trainer.model.network, everything=setup.attached.kind == "model")
    if strategy.place.first:
        artifact = commit(setup, record, found.subjects, kept_back.folder if refused else output, generated)
        said = refused_words(record, artifact, refused) if refused else termination_message(record, artifact)
        words = said.model_dump_json(by_alias=True, exclude_none=True)
        if setup.plan.rung is None or setup.fold is not None:  # the run that publishes a rung continues from them
            trainer.checkpointer.clear()
    done = TerminationMessage.model_validate_json(strategy.broadcast_json(words))
    reporter.artifact, reporter.candidate = done.artifact, done.candidate
    if (written := done.artifact or done.candidate) is not None:
        reporter.trackers.finish(outcome_of(record, artifact=redact(written.uri), digest=written.digest))
    return done


def _measure(
    setup: Setup, state: State, measure: Callable[[Corpus], Measured], corpora: Mapping[str, Corpus]
) -> dict[str, Measured]:
    """Each data set, by name. Interrupted when a rank was asked to stop."""
    return _stoppable(setup, state, lambda: {name: measure(corpus) for name, corpus in corpora.items()})


def _stoppable(setup: Setup, state: State, work: Callable[[], T]) -> T:
    """Interrupted when a rank was asked to stop."""
    try:
        return work()
    except Stopped:
        setup.trainer.checkpointer.wait()
        setup.trainer.strategy.barrier()  # none must end before all have saved
        after = f", after step {state.step}" if state.step else ""
        raise FinetuneError(Reason.Interrupted, f"stopped on request while measuring{after}") from None


def _held_out(setup: Setup) -> Iterator[tuple[str, Corpus]]:
    data = setup.data
    named = {"validation": data.validation, "test": data.test, "general": data.general}
    named |= {f"{SLICE}{name}": corpus for name, corpus in data.slices.items()}
    named |= {test.name: test.corpus for test in setup.tests}
    if setup.plan.rung is not None:
        named.pop("test")  # seen once, by the rung that is published
    if setup.fold is not None:
        named = {"validation": data.fold}
    yield from ((name, corpus) for name, corpus in named.items() if corpus is not None and len(corpus))


def _attempt(setup: Setup, state: State) -> AttemptRecord:
    plan, cached = setup.plan, cache_outcome(setup.trainer.reporter.run_dir.path)
    return AttemptRecord(
        attempt=plan.attempt,
        first_step=state.step,
        last_step=state.step,
        nodes=plan.nodes,
        world_size=setup.trainer.strategy.place.world_size,
        start_time=now(),
        computed=setup.trainer.model.describe(),
        model_cache=str(cached) if cached else "",
    )


def _committed(plan: RunPlan, output: Folder, kept_back: Kept, strategy: Strategy) -> TerminationMessage | None:
    """The end of this run, if an earlier attempt has come to it and only could not say so any more."""
    found = (_read_committed(plan, output) or kept_back.words()) if strategy.place.first else None
    told = strategy.broadcast_json(found and found.model_dump_json(by_alias=True, exclude_none=True))
    return TerminationMessage.model_validate_json(told) if told else None


def _read_committed(plan: RunPlan, output: Folder) -> TerminationMessage | None:
    found = _read(plan, output)
    return termination_message(*found) if found else None


def _read(plan: RunPlan, folder: Folder) -> tuple[RunRecord, Artifact] | None:
    """What this run has committed in a folder."""
    try:
        manifest = read_manifest(folder)
        if manifest.run.uid != plan.job.uid:
            return None
        return decode(folder.read(RECORD_FILE)), describe(folder, manifest)
    except (NotFound, ValueError):
        return None
    except FinetuneError as error:
        if error.reason is Reason.DataUnreadable:
            return None
        raise


@dataclass(frozen=True)
class Kept:
    """Where this run's artifact is if a guard keeps it back."""

    plan: RunPlan
    output: Folder
    environ: Mapping[str, str]

    @property
    def uri(self) -> str:
        return candidate.uri_of(self.output.uri, self.plan.job.uid)

    @property
    def folder(self) -> Folder:
        return open_folder(self.uri, prefix=names.PREFIX_OUTPUT, environ=self.environ, patience=_PATIENCE_SECONDS)

    def words(self) -> TerminationMessage | None:
        """Of an earlier attempt whose artifact was kept back. By the guards as they are now it may be published."""
        found = _read(self.plan, self.folder)
        if found is None:
            return None
        record, artifact = found
        release = judge(self.plan.spec.guards, record.evaluation)
        runs = runs_so_far(
            self.plan, release, scale=record.evaluation.scale, seconds=record.train_seconds,
            processes=record.plan.world_size or 1,
        )  # fmt: skip
        evaluation = record.evaluation.model_copy(update={"guards": release.results, "remedies": runs})
        record = record.model_copy(update={"evaluation": evaluation, "refused": release.refusal})
        if release.refused:
            return refused_words(record, artifact, release.refused)
        overwrite = self.plan.spec.output.overwrite
        return termination_message(record, candidate.publish(self.folder, self.output, overwrite=overwrite))
