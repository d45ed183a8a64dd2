"""Progress as text, the same for terminals, logs and notebooks."""

from __future__ import annotations

from .status import Progress


def progress_line(phase: str, progress: Progress) -> str:
    """`training  step 120/600 (20 %)  loss 1.2340  eval 1.3000  1,234 tok/s  3m10s left`."""
    parts = [phase]
    if progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps} ({percent(progress)} %)")
    elif progress.percent is not None:
        parts.append(f"{progress.percent} %")
    parts += measurements(progress)
    if progress.eta_seconds is not None and phase == "training":
        parts.append(f"{span(progress.eta_seconds)} left")
    return "  ".join(parts)


def measurements(progress: Progress) -> list[str]:
    """Losses and rate, as far as they are known."""
    found = []
    if progress.loss is not None:
        found.append(f"loss {progress.loss:.4f}")
    if progress.eval_loss is not None:
        found.append(f"eval {progress.eval_loss:.4f}")
    if progress.tokens_per_second:
        found.append(f"{progress.tokens_per_second:,.0f} tok/s")
    return found


def percent(progress: Progress) -> int:
    if progress.percent is not None:
        return progress.percent
    return 100 * progress.step // progress.total_steps if progress.total_steps else 0


def span(seconds: float) -> str:
    """3785 → `1h03m`."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
