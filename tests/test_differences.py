"""`compare` against scipy.stats, closed forms and simulation."""

import numpy as np
import pytest
from conftest import refused
from scipy import stats

from mnist_jax import compare
from mnist_jax.differences import Series, against_best, compare_series, mcnemar

RNG = np.random.default_rng(28)
A = dict(enumerate(RNG.normal(0.995, 0.0005, 7)))
B = dict(enumerate(RNG.normal(0.9945, 0.0009, 5)))


@pytest.mark.parametrize("paired", [False, True])
def test_fixed_images_are_the_t_tests_of_scipy(paired):
    a, b = np.array([*A.values()]), np.array([*B.values()])
    expected = stats.ttest_rel(a[:5], b) if paired else stats.ttest_ind(a, b, equal_var=False)
    result = compare(A, B, paired=paired)
    assert (result.p_value, result.df) == pytest.approx((expected.pvalue, expected.df))
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert result.chance == pytest.approx(stats.mannwhitneyu(a[:5] if paired else a, b).statistic / (25 if paired else 35))
    assert result.correlation == pytest.approx(stats.pearsonr(a[:5], b).statistic)
    swapped = compare(B, A, paired=paired)
    assert (swapped.difference, swapped.low) == pytest.approx((-result.difference, -result.high))


def test_seeds_needed_has_the_power_asked_for():
    """64 a side for half a deviation, 34 pairs, as in Cohen's tables."""
    unit = compare({1: 0.4, 2: 0.6}, {1: 0.3, 2: 0.5})
    a, b = (unit._replace(seed_variances=(0.01,) * n, image_variance=0.0) for n in (2, 1))
    assert (a.seeds_needed(0.05), b.seeds_needed(0.05)) == (64, 34)
    assert a._replace(image_variance=1e-3).seeds_needed(0.05) is None
    assert a.seeds_needed(5) == 2
    refused("difference 0 cannot", a.seeds_needed, 0)
    refused("power 1 cannot", a.seeds_needed, 0.1, 1)
