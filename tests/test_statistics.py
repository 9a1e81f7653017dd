import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import make_model, objective
from mnist_jax.statistics import calibration, confusion, seed_statistics
from mnist_jax.summary import abstract_variables


def test_each_condition_is_judged_by_itself_and_its_value_shown():
    for missed, arch, epochs, accuracy in (
        (None, "bn_dropout", 14, 0.994),
        (0, "bn_dropout", 14, 0.9939),
        (1, "basic", 14, 0.994),
        (2, "bn_dropout", 15, 0.994),
    ):
        conditions = objective(abstract_variables(make_model(arch))["params"], epochs, accuracy)
        assert [condition.met for condition in conditions] == [i != missed for i in range(4)]
    dense = {"dense": {"kernel": jnp.zeros((4, 10)), "bias": jnp.zeros(10)}}
    conditions = objective(dense, 3, 0.98765)
    assert [condition.value for condition in conditions] == ["98.77%", "50", "3", "1"]
    assert not conditions[-1].met


def test_seed_statistics_closed_form():
    accuracies = [0.994, 0.995, 0.993, 0.996]
    std = statistics.stdev(accuracies)
    assert seed_statistics(accuracies) == pytest.approx((4, 0.9945, std, std / 2, 0.993, 0.996, 0.75))
    assert seed_statistics([0.99]) == (1, 0.99, None, None, 0.99, 0.99, 0.0)


def test_calibration_closed_form():
    """Four images at 0.9 of which three are right, one at 0.6 that is right: 0.8 x 0.15 + 0.2 x 0.4."""
    probabilities = np.full((5, 10), 0.1 / 9)
    probabilities[:, 2] = 0.9
    probabilities[4] = 0.4 / 9
    probabilities[4, 2] = 0.6
    assert confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]
    result = calibration(probabilities, np.array([2, 2, 2, 7, 2]), bins=10)
    np.testing.assert_allclose(result.confidence, [0.6, 0.9])
    np.testing.assert_allclose(result.accuracy, [1.0, 0.75])
    np.testing.assert_array_equal(result.count, [1, 4])
    assert result.error == pytest.approx(0.8 * 0.15 + 0.2 * 0.4)
    assert calibration(np.eye(10)[[1, 2, 3]], np.array([1, 2, 3])).error == 0  # Of certainty.
