"""Statistics of results: the objective's verdict, seeds, errors, calibration."""

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.summary import count_dense, count_params
from mnist_jax.training import EpochMetrics

TARGET_ACCURACY = 0.994
PARAMETER_LIMIT = 10_000  # The objective asks for fewer.


class Condition(NamedTuple):
    """One condition of the objective: its quantity, the value reached, the value asked for, whether it is met."""

    name: str
    value: str
    target: str
    met: bool


def objective(params: Any, epochs: int, accuracy: float, scored_on: str = "test") -> tuple[Condition, ...]:
    """Judges the exercise's four conditions, by the accuracy of the last epoch on the split `scored_on`, a fraction."""
    parameters, dense = count_params(params), count_dense(params)
    wanted = f"at least {TARGET_ACCURACY:.2%}"
    return (
        Condition(f"{scored_on} accuracy", f"{accuracy:.2%}", wanted, accuracy >= TARGET_ACCURACY),
        Condition("parameters", f"{parameters:,}", f"fewer than {PARAMETER_LIMIT:,}", parameters < PARAMETER_LIMIT),
        Condition("epochs", f"{epochs}", "fewer than 15", epochs < 15),
        Condition("fully connected layers", f"{dense}", "none", dense == 0),
    )


def epoch_line(metrics: EpochMetrics, epochs: int, scored: str) -> str:
    """The line that a run prints per epoch; `scored` names the scored split, "test" or "held-out"."""
    return (
        f"epoch {metrics.epoch:2d}/{epochs}  train loss {metrics.train_loss:.4f} accuracy {metrics.train_accuracy:.2%}"
        f"  {scored} loss {metrics.test_loss:.4f} accuracy {metrics.test_accuracy:.2%}  {metrics.seconds:.1f} s"
    )


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


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts how often each digit (row) was predicted as each (column): int [10, 10]."""
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Per bin that has images: float, float and int [bins]; `error` is the expected calibration error."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
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


def ratios(result: Mapping[str, Any], figure: str, name: str, base: str = "ours") -> list[float]:
    """A contender's seconds over those of `base`, round by round."""
    mine, theirs = (result["contenders"][who][figure] for who in (base, name))
    return [b / a for a, b in zip(mine, theirs, strict=True)]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Minimum, median and maximum."""
    return min(values), statistics.median(values), max(values)
