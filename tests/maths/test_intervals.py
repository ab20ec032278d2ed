"""Intervals against scipy, and the share of samples whose interval holds the truth."""

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from zeroline.maths.intervals import median_interval, wilson


@pytest.mark.parametrize("count", [1, 7, 40, 300])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_is_that_of_scipy(count, confidence):
    for successes in {0, 1, count // 2, count}:
        known = binomtest(successes, count).proportion_ci(confidence, method="wilson")
        assert wilson(successes, count, confidence) == pytest.approx((known.low, known.high), abs=1e-9)


def test_nothing_counted_says_nothing():
    assert wilson(0, 0) == (0, 1)
    assert math.isnan(median_interval([])[0])


@pytest.mark.parametrize("count", [6, 11, 24, 101])
def test_the_median_interval_is_the_narrowest_pair_of_order_statistics(count):
    values = np.random.default_rng(count).normal(size=count)
    middle, low, high = median_interval(values.tolist())
    ordered = np.sort(values)
    assert middle == pytest.approx(np.median(values))
    k = int(np.flatnonzero(ordered == low)[0])
    assert high == ordered[count - 1 - k]
    assert 2 * binom.cdf(k, count, 0.5) <= 0.05 < 2 * binom.cdf(k + 1, count, 0.5)  # one further in would hold too little


def test_too_few_values_give_the_whole_range_and_infinite_ones_count():
    assert median_interval([3, 1, 2]) == (2, 1, 3)
    assert median_interval([1, math.inf, math.inf]) == (math.inf, 1, math.inf)


def test_the_interval_holds_the_median_as_often_as_it_says():
    random = np.random.default_rng(0)
    held = [low <= 0 <= high for _, low, high in (median_interval(random.normal(size=15).tolist()) for _ in range(400))]
    assert np.mean(held) > 0.93
