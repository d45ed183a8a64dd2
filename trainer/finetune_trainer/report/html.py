"""One self-contained page about one run: verdict, curves, before and after, plan, attempts, provenance, manifest.

No script, no font, no image from elsewhere: the page opens from a bucket, a mail or a disk, on a phone and on paper.
All text is escaped; numbers come from the record and are the same in status, metrics and here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape

import yaml

from finetune_api.names import API_VERSION, KIND
from finetune_api.regularization import TERMS

from . import generated, judged, layers, reliability, remedies, staircase, tasks, transferred
from .compare import Row
from .plots import Axis, Point, Series, plot, smooth
from .record import CurvePoint, RunRecord
from .style import CSS


def render(report: RunRecord) -> str:
    """The page's HTML."""
    rows = judged.rows_of(report)
    title = f"{report.job.namespace}/{report.job.name}"
    sections = [
        _header(report, rows),
        _section("Ladder", staircase.section(report.ladder)),
        _section("What changed", judged.changes(rows)),
        _section("Before and after", judged.comparison(rows)),
        _section("Guards", judged.guarded(report)),
        _section("Remedies", remedies.section(report.evaluation.remedies)),
        _section("Tasks in sequence", tasks.section(report)),
        _section("Negative transfer", transferred.section(report)),
        _section("Generated text", generated.section(report)),
        _section("Scale of the adapter", reliability.scaled(report)),
        _section("Calibration", reliability.calibrated(report)),
        _section("Layers", layers.section(report.inside)),
        _section("Switching adapters", _panel(_pairs(_switching(report))) if report.switch_test else ""),
        _section("What could not be seen", judged.not_seen(rows)),
        _section("Curves", _curves(report)),
        _section("Plan", _panel(_pairs(_plan(report)))),
        _section("Data", _data(report)),
        _section("Attempts", _attempts(report)),
        _section("Notes", _notes(report)),
        _section("Provenance", _provenance(report)),
        _section("Manifest", f'<pre>{escape(manifest(report))}</pre><p class="note">Without the defaults.</p>'),
    ]
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>{escape(title)} · fine-tuning report</title><style>{CSS}</style></head>"
        f"<body><main>{''.join(sections)}<footer>Generated from run.json by finetune. Losses are in nats per trained "
        "token.</footer></main></body></html>\n"
    )


def manifest(report: RunRecord) -> str:
    """The FineTuneJob as YAML: what was asked for, without the defaults."""
    spec = report.manifest.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    metadata = {"name": report.job.name, "namespace": report.job.namespace}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def _header(report: RunRecord, rows: tuple[Row, ...]) -> str:
    tuned = f"{_method(report)} on {_base_model(report)}"
    return (
        f'<header><p class="eyebrow">Fine-tuning report</p><h1>{escape(report.job.name)}</h1>'
        f'<p class="lead">{escape(report.job.namespace)} · {escape(tuned)}</p>{judged.verdict(report, rows)}'
        f'<div class="cards">{"".join((*judged.cards(rows), *_cards(report)))}</div></header>'
    )


def _cards(report: RunRecord) -> Iterator[str]:
    if report.plan.trainable_parameters and report.plan.parameters:
        share = report.plan.trainable_parameters / report.plan.parameters
        of = f"{share:.2%} of {_count(report.plan.parameters)}".replace("%", " %")
        yield _card("trained parameters", _count(report.plan.trainable_parameters), of)
    if report.train_seconds:
        yield _card("training time", duration(report.train_seconds), f"{report.steps:,} steps")


