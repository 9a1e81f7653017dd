"""Differences of accuracy between series of seeds, and how sure they are."""

import bisect
import itertools
from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal, NamedTuple

import numpy as np
import scipy  # scipy.special is imported at its first use; it takes a sixth of the import of this package.

from mnist_jax.errors import InputError, shown

LEVEL = 0.95
MOST_SEEDS = 1_000_000


class Series(NamedTuple):
    """The seeds of one setting.

    Attributes:
      accuracies: accuracy by seed, a fraction.
      errors: for each seed, the indices of the images it gets wrong; None if they are not known.
      count: number of scored images; None if it is not known.
      scored: what was scored, in words.
    """

    accuracies: Mapping[int, float]
    errors: Mapping[int, Sequence[int]] | None = None
    count: int | None = None  # pyright: ignore[reportIncompatibleMethodOverride]
    scored: str | None = None


class Comparison(NamedTuple):
    """The difference between two series, A less B, as fractions.

    Attributes:
      difference: mean accuracy of A less that of B.
      low: lower end of the 95% confidence interval; minus infinity if no two seeds differ.
      high: upper end.
      p_value: two-sided p-value of no difference; 1 if no two seeds differ.
      paired: whether seeds were paired.
      images: "fixed" if the seeds alone are random, "sampled" if the scored images are too.
      seeds: number of seeds of A and of B.
      stderr: standard error of the difference.
      df: degrees of freedom of Student's t.
      seed_variances: variance over seeds of A and of B, on these images; of their difference, if paired.
      image_variance: the part of `stderr ** 2` that more seeds do not reduce; 0 for fixed images.
      correlation: of the accuracies of seeds in both; None for fewer than three.
      chance: probability that one seed of A is more accurate than one of B; a tie counts half.
    """

    difference: float
    low: float
    high: float
    p_value: float
    paired: bool
    images: str
    seeds: tuple[int, int]
    stderr: float
    df: float
    seed_variances: tuple[float, ...]
    image_variance: float
    correlation: float | None
    chance: float

    @property
    def image_share(self) -> float:
        """The fraction of `stderr ** 2` that is due to the choice of images; the rest is due to the seeds."""
        return self.image_variance / self.stderr**2 if self.stderr else 0.0

    def seeds_needed(self, difference: float, power: float = 0.8) -> int | None:
        """The number of seeds of each side that shows a difference at the 5% level, if the seeds spread as here.

        The power is that of Student's t-test, by the noncentral t distribution: Cohen, "Statistical Power Analysis for
        the Behavioral Sciences", 1988.

        `difference` is the true one, a fraction; `power` is the probability to find it. Returns None if no number of
        seeds is enough on as many images. Raises InputError if `difference` is not above 0, or `power` not between
        0.05 and 1.

        Example:
          >>> mj.compare({1: 0.994, 2: 0.995, 3: 0.995}, {1: 0.993, 2: 0.994, 3: 0.993}).seeds_needed(0.0005)
          22
        """
        if not difference > 0:
            raise InputError(f"difference {shown(difference)} cannot be used; choose a fraction above 0")
        if not 0.05 < power < 1:
            raise InputError(f"power {shown(power)} cannot be used; choose more than 0.05 and less than 1")

        def enough(n: int) -> bool:
            seed_variances = [variance / n for variance in self.seed_variances]
            variance, df = _satterthwaite(seed_variances, [n - 1] * len(seed_variances), self.image_variance)
            if not variance:
                return True
            shift, reach = difference / variance**0.5, scipy.special.stdtrit(df, (1 + LEVEL) / 2)
            if shift > reach + 6:  # Where nctdtr may be NaN.
                return True
            return 1 - scipy.special.nctdtr(df, shift, reach) + scipy.special.nctdtr(df, shift, -reach) >= power

        seeds = range(2, MOST_SEEDS + 1)
        least = bisect.bisect_left(seeds, True, key=enough)
        return seeds[least] if least < len(seeds) else None


