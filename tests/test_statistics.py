import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax import make_model, objective
from mnist_jax.statistics import calibration, confusion
from mnist_jax.summary import abstract_variables


def verdicts(arch, epochs, accuracy):
    params = abstract_variables(make_model(arch))["params"]
    return [condition.met for condition in objective(params, epochs, accuracy)]


def test_each_condition_is_judged_by_itself_and_its_value_shown():
    assert verdicts("bn_dropout", 14, 0.994) == [True, True, True, True]
    assert verdicts("bn_dropout", 14, 0.9939) == [False, True, True, True]
    assert verdicts("basic", 14, 0.994) == [True, False, True, True]
    assert verdicts("bn_dropout", 15, 0.994) == [True, True, False, True]
    dense = {"dense": {"kernel": jnp.zeros((4, 10)), "bias": jnp.zeros(10)}}
    conditions = objective(dense, 3, 0.98765)
    assert [condition.value for condition in conditions] == ["98.77%", "50", "3", "1"]
    assert not conditions[-1].met


def test_confusion_counts_rows_for_what_is_true():
    counts = confusion(np.array([3, 3, 3, 5]), np.array([3, 8, 8, 5]))
    assert counts.sum() == 4
    assert (counts[3, 3], counts[3, 8], counts[5, 5]) == (1, 2, 1)


def test_calibration_closed_form():
    """Four images at 0.9 of which three are right, one at 0.6 that is right: 0.8 x 0.15 + 0.2 x 0.4."""
    probabilities = np.full((5, 10), 0.1 / 9)
    probabilities[:, 2] = 0.9
    probabilities[4] = 0.4 / 9
    probabilities[4, 2] = 0.6
    result = calibration(probabilities, np.array([2, 2, 2, 7, 2]), bins=10)
    np.testing.assert_allclose(result.confidence, [0.6, 0.9])
    np.testing.assert_allclose(result.accuracy, [1.0, 0.75])
    np.testing.assert_array_equal(result.count, [1, 4])
    assert result.error == pytest.approx(0.8 * 0.15 + 0.2 * 0.4)
    assert calibration(np.eye(10)[[1, 2, 3]], np.array([1, 2, 3])).error == 0  # Of certainty.
