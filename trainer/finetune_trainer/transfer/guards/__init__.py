"""Guards: bounds on what tuning may cost. Pure functions from facts to judgements; the trainer acts on them.

A guard runs only if its key is written below spec.guards. It is passed when the whole interval lies inside the bound,
violated when the whole interval lies outside, else inconclusive, with the rows that would decide it. To add one: a file
with a `Guard`, and its line below.

judgement     the interval against the bound, and how many rows would decide
gain          minGain: improvement of the main score
forgetting    forgetting.maxBitsPerByteIncrease: on the general text
slices        slices.maxRegression: the worst slice, adjusted for their number
calibration   calibration.maxIncrease: of the paired, debiased calibration error
collapse      collapse.maxDrop: relative drop of the variety of generated text; also what the run's check uses
generation    generation.minStops, generation.minJsonValid: shares of generated texts
"""

from collections.abc import Mapping

from .calibration import CALIBRATION
from .collapse import COLLAPSE
from .facts import Compared, Facts, Guard, Share
from .forgetting import FORGETTING
from .gain import GAIN
from .generation import JSON_VALID, STOPS
from .judgement import Judgement, Outcome
from .slices import SLICES

GUARDS: Mapping[str, Guard] = {
    guard.key: guard for guard in (GAIN, FORGETTING, SLICES, CALIBRATION, COLLAPSE, STOPS, JSON_VALID)
}
"""By key below spec.guards, as users write it."""

__all__ = ["GUARDS", "Compared", "Facts", "Guard", "Judgement", "Outcome", "Share", "judge_all"]


def judge_all(bounds: Mapping[str, float], facts: Facts) -> tuple[Judgement, ...]:
    """Of the guards that are written, in the registry's order; bounds by key, such as minGain. KeyError for a key that
    is not a guard's."""
    if unknown := set(bounds) - set(GUARDS):
        raise KeyError(f"not a guard: {', '.join(sorted(unknown))}")
    return tuple(guard.judge(facts, bounds[key]) for key, guard in GUARDS.items() if key in bounds)