def _card(title: str, value: str, below: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3><b>{escape(value)}</b><span>{escape(below)}</span></div>'


def _curves(report: RunRecord) -> str:
    raw = _points(report.curve, "loss")
    measured = tuple(Point(v.step, v.scores.loss) for v in report.validation)
    losses = [
        Series(name="training loss of the step", points=raw, role="raw"),
        Series(name="training loss, smoothed", points=smooth(raw, half_life=max(1.0, len(raw) / 40))),
        Series(name="validation loss", points=measured, role="dots"),
    ]
    axis = Axis(label="nats per trained token", show=lambda v: f"{v:.3g}")
    wide, narrow = (plot(losses, axis=axis, title="Loss", width=w, height=h) for w, h in ((940, 330), (440, 300)))
    if not wide:
        return ""
    legend = "".join(f'<span><i class="key {s.role}"></i>{escape(s.name)}</span>' for s in losses if s.points)
    plots = [(name, svg) for name, svg in _small_plots(report) if svg]
    small = "".join(f'<div class="panel"><h3>{escape(name)}</h3>{svg}</div>' for name, svg in plots)
    loss = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
    return f'<div class="panel"><p class="legend">{legend}</p>{loss}</div><div class="small">{small}</div>'


def _small_plots(report: RunRecord) -> Iterator[tuple[str, str]]:
    accuracy = tuple(Point(v.step, v.scores.accuracy) for v in report.validation if v.scores.accuracy is not None)
    size = {"width": 460, "height": 230}
    yield (
        "Validation accuracy",
        plot(
            [Series(name="accuracy", points=accuracy, role="dots")],
            axis=Axis(label="share of rows", show=lambda v: f"{v * 100:.3g} %"),
            title="Validation accuracy",
            **size,
        ),
    )
    drawn: list[tuple[str, str, str, Callable[[float], str]]] = [
        ("Learning rate", "learning_rate", "learning rate", _scientific),
        ("Gradient norm", "gradient_norm", "norm before clipping", lambda v: f"{v:.3g}"),
        ("Throughput", "tokens_per_second", "tokens per second", _count_short),
    ]
    for name, field, label, show in drawn:
        axis = Axis(label=label, show=show, from_zero=True)
        series = Series(name=name.lower(), points=_points(report.curve, field))
        yield name, plot([series], axis=axis, title=name, **size)
    for key in sorted({key for point in report.curve for key in point.regularization or {}}):
        term = TERMS.get(key)
        title, label = (term.title, term.unit) if term else (key, "mean")
        points = ((p.step, p.regularization[key]) for p in report.curve if p.regularization and key in p.regularization)
        curve = Series(name=key, points=tuple(Point(step, value) for step, value in points))
        yield title, plot([curve], axis=Axis(label=label, show=lambda v: f"{v:.3g}"), title=title, **size)


def _points(curve: Sequence[CurvePoint], field: str) -> tuple[Point, ...]:
    return tuple(Point(p.step, value) for p in curve if (value := getattr(p, field)) is not None)


def _plan(report: RunRecord) -> Iterable[tuple[str, str]]:
    plan, training = report.plan, report.spec.training
    yield "method", _method(report)
    if lora := report.spec.method.low_rank:
        yield (
            "adapter",
            f"rank {lora.rank}, alpha {lora.effective_alpha:g}{', rsLoRA' if lora.rs_lora else ''}, {lora.targets}"
            + (f", the last {lora.layers} layers" if lora.layers else ""),
        )
    if virtual := report.spec.method.virtual_tokens:
        yield "virtual tokens", f"{virtual:,}"
    if plan.trained_layers:
        yield "trained layers", f"the last {plan.trained_layers}"
    yield from report.spec.regularization.lines()
    if report.spec.vocabulary is not None:
        yield from report.spec.vocabulary.lines()
    yield "strategy", f"{plan.strategy or 'one process'}, {plan.world_size or report.spec.world_size} processes"
    yield "precision", plan.precision or training.precision
    asked, length = report.manifest.data.sequence_length, report.spec.data.sequence_length
    yield (
        "sequence length",
        f"{length:,} tokens" + (f", limited by the model, {asked:,} requested" if asked != length else ""),
    )
    yield "batch size", f"{plan.batch_size or training.batch_size:,} rows per step"
    if plan.micro_batch_tokens:
        yield "micro-batch", f"{plan.micro_batch_tokens:,} tokens"
    if plan.learning_rate:
        warmup = f"warm-up {training.warmup_ratio * 100:g} %"
        yield "learning rate", f"{_scientific(plan.learning_rate)}, {training.schedule}, {warmup}"
    yield "steps", f"{report.steps:,} of {plan.total_steps or report.steps:,}"
    if plan.train_rows:
        yield "training rows", f"{plan.train_rows:,}"
    if plan.trained_tokens_per_epoch:
        yield "trained tokens", f"{plan.trained_tokens_per_epoch:,} per epoch"
    if report.stop_reason:
        yield "stop reason", report.stop_reason
    if report.best_step is not None:
        yield "weights of", f"step {report.best_step:,}, best on the validation rows"
    yield "seed", str(training.seed)
    if report.servable:
        yield "servable as", report.servable


def _switching(report: RunRecord) -> Iterator[tuple[str, str]]:
    """Of this adapter and earlier ones on one base model."""
    if (found := report.switch_test) is None:
        return
    yield "verdict", f"{found.verdict}: {found.reason}" if found.reason else found.verdict
    yield "adapters", f"{found.adapters:,}, this one included"
    yield "switches", f"{found.switches:,}, in random order"
    if found.largest_difference is not None:
        yield "largest difference", f"{found.largest_difference:.3g} of a logit, from the same adapter alone"
    yield "refused", f"{found.refused} damaged copies, while the others kept serving"
    for name, each in (("load", found.load), ("switch", found.switch), ("merge", found.merge)):
        if each is not None:
            yield f"time to {name}", f"{each.median:.3g} ms, 95th percentile {each.p95:.3g} ms"


def _attempts(report: RunRecord) -> str:
    if not report.attempts:
        return ""
    names = ("attempt", "steps", "nodes", "processes", "started", "ended", "outcome")
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr><td>{a.attempt}</td><td>{a.first_step:,} – {a.last_step:,}</td><td>{a.nodes}</td><td>{a.world_size}</td>"
        f"<td>{escape(_moment(a.start_time))}</td><td>{escape(_moment(a.end_time))}</td><td>{escape(a.outcome)}</td></tr>"
        for a in report.attempts
    )
    return _panel(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def _data(report: RunRecord) -> str:
    pairs = list(report.data.lines())
    return _panel(_pairs(pairs)) if pairs else ""


def _notes(report: RunRecord) -> str:
    return _panel(f"<ul>{''.join(f'<li>{escape(n)}</li>' for n in report.notes)}</ul>") if report.notes else ""


def _provenance(report: RunRecord) -> str:
    origin = report.provenance
    pairs = {"base model": _base_model(report)}
    pairs |= {"revision": origin.revision} if origin.revision else {}
    pairs |= {name: f"{kind} {digest}" for name, kind, digest in origin.digests()}
    pairs |= {"run": report.job.uid, "hardware": origin.hardware, "image": origin.image}
    if report.attempts:
        pairs |= {"computed with": report.attempts[-1].computed, "model cache": report.attempts[-1].model_cache}
    pairs |= {"started": _moment(report.start_time), "completed": _moment(report.completion_time)}
    pairs |= {"versions": ", ".join(f"{name} {version}" for name, version in sorted(origin.versions.items()))}
    return _panel(_pairs((name, value) for name, value in pairs.items() if value))


def _method(report: RunRecord) -> str:
    return report.plan.method or report.spec.method.type


def _base_model(report: RunRecord) -> str:
    return report.provenance.base_model or report.spec.model.uri


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _panel(content: str) -> str:
    return f'<div class="panel">{content}</div>'


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(k)}</dt><dd>{escape(v)}</dd>' for k, v in pairs)}</dl>"


def _moment(time: str) -> str:
    """2026-11-24T20:37:01.123Z → 2026-11-24 20:37:01 UTC."""
    return f"{time[:10]} {time[11:19]} UTC" if len(time) >= 19 else time


def duration(seconds: float) -> str:
    """4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _count(value: float) -> str:
    """4.9 million, 1.24 billion."""
    for size, name in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.0f}"


def _scientific(value: float) -> str:
    """1.5e-4: for learning rates."""
    if value == 0:
        return "0"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def _count_short(value: float) -> str:
    """12.5k: for axes."""
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"