def compare_series(
    a: Series, b: Series, *, images: Literal["fixed", "sampled"] = "fixed", paired: bool = False
) -> Comparison:
    """Compares two series, as `mj.compare` does what it is given, whose docstring has the method and the errors."""
    if images not in ("fixed", "sampled"):
        raise InputError(f"images {shown(images)} cannot be used; choose fixed or sampled")
    if a.scored and b.scored and a.scored != b.scored:
        raise InputError(f"one series was scored on {a.scored}, the other on {b.scored}; compare those of the same")
    common = sorted(a.accuracies.keys() & b.accuracies.keys())
    if paired and len(common) < 2:
        raise InputError(f"the series share {len(common)} of their seeds; pair two or more, or compare without pairs")
    if min(len(a.accuracies), len(b.accuracies)) < 2:
        raise InputError("a series has fewer than two seeds, which have no spread; give two or more")
    seeds = (common, common) if paired else (sorted(a.accuracies), sorted(b.accuracies))
    one, other = (_accuracies(series, chosen) for series, chosen in zip((a, b), seeds, strict=True))
    groups = [one - other] if paired else [one, other]
    seed_variances = [_variance(group) for group in groups]
    dfs = [len(group) - 1.0 for group in groups]
    image_variance = 0.0
    if images == "sampled":
        wrong_a, wrong_b = wrong_images(a, b, seeds)
        image_variance, interactions = _image_variance(wrong_a, wrong_b, paired)
        # The variance over seeds is that of the interaction, or more. Where few seeds spread less, by chance, so small
        # a mean square has many degrees of freedom, by Satterthwaite; at most fourfold keeps small levels right.
        for i, least in enumerate(interactions):
            if seed_variances[i] < least:
                dfs[i] *= (least / max(seed_variances[i], least / 2)) ** 2
                seed_variances[i] = least
    of_means = [variance / len(group) for variance, group in zip(seed_variances, groups, strict=True)]
    variance, df = _satterthwaite(of_means, dfs, image_variance)
    difference, stderr = float(one.mean() - other.mean()), variance**0.5
    reach = _reach(stderr, df, LEVEL)
    pairs = np.stack([_accuracies(series, common) for series in (a, b)])
    varied = len(common) > 2 and np.ptp(pairs, 1).all()
    return Comparison(
        difference,
        low=difference - reach,
        high=difference + reach,
        p_value=float(2 * scipy.special.stdtr(df, -abs(difference) / stderr)) if stderr else 1.0,
        paired=paired,
        images=images,
        seeds=(len(one), len(other)),
        stderr=stderr,
        df=df,
        seed_variances=tuple(seed_variances),
        image_variance=image_variance,
        correlation=float(np.corrcoef(pairs)[0, 1]) if varied else None,
        chance=float(np.sign(np.subtract.outer(one, other)).mean() / 2 + 0.5),
    )


def _accuracies(series: Series, seeds: Sequence[int]) -> np.ndarray:
    return np.array([series.accuracies[seed] for seed in seeds])


def _reach(stderr: float, df: float, level: float) -> float:
    """Half the width of a confidence interval."""
    return float(scipy.special.stdtrit(df, (1 + level) / 2)) * stderr if stderr else inf


def _variance(values: np.ndarray) -> float:
    """The sample variance; 0 where values differ by rounding alone."""
    return float(values.var(ddof=1)) if np.ptp(values) > 1e-9 else 0.0


def _satterthwaite(variances: Sequence[float], dfs: Sequence[float], known: float) -> tuple[float, float]:
    """The sum of estimated variances and a known one, and its degrees of freedom."""
    total = sum(variances) + known
    spread = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True))
    return total, min(total**2 / spread, 1e9) if spread else 1e9


def _image_variance(one: np.ndarray, other: np.ndarray, paired: bool) -> tuple[float, list[float]]:
    """The variance of the difference that is due to images alone; the part of each seed variance that is interaction.

    The mean square of images has that of the interaction in it, which is subtracted: the variance over seeds has it.
    """
    count = one.shape[1]
    variance, interactions = (one.mean(0) - other.mean(0)).var(ddof=1) / count, []
    for wrong in [one - other] if paired else [one, other]:
        n = len(wrong)
        residual = wrong - wrong.mean(0) - wrong.mean(1, keepdims=True) + wrong.mean()
        interaction = float((residual**2).sum() / ((n - 1) * (count - 1)) / count)
        variance -= interaction / n
        interactions.append(interaction)
    return max(float(variance), 0.0), interactions


