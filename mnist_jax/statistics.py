"""Statistics of results: seeds, errors, calibration, timings."""

import collections
import itertools
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mnist_jax.objective import TARGET_ACCURACY


class SeedStatistics(NamedTuple):
    """Statistics over seeds, accuracies as fractions; `std` and `stderr` are None for a single seed."""

    n: int
    mean: float
    std: float | None
    stderr: float | None
    min: float
    max: float
    share: float


def seed_statistics(accuracies: Sequence[float], threshold: float = TARGET_ACCURACY) -> SeedStatistics:
    """Summarizes one accuracy per seed; `share` is the fraction of seeds at or above the threshold.

    `std` is the sample standard deviation (N - 1), `stderr` the standard error of the mean, std / sqrt(N).
    """
    n = len(accuracies)
    std = statistics.stdev(accuracies) if n > 1 else None
    share = sum(accuracy >= threshold for accuracy in accuracies) / n
    stderr = None if std is None else std / n**0.5
    return SeedStatistics(n, statistics.fmean(accuracies), std, stderr, min(accuracies), max(accuracies), share)


def mean_text(accuracies: Sequence[float]) -> str:
    """The mean, with its standard error if there are several, for instance `mean 99.541% +- 0.011%`."""
    result = seed_statistics(accuracies)
    return f"mean {result.mean:.3%}" + ("" if result.stderr is None else f" +- {result.stderr:.3%}")


def error_counts(errors: Sequence[Sequence[int]]) -> dict[int, int]:
    """The number of seeds that get each image wrong; `errors` has the image indices of each seed."""
    return dict(collections.Counter(itertools.chain.from_iterable(errors)))


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """How often each class (row) was taken for each (column): int [classes, classes]."""
    return np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)


class Calibration(NamedTuple):
    """Per bin that has images: float, float and int [bins]; `error` is the expected calibration error."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray  # pyright: ignore[reportIncompatibleMethodOverride]
    error: float


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> Calibration:
    """Compares confidence with accuracy in bins of equal width; the error is their mean difference over images.

    `probabilities` are float [N, 10], each row of sum 1, `labels` int [N].

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", arXiv:1706.04599.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    some = count > 0
    mean_confidence = np.bincount(place, confidence, bins)[some] / count[some]
    accuracy = np.bincount(place, right, bins)[some] / count[some]
    error = float(np.abs(mean_confidence - accuracy) @ count[some] / len(labels))
    return Calibration(mean_confidence, accuracy, count[some], error)


def ratio(seconds: Sequence[float], base: Sequence[float]) -> float:
    """The median of the ratios of two contenders' seconds, round by round."""
    return statistics.median(a / b for a, b in zip(seconds, base, strict=True))


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)
