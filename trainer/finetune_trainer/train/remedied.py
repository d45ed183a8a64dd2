"""The runs that guards.maxAttempts allows, as the one that ends now reports them."""

from __future__ import annotations

from finetune_api.calibration import ScaleSweep
from finetune_api.measurements import RemedyOutcome, RemedyRun
from finetune_api.plan import Remedy, RunPlan
from finetune_api.reasons import Reason
from finetune_trainer.transfer.release import Release

_OUTCOMES: dict[Reason | None, RemedyOutcome] = {
    None: "published", Reason.GuardViolated: "violated", Reason.GuardInconclusive: "inconclusive",
}  # fmt: skip


def runs_so_far(
    plan: RunPlan, release: Release, *, scale: ScaleSweep | None, seconds: float | None, processes: int
) -> tuple[RemedyRun, ...]:
    """Those before this one, and this one; none without guards.maxAttempts. `seconds`: spent in optimizer steps."""
    if plan.remedy is None and not plan.spec.guards.max_attempts:
        return ()
    remedy = plan.remedy or Remedy(name="asWritten")
    smaller = scale is not None and scale.chosen not in (None, 1)
    at = [f"at {scale.chosen:g} of its scale"] if scale is not None and smaller else []
    now = RemedyRun(
        name=remedy.name,
        settings=remedy.settings,
        outcome=_OUTCOMES[release.refused],
        reason="; ".join([*at, *(each.told() for each in release.results)])[:1024],
        cost=None if seconds is None else round(seconds * processes / 3600, 6),
    )
    return (*remedy.before, now)
