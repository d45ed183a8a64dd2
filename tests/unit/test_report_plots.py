"""Curves: round ticks, honest smoothing, and drawings that survive odd data."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from finetune_trainer.report.plots import MOST_POINTS, MOST_TITLES, Axis, Point, Series, plot, smooth, ticks

AXIS = Axis(label="nats", show=lambda v: f"{v:.3g}")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 240, [0, 50, 100, 150, 200]),
        (-0.3, 0.3, [-0.2, 0, 0.2]),
        (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (1, 1, [1]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_smoothing_starts_without_bias_and_halves_at_its_half_life() -> None:
    constant = [Point(s, 3.0) for s in range(10)]
    assert [p.value for p in smooth(constant, half_life=4)] == pytest.approx([3.0] * 10)
    impulse = smooth([Point(s, 1.0 if s == 100 else 0.0) for s in range(200)], half_life=5)
    assert impulse[105].value / impulse[100].value == pytest.approx(0.5, rel=1e-5)


def drawn(points: list[tuple[float, float]], role: str = "line") -> ET.Element:
    series = Series(name="loss", points=tuple(Point(*p) for p in points), role=role)  # type: ignore[arg-type]
    return ET.fromstring(plot([series], axis=AXIS, title="Loss"))


def numbers(svg: ET.Element) -> list[float]:
    return [float(c.get(k, "nan")) for c in svg.iter("circle") for k in ("cx", "cy")]


@pytest.mark.parametrize(
    "points",
    [
        [(5, 0.5)],
        [(1, 2.0), (2, 2.0)],
        [(1, 0.0), (2, 0.0)],
        [(1, 1e-12), (2, 1e12)],
        [(1, math.nan), (2, 1.0), (3, math.inf), (4, 0.5)],
        [(0, -1.0), (10_000_000, -2.0)],
    ],
)
def test_odd_curves_are_drawn_inside_the_frame(points: list[tuple[float, float]]) -> None:
    found = numbers(drawn(points))
    assert found
    assert all(math.isfinite(n) and 0 <= n <= 720 for n in found)


def test_nothing_to_draw_is_nothing() -> None:
    assert plot([Series(name="loss", points=())], axis=AXIS, title="Loss") == ""
    assert plot([Series(name="loss", points=(Point(1, math.nan),))], axis=AXIS, title="Loss") == ""


def test_values_are_in_hover_titles() -> None:
    titles = [t.text for t in drawn([(1, 2.5), (1200, 1.25)], role="dots").iter("title")]
    assert titles == ["loss 2.5 at step 1", "loss 1.25 at step 1,200"]


def test_long_curves_stay_small_and_keep_their_ends() -> None:
    svg = drawn([(s, s / 7) for s in range(1, 100_001)])
    path = svg.find("path")
    assert path is not None
    assert path.get("d", "").count("L") + 1 <= MOST_POINTS
    titles = [t.text for t in svg.iter("title")]
    assert len(titles) <= MOST_TITLES
    assert (titles[0], titles[-1]) == ("loss 0.143 at step 1", "loss 1.43e+04 at step 100,000")


def test_one_spike_does_not_flatten_a_raw_curve() -> None:
    spiked = [(s, 1000.0 if s == 50 else 1 + s % 2) for s in range(1, 201)]
    labels = [t.text for t in drawn(spiked, role="raw").iter("text") if t.get("class") == "tick"]
    assert "2" in labels


def test_axes_have_labels_and_the_whole_a_summary() -> None:
    svg = drawn([(1, 2.0), (9, 1.0)])
    assert {"nats", "optimizer step"} <= {t.text for t in svg.iter("text")}
    assert svg.get("aria-label") == "Loss: loss 1 at the end"
