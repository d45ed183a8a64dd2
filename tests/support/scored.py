"""Numbers of an evaluation, for tests that know they are there."""

from __future__ import annotations

from collections.abc import Iterable

from finetune_api.measurements import Evaluation, Measurement, Metric


def scored(
    measured: Evaluation | Iterable[Measurement] | None, name: str = "test", metric: Metric | None = None
) -> tuple[float, float]:
    """(base, tuned) of a data set, by its main metric where no other is asked for."""
    assert measured is not None
    data = measured.data if isinstance(measured, Evaluation) else measured
    found = next(each for each in data if each.name == name and metric in (None, each.metric))
    assert found.base is not None
    assert found.tuned is not None
    return found.base, found.tuned
