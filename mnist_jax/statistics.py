"""Statistics of results: seeds, errors, calibration."""

import collections
import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mnist_jax.objective import TARGET_ACCURACY


class SeedStatistics(NamedTuple):
    """Statistics over seeds, accuracies as fractions.

    Attributes:
      n: number of seeds.
      mean: mean accuracy.
      std: sample standard deviation (n - 1); None for a single seed.
      stderr: standard error of the mean, std / sqrt(n); None for a single seed.
      min: the lowest accuracy.
      max: the highest accuracy.
      share: fraction of the seeds at or above the threshold.
    """

    n: int
    mean: float
    std: float | None
    stderr: float | None
    min: float
    max: float
    share: float


def seed_statistics(accuracies: Sequence[float], threshold: float = TARGET_ACCURACY) -> SeedStatistics:
    """Summarizes one accuracy per seed.

    Args:
      accuracies: fractions, one per seed, at least one.
      threshold: the accuracy to reach, a fraction.

    Returns:
      Number, mean, standard deviation, standard error, minimum, maximum, and the share that reaches the threshold.

    Example:
      >>> result = mj.seed_statistics([0.993, 0.994, 0.995])
      >>> f"{result.mean:.2%} +- {result.stderr:.2%}, {result.share:.0%} reach 99.4%"
      '99.40% +- 0.06%, 67% reach 99.4%'
    """
    n = len(accuracies)
    std = statistics.stdev(accuracies) if n > 1 else None
    share = sum(accuracy >= threshold for accuracy in accuracies) / n
    stderr = None if std is None else std / n**0.5
    return SeedStatistics(n, statistics.fmean(accuracies), std, stderr, min(accuracies), max(accuracies), share)


def mean_text(accuracies: Sequence[float]) -> str:
    """Formats the mean accuracy, with its standard error if there are several seeds.

    Args:
      accuracies: fractions, one per seed.

    Returns:
      Text, in percent.

    Example:
      >>> statistics.mean_text([0.993, 0.994, 0.995])
      'mean 99.400% +- 0.058%'
    """
    result = seed_statistics(accuracies)
    return f"mean {result.mean:.3%}" + ("" if result.stderr is None else f" +- {result.stderr:.3%}")


def error_counts(errors: Sequence[Sequence[int]]) -> dict[int, int]:
    """Counts the seeds that get each image wrong.

    Args:
      errors: for each seed, the indices of the images it gets wrong.

    Returns:
      The number of seeds by image index, without images that no seed gets wrong.

    Example:
      >>> statistics.error_counts([[7, 9], [9], [9, 12]])
      {7: 1, 9: 3, 12: 1}
    """
    return dict(collections.Counter(itertools.chain.from_iterable(errors)))


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """Counts how often each class (row) was predicted as each class (column).

    Args:
      labels: true classes, int [N].
      predictions: predicted classes, int [N].
      classes: number of classes.

    Returns:
      int [classes, classes].

    Example:
      >>> statistics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), classes=2)
      array([[1, 1],
             [0, 1]])
    """
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


class Calibration(NamedTuple):
    """Confidence and accuracy per bin; empty bins are left out.

    Attributes:
      confidence: mean confidence of each bin, float [bins].
      accuracy: accuracy of each bin, float [bins].
      count: images in each bin, int [bins].
      error: expected calibration error.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    error: float


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """Compares confidence with accuracy in bins of equal width.

    The expected calibration error is the mean over images of the difference between their bin's confidence and
    accuracy: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv:1706.04599.

    Args:
      probabilities: float [N, classes], each row with sum 1.
      labels: int [N].
      bins: number of bins.

    Returns:
      The bins that have images, and the error.

    Example:
      >>> result = statistics.calibration(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1]))
      >>> f"{result.confidence[0]:.0%} sure, {result.accuracy[0]:.0%} right, error {result.error:.2f}"
      '90% sure, 50% right, error 0.40'
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    some = count > 0
    mean_confidence = np.bincount(index, confidence, bins)[some] / count[some]
    accuracy = np.bincount(index, right, bins)[some] / count[some]
    error = float(np.abs(mean_confidence - accuracy) @ count[some] / len(labels))
    return Calibration(mean_confidence, accuracy, count[some], error)
