"""The page's parts about how sure a model is, and how much of an adapter was published: calibration, and scales."""

from __future__ import annotations

from html import escape

from finetune_api.calibration import CalibrationScores

from .plots import Point
from .record import RunRecord
from .xy import Line, chart


def calibrated(report: RunRecord) -> str:
    """Figures of base and tuned model, and the reliability diagram; empty where rows are not classifications."""
    found = report.evaluation.calibration
    if found is None:
        return ""
    roles = {"base": "dots", "tuned": "line"}
    lines = [
        Line(
            name=model,
            role=role,
            points=tuple(Point(each.confidence, each.accuracy) for each in report.reliability if each.model == model),
        )
        for model, role in roles.items()
    ]
    drawn = chart(
        [line for line in lines if line.points],
        across="mean confidence",
        up="accuracy",
        show=lambda value: f"{value * 100:.0f} %",
        diagonal=True,
    )
    legend = "".join(f'<span><i class="key {role}"></i>{model}</span>' for model, role in roles.items())
    rows = "".join(_row(name, each) for name, each in (("base", found.base), ("tuned", found.tuned)))
    heads = ("", "calibration error", "floor", "Brier", "NLL")
    table = (
        f'<div class="scroll"><table><thead><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    change = ""
    if found.difference is not None:
        between = "" if found.low is None else f" [{found.low:+.4f}, {found.high:+.4f}]"
        change = (
            f"<p>Without what noise adds, the error changes by {found.difference:+.4f}{between}: {found.verdict}.</p>"
        )
    temperature = (
        f" A temperature of {found.temperature:.3g} would fit the validation rows best; nothing applies it."
        if found.temperature is not None
        else ""
    )
    note = (
        f"Rows of {found.name}, {found.rows:,} in all, at temperature 1. On the diagonal, accuracy equals "
        "confidence; below it, the model is overconfident. A perfectly calibrated model shows an error near the floor."
        f"{temperature}"
    )
    plot = f'<p class="legend">{legend}</p>{drawn}' if drawn else ""
    return (
        f'<div class="small"><div class="panel">{plot}</div><div class="panel">{table}{change.replace("-", "−")}'
        f'<p class="note">{note}</p></div></div>'
    )


def _row(name: str, each: CalibrationScores) -> str:
    cells = (each.error, each.floor, each.brier, each.nll)
    return f'<tr><td class="name">{name}</td>{"".join(f"<td>{value:.4f}</td>" for value in cells)}</tr>'


def scaled(report: RunRecord) -> str:
    """The curve of scales; empty where none was measured."""
    sweep = report.evaluation.scale
    if sweep is None or not sweep.curve:
        return ""
    drawn = []
    for name, up, values in (
        ("gain", "gain on validation", [(p.scale, p.gain) for p in sweep.curve]),
        ("forgetting", "increase of bits per byte", [(p.scale, p.forgetting) for p in sweep.curve]),
    ):
        points = tuple(Point(scale, value) for scale, value in values if value is not None)
        svg = chart([Line(name=name, points=points)], across="scale", up=up, show=_signed) if points else ""
        drawn += [f'<div class="panel"><h3>{escape(up.capitalize())}</h3>{svg}</div>'] if svg else []
    rows = "".join(
        f'<tr><td class="name">{point.scale:g}</td><td>{_cell(point.gain)}</td><td>{_cell(point.forgetting)}</td>'
        f"<td>{point.verdict or ''}</td></tr>"
        for point in sweep.curve
    )
    heads = "".join(f"<th>{head}</th>" for head in ("scale", "gain", "bits per byte", "guards"))
    note = (
        "Measured on the half of the rows that chooses the scale; 0 is the base model, 1 the adapter as trained. All "
        "other figures on this page are of the published scale, and of the other half where a data set has a part in "
        "the choice."
    )
    table = f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    told = sweep.told()
    return (
        f'<div class="panel"><p>{escape(told[0].upper() + told[1:])}.</p>{table}<p class="note">{note}</p></div>'
        f'<div class="small">{"".join(drawn)}</div>'
    )


def _cell(value: float | None) -> str:
    return "" if value is None else _signed(value)


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−") if value else "0"