def wrong_images(a: Series, b: Series, seeds: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """For each series, 1 where one of its seeds gets an image wrong, float [seeds, images]."""
    if a.errors is None or b.errors is None or a.count is None or b.count is None:
        raise InputError('images "sampled" needs the errors of each seed by image, as trials have them; give trials')
    if a.count != b.count:
        raise InputError(f"one series was scored on {a.count:,} images, the other on {b.count:,}; give the same")
    wrong = np.zeros((len(seeds[0]), a.count)), np.zeros((len(seeds[1]), a.count))
    for table, errors, chosen in zip(wrong, (a.errors, b.errors), seeds, strict=True):
        for row, seed in zip(table, chosen, strict=True):
            indices = np.asarray(errors[seed], int)
            if (indices >= a.count).any():
                raise InputError(f"seed {seed} has errors beyond its {a.count:,} images; give indices below that")
            row[indices] = 1
    return wrong


def against_best(
    series: Mapping[str, Series], *, images: Literal["fixed", "sampled"] = "fixed", paired: bool = False
) -> tuple[str, dict[str, Comparison]]:
    """Compares every series with the best, corrected for their number.

    The data choose the best, so the correction is for all pairs, not only those with the best: among equal series, the
    chance that any two are called different is at most 5%. P-values are corrected as in Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979. Intervals hold together in 95% of
    cases, by Bonferroni's inequality.

    Args:
      series: two or more, by name.
      images: as for `mj.compare`.
      paired: as for `mj.compare`.

    Returns:
      The name of the best, and by name of each other the best less it.

    Raises:
      InputError: As `mj.compare`, with the names; or for fewer than two series.

    Example:
      >>> given = {name: differences.Series({1: x, 2: x + 0.001}) for name, x in (("a", 0.95), ("b", 0.99), ("c", 0.9))}
      >>> best, others = differences.against_best(given)
      >>> best, list(others)
      ('b', ['a', 'c'])
    """
    if len(series) < 2:
        raise InputError(f"{len(series)} series cannot be compared; give two or more")
    names = sorted(series, key=lambda name: -np.mean([*series[name].accuracies.values()]))
    pairs = {}
    for name, other in itertools.combinations(names, 2):
        try:
            pairs[name, other] = compare_series(series[name], series[other], images=images, paired=paired)
        except InputError as error:
            raise InputError(f"{name} and {other}: {error}") from error
    corrected = dict(zip(pairs, _holm([pair.p_value for pair in pairs.values()]), strict=True))
    best, others = names[0], {}
    for name in series:
        if name != best:
            pair = pairs[best, name]
            reach = _reach(pair.stderr, pair.df, 1 - (1 - LEVEL) / len(pairs))
            low, high = pair.difference - reach, pair.difference + reach
            others[name] = pair._replace(p_value=corrected[best, name], low=low, high=high)
    return best, others


def _holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number."""
    order = np.argsort(p_values, kind="stable")
    stepped = np.asarray(p_values, float)[order] * np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()


class McNemar(NamedTuple):
    """The images that the majority of one series' seeds gets right and that of the other gets wrong.

    Attributes:
      only_a: indices of images that A gets right and B wrong.
      only_b: indices of images that B gets right and A wrong.
      p_value: of as many of both, exact.
    """

    only_a: list[int]
    only_b: list[int]
    p_value: float


def mcnemar(a: Series, b: Series) -> McNemar:
    """Compares two series image by image, each by the majority of its seeds.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12, 1947; with the exact binomial distribution. An image is wrong if more than half the seeds are.

    Args:
      a: one series, with errors.
      b: the other.

    Returns:
      The images in which they differ, and the p-value.

    Raises:
      InputError: If errors by image are missing.

    Example:
      >>> one = differences.Series({1: 0.98, 2: 0.98}, {1: [3, 7], 2: [3, 7]}, 100)
      >>> other = differences.Series({1: 0.99, 2: 0.98}, {1: [5], 2: [3, 5]}, 100)
      >>> differences.mcnemar(one, other)
      McNemar(only_a=[5], only_b=[3, 7], p_value=1.0)
    """
    wrong = wrong_images(a, b, [sorted(a.accuracies), sorted(b.accuracies)])
    wrong_a, wrong_b = (table.mean(0) > 0.5 for table in wrong)
    only_a, only_b = np.flatnonzero(wrong_b & ~wrong_a).tolist(), np.flatnonzero(wrong_a & ~wrong_b).tolist()
    few, total = min(len(only_a), len(only_b)), len(only_a) + len(only_b)
    return McNemar(only_a, only_b, min(1.0, 2 * float(scipy.special.bdtr(few, total, 0.5))))
