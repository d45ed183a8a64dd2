"""How far texts are from each other: none between parts of one text, and known numbers otherwise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.shift import Ratio, band, bits_per_byte, excess, jensen_shannon, ratio_of_bits


def _documents(count: int, chances: np.ndarray, *, seed: int, length: int = 400) -> list[np.ndarray]:
    drawn = np.random.default_rng(seed)
    return [drawn.choice(len(chances), length, p=chances).astype(np.int32) for _ in range(count)]


ZIPF = (1 / np.arange(1, 501)) / (1 / np.arange(1, 501)).sum()


def test_equal_texts_have_no_divergence_and_disjoint_ones_a_bit() -> None:
    one, other = np.array([0, 1, 1, 2], np.int32), np.array([3, 4, 4, 5], np.int32)
    assert jensen_shannon(one, one) == pytest.approx(0, abs=1e-12)
    assert jensen_shannon(one, other) == pytest.approx(1)


def test_divergence_of_two_coins() -> None:
    """1/2 and 1/2 against 3/4 and 1/4: H(5/8) - 1/2 - H(3/4)/2, in bits."""
    fair, biased = np.array([0, 1, 0, 1], np.int32), np.array([0, 0, 0, 1], np.int32)

    def bits(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    assert jensen_shannon(fair, biased) == pytest.approx(bits(5 / 8) - 0.5 - bits(3 / 4) / 2)


def test_two_parts_of_one_text_have_no_excess_though_they_diverge() -> None:
    one, other = _documents(10, ZIPF, seed=1), _documents(10, ZIPF, seed=2)
    assert jensen_shannon(np.concatenate(one), np.concatenate(other)) > 0.02
    assert abs(excess(one, other)) < 0.015


def test_other_words_are_an_excess_by_how_many_they_are() -> None:
    """A fifth of the second text's tokens are from another vocabulary; the divergence of (1, 0) and (.8, .2)."""
    other = np.concatenate([0.8 * ZIPF, 0.2 * ZIPF])
    one = np.concatenate([ZIPF, 0 * ZIPF])
    found = excess(_documents(40, one, seed=1), _documents(40, other, seed=2))
    entropy = -0.9 * math.log2(0.9) - 0.1 * math.log2(0.1)
    expected = entropy - 0.5 * (-0.8 * math.log2(0.8) - 0.2 * math.log2(0.2))
    assert found == pytest.approx(expected, rel=0.1)


def test_a_ratio_of_bits_per_byte_has_its_interval() -> None:
    drawn = np.random.default_rng(3)
    sizes = drawn.integers(200, 400, 50).astype(np.float64)
    general = (sizes * 0.7 * drawn.normal(1, 0.1, 50), sizes)
    task = (sizes * 1.05 * drawn.normal(1, 0.1, 50), sizes)
    found = ratio_of_bits(task, general)
    assert found.value == pytest.approx(bits_per_byte(*task) / bits_per_byte(*general))
    assert found.low < 1.5 < found.high
    assert found.high / found.low < 1.12
    same = ratio_of_bits(general, general)
    assert same.value == pytest.approx(1)


def test_the_interval_covers_as_it_says() -> None:
    """Of 400 draws with a true ratio of 2."""
    drawn, covered = np.random.default_rng(4), 0
    for _ in range(400):
        pairs = []
        for mean in (2.0, 1.0):
            sizes = drawn.integers(100, 500, 20).astype(np.float64)
            pairs.append((sizes * mean * drawn.normal(1, 0.3, 20), sizes))
        found = ratio_of_bits(pairs[0], pairs[1])
        covered += found.low <= 2 <= found.high
    assert 0.92 <= covered / 400 <= 0.99


@pytest.mark.parametrize(
    ("ratio", "divergence", "longer", "expected"),
    [(1.1, 0.1, 1.0, "small"), (0.5, 0.1, 1.0, "small"), (1.1, 0.2, 1.0, "medium"), (1.3, 0.1, 1.0, "medium"),
     (1.5, 0.1, 1.0, "large"), (1.1, 0.1, 1.4, "large")],
)  # fmt: skip
def test_bands(ratio: float, divergence: float, longer: float, expected: str) -> None:
    assert band(Ratio(value=ratio, low=ratio, high=ratio), divergence, longer) == expected
