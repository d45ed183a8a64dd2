"""regularization.replay.fraction, where the manifest leaves it out: decided by the shift before the first step.

A sample of the training rows and of the text to replay is measured by the untouched model, as `finetune analyze` does
it. The decision is rank 0's and is stored next to the checkpoints: later attempts continue with the same fraction.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_api.regularization import FRACTIONS, OWN_FRACTION
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.sample import drawn_part
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.transfer.diagnostics.shift import FEWEST, Shift, between
from finetune_trainer.transfer.evaluate import Layout, evaluate

from .model import LanguageModel
from .reporter import Reporter

_DOCUMENTS = 64
"""Of each text, that the model reads."""
_COUNTED = 4096
"""Of each text, whose tokens are counted."""
_TOKENS = 16_384
"""Of each text, about: fewer documents are read where they are long."""

_NOTE = "replay-fraction"


def settle_replay(
    spec: FineTuneJobSpec,
    model: LanguageModel,
    data: Datasets,
    *,
    store: CheckpointStore | None,
    reporter: Reporter,
) -> tuple[FineTuneJobSpec, str]:
    """(`spec` with a number in place of an automatic fraction, what it follows from in words). The network is the
    untouched model. Collective; `store` is rank 0's."""
    replay = spec.regularization.replay
    if replay is None or replay.fraction is not None or data.replay is None:
        return spec, ""
    if replay.source == "self":
        told = f"{100 * OWN_FRACTION:g} % of the rows of a step are replayed: they are the base model's own text"
        return _with_fraction(spec, OWN_FRACTION), told
    gang = model.strategy
    noted = gang.broadcast_json(store.noted(_NOTE) if store is not None else None)
    if noted is None:
        found = _measured(
            model, data.train, data.replay, pad_id=data.pad_id, seed=spec.training.seed, reporter=reporter
        )
        fraction = FRACTIONS["medium" if found is None else found.band]
        why = f"there are fewer than {FEWEST} documents to measure a shift on" if found is None else _told(found, spec)
        noted = gang.broadcast_json([fraction, f"{100 * fraction:g} % of the rows of a step are replayed, since {why}"])
        if store is not None:
            store.note(_NOTE, noted)
    fraction, told = noted
    return _with_fraction(spec, fraction), told


def _with_fraction(spec: FineTuneJobSpec, fraction: float) -> FineTuneJobSpec:
    replay = spec.regularization.replay
    assert replay is not None
    terms = spec.regularization.model_copy(update={"replay": replay.model_copy(update={"fraction": fraction})})
    return spec.model_copy(update={"regularization": terms})


def _measured(
    model: LanguageModel, train: Corpus, general: Corpus, *, pad_id: int, seed: int, reporter: Reporter
) -> Shift | None:
    """None of too few documents."""
    reporter.phase("loading", "measuring the shift of the training rows from the text to replay")
    task, other = (_sample(corpus, seed) for corpus in (train, general))
    if min(len(task), len(other)) < FEWEST:
        return None

    def going_on() -> bool:
        reporter.alive()
        return True

    pairs = []
    model.network.eval()
    for corpus in (task, other):
        longest = int(corpus.lengths.max())
        layout = Layout(max_tokens=max(1024, longest), sequence_length=longest, packing=False, pad_id=pad_id)
        found = evaluate(model, corpus, layout=layout, strategy=model.strategy, going_on=going_on)
        pairs.append((corpus, found.nats))
    counted = (drawn_part(train, _COUNTED, seed), drawn_part(general, _COUNTED, seed))
    return between(pairs[0], pairs[1], counted=counted)


def _told(found: Shift, spec: FineTuneJobSpec) -> str:
    other = "the earlier tasks' rows" if spec.regularization.replays_earlier else "general text"
    return (
        f"the shift is {found.band}: {found.ratio.value:.2f} times the bits per byte of {other}, "
        f"Jensen-Shannon excess {found.excess:.2f} bits, {found.longer:.2f} times the tokens per byte"
    )


def _sample(corpus: Corpus, seed: int) -> Corpus:
    """Without what classification rows could have said instead."""
    drawn = drawn_part(corpus, _DOCUMENTS, seed)
    tokens = int(drawn.lengths.sum())
    if tokens > _TOKENS:
        drawn = drawn_part(corpus, max(FEWEST, _DOCUMENTS * _TOKENS // tokens), seed)
    return replace(drawn, choices=None)
