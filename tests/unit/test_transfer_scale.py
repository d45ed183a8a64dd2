"""The scale of an adapter: chosen on one half of the rows, judged on the other, and why rows that chose must not."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_api.guards import Guards
from finetune_api.measurements import Evaluation, Measurement
from finetune_trainer.data.corpus import Corpus, Marks, corpus_of
from finetune_trainer.transfer.evaluate import Measured, scores_of
from finetune_trainer.transfer.evidence import Subject
from finetune_trainer.transfer.release import judge
from finetune_trainer.transfer.scale import Tried, choose, curve, split, tried, with_tried

GUARDS = Guards.model_validate({"forgetting": {"maxBitsPerByteIncrease": 0.05}}, strict=False)


def texts(rows: int, *, groups: int | None = None, seed: int = 1) -> Corpus:
    """Rows of ten tokens and 20 bytes."""
    dice = np.random.default_rng(seed)
    digests = dice.integers(0, 1 << 63, rows, dtype=np.uint64)
    named = digests if groups is None else dice.permutation(digests[:groups].repeat(rows // groups))
    tokens, trained = [np.arange(10, dtype=np.int32)] * rows, [np.arange(10) > 0] * rows
    return corpus_of(tokens, trained, [20] * rows, marks=Marks(digests, named))


def measured(corpus: Corpus, nats: np.ndarray) -> Measured:
    return Measured(scores_of(corpus, nats, None), nats, corpus.targets, None)


def at(scale: float, *, gain: float | None, rise: float, half: float = 0.01) -> Tried:
    """A scale whose general text costs `rise` more bits per byte."""
    general = Measurement(
        name="general", kind="general", metric="bitsPerByte", difference=rise, low=rise - half, high=rise + half,
        rows=400, groups=400,
    )  # fmt: skip
    return Tried(scale, gain, rise, judge(GUARDS, Evaluation(data=(general,))))


def test_halves_are_about_equal_share_no_row_and_keep_groups_together() -> None:
    corpus = texts(400, groups=80)
    assert corpus.marks is not None
    parts = split(corpus)
    first, second = (set(half.rows.tolist()) for half in (parts.choosing, parts.judging))
    assert not first & second
    assert first | second == set(range(400))
    assert 120 < len(first) < 280
    groups = [set(half.corpus.marks.groups.tolist()) for half in (parts.choosing, parts.judging) if half.corpus.marks]
    assert not groups[0] & groups[1]


def test_the_half_a_row_is_in_depends_on_its_content_alone() -> None:
    corpus = texts(100)
    assert corpus.marks is not None
    turned = corpus.take(np.arange(100)[::-1])
    assert turned.marks is not None
    one = {int(corpus.marks.rows[row]) for row in split(corpus).choosing.rows}
    assert one == {int(turned.marks.rows[row]) for row in split(turned).choosing.rows}


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([at(1, gain=0.4, rise=0.2), at(0.75, gain=0.3, rise=0.1), at(0.5, gain=0.2, rise=0.02)], 0.5),
        ([at(0.5, gain=0.2, rise=0.02), at(0.25, gain=0.1, rise=0.01)], 0.5),
        ([at(0.75, gain=0.1, rise=0.02), at(0.5, gain=0.3, rise=0.02)], 0.5),  # overfitted: less is more
        ([at(0.75, gain=None, rise=0.02), at(0.5, gain=None, rise=0.01)], 0.75),  # no validation rows
        ([at(0.75, gain=0.3, rise=0.045), at(0.5, gain=0.2, rise=0.02)], 0.5),  # the first only seems to keep it
        ([at(0.75, gain=0.3, rise=0.045), at(0.5, gain=0.2, rise=0.042)], 0.75),  # both only seem to
        ([at(0.75, gain=0.3, rise=0.2), at(0.5, gain=0.2, rise=0.06)], None),
        ([], None),
    ],
)
def test_the_scale_that_gains_most_among_those_that_keep_the_guards(
    candidates: list[Tried], chosen: float | None
) -> None:
    assert choose(candidates) == chosen


def test_the_curve_begins_with_the_base_model() -> None:
    points = curve([at(1, gain=0.4, rise=0.2), at(0.5, gain=0.2, rise=0.02)])
    assert [(each.scale, each.gain, each.forgetting, each.verdict) for each in points] == [
        (0, 0, 0, None),
        (0.5, 0.2, 0.02, "passed"),
        (1, 0.4, 0.2, "violated"),
    ]


def test_what_a_half_measured_is_what_the_whole_measured_of_its_rows() -> None:
    corpus = texts(200)
    nats = np.linspace(1, 5, 200)
    parts = split(corpus)
    whole = Subject("general", "general", corpus, measured(corpus, nats), measured(corpus, nats + 0.5))
    assert isinstance(whole.base, Measured)
    half = parts.judging.subject(whole, parts.judging.of(measured(corpus, nats + 0.5)))
    assert isinstance(half.base, Measured)
    assert np.array_equal(half.base.nats, nats[parts.judging.rows])
    found = tried(0.5, [half], labels=(), guards=GUARDS)
    assert found.forgetting == pytest.approx(0.5 / 20 / np.log(2))
    kept = parts.judging.subject(with_tried(whole, parts, {0.5: parts.choosing.of(measured(corpus, nats))}), half.tuned)
    records = kept.data_set(()).models
    assert set(records) == {"base", "tuned", "scale/0", "scale/0.5"}
    assert not set(records["base"].row) & set(records["scale/0"].row)


def test_rows_that_chose_a_scale_would_pass_it_too_often() -> None:
    """All scales truly cost 0.05 bits per byte, the bound. Judged on the other half, at most 2.5 % of runs may pass
    (and about half of them do when the value alone decides); judged on the rows that chose, many more do."""
    dice, honest, naive, runs = np.random.default_rng(7), 0, 0, 300
    corpus = texts(80)
    parts = split(corpus)
    base = np.full(80, 10.0)
    whole = Subject("general", "general", corpus, measured(corpus, base), None)
    for _ in range(runs):
        found = {s: base + 20 * np.log(2) * (0.05 + dice.normal(0, 0.1, 80)) for s in (1.0, 0.75, 0.5, 0.25)}

        def on(scale: float, half: str, found: dict[float, np.ndarray] = found) -> Tried:
            part = getattr(parts, half)
            subject = part.subject(whole, part.of(measured(corpus, found[scale])))
            return tried(scale, [subject], labels=(), guards=GUARDS)

        choosing = {scale: on(scale, "choosing") for scale in found}
        chosen = choose(list(choosing.values()))
        if chosen is not None:
            honest += on(chosen, "judging").passed
            naive += choosing[chosen].passed
    assert honest / runs <= 0.025 + 2 * np.sqrt(0.025 * 0.975 / runs)
    assert naive / runs > 0.06
