"""Differences of accuracy between series of seeds, and how sure they are."""

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

        Args:
          difference: true difference, a fraction.
          power: probability to find it.

        Returns:
          The number; None if no number of seeds is enough on as many images.

        Raises:
          InputError: If `difference` is not above 0, or `power` not between 0.05 and 1.

        Example:
          >>> mj.compare({1: 0.994, 2: 0.995, 3: 0.995}, {1: 0.993, 2: 0.994, 3: 0.993}).seeds_needed(0.0005)
          22
        """
        if not difference > 0:
            raise InputError(f"difference {shown(difference)} cannot be used; choose a fraction above 0")
        if not 0.05 < power < 1:
            raise InputError(f"power {shown(power)} cannot be used; choose more than 0.05 and less than 1")

        def enough(n: float) -> bool:
            parts = [variance / n for variance in self.seed_variances]
            variance, df = _satterthwaite([*parts, self.image_variance], [n - 1] * len(parts) + [inf])
            if not variance:
                return True
            shift, reach = difference / variance**0.5, scipy.special.stdtrit(df, (1 + LEVEL) / 2)
            if shift > reach + 6:  # Where nctdtr may be NaN.
                return True
            return 1 - scipy.special.nctdtr(df, shift, reach) + scipy.special.nctdtr(df, shift, -reach) >= power

        if not enough(MOST_SEEDS):
            return None
        few, many = 1, 2
        while not enough(many):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            if enough(middle):
                many = middle
            else:
                few = middle
        return many


def compare_series(
    a: Series, b: Series, *, images: Literal["fixed", "sampled"] = "fixed", paired: bool = False
) -> Comparison:
    """Compares two series, as `mj.compare` does what it is given, whose docstring has the method and the errors."""
    if images not in ("fixed", "sampled"):
        raise InputError(f"images {shown(images)} cannot be used; choose fixed or sampled")
    if a.scored and b.scored and a.scored != b.scored:
        raise InputError(f"one series was scored on {a.scored}, the other on {b.scored}; compare those of the same")
    shared = sorted(a.accuracies.keys() & b.accuracies.keys())
    if paired and len(shared) < 2:
        raise InputError(f"the series share {len(shared)} of their seeds; pair two or more, or compare without pairs")
    used = [shared, shared] if paired else [sorted(a.accuracies), sorted(b.accuracies)]
    for seeds in used:
        if len(seeds) < 2:
            raise InputError("a series has fewer than two seeds, which have no spread; give two or more")
    one, other = (np.array([each.accuracies[s] for s in seeds]) for each, seeds in zip((a, b), used, strict=True))
    groups = [one - other] if paired else [one, other]
    seed_variances, dfs = [_variance(values) for values in groups], [len(values) - 1.0 for values in groups]
    image_variance = 0.0
    if images == "sampled":
        image_variance, interactions = _image_parts(a, b, used, paired)
        # The variance over seeds is that of the interaction, or more. Where few seeds spread less, by chance, so small
        # a mean square has many degrees of freedom, by Satterthwaite; at most fourfold keeps small levels right.
        for i, least in enumerate(interactions):
            if seed_variances[i] < least:
                dfs[i] *= (least / max(seed_variances[i], least / 2)) ** 2
                seed_variances[i] = least
    parts = [variance / len(values) for variance, values in zip(seed_variances, groups, strict=True)]
    variance, df = _satterthwaite([*parts, image_variance], [*dfs, inf])
    difference, stderr = float(one.mean() - other.mean()), variance**0.5
    reach = _reach(stderr, df, LEVEL)
    both = np.array([[series.accuracies[seed] for seed in shared] for series in (a, b)])
    varied = len(shared) > 2 and np.ptp(both, 1).all()
    return Comparison(
        difference,
        difference - reach,
        difference + reach,
        float(2 * scipy.special.stdtr(df, -abs(difference) / stderr)) if stderr else 1.0,
        paired,
        images,
        (len(one), len(other)),
        stderr,
        df,
        tuple(seed_variances),
        image_variance,
        float(np.corrcoef(*both).flat[1]) if varied else None,
        float(np.sign(np.subtract.outer(one, other)).mean() / 2 + 0.5),
    )


def _reach(stderr: float, df: float, level: float) -> float:
    """Half the width of a confidence interval."""
    return float(scipy.special.stdtrit(df, (1 + level) / 2)) * stderr if stderr else inf


def _variance(values: np.ndarray) -> float:
    """The sample variance; 0 where values differ by rounding alone."""
    return float(values.var(ddof=1)) if np.ptp(values) > 1e-9 else 0.0


def _satterthwaite(variances: Sequence[float], dfs: Sequence[float]) -> tuple[float, float]:
    """The sum of variances, and its degrees of freedom."""
    total = sum(variances)
    spread = sum(variance**2 / df for variance, df in zip(variances, dfs, strict=True))
    return total, min(total**2 / spread, 1e9) if spread else 1e9


def _image_parts(a: Series, b: Series, used: Sequence[Sequence[int]], paired: bool) -> tuple[float, list[float]]:
    """The variance of the difference that is due to images alone; the part of each seed variance that is interaction.

    The mean square of images has that of the interaction in it, which is subtracted: the variance over seeds has it.
    """
    wrong, _, count = wrong_images(a, b, used)
    by_image = wrong[0].mean(0) - wrong[1].mean(0)
    squares = (by_image**2).sum() - by_image.sum() ** 2 / count
    variance, interactions = squares / (count - 1) / count, []
    for each in [wrong[0] - wrong[1]] if paired else wrong:
        n = len(each)
        of_images = (each.sum(0) ** 2).sum() / n
        of_seeds = (each.sum(1) ** 2).sum() / count
        residual = (each**2).sum() - of_images - of_seeds + each.sum() ** 2 / n / count
        interactions.append(float(residual / ((n - 1) * (count - 1)) / count))
        variance -= interactions[-1] / n
    return max(float(variance), 0.0), interactions


def wrong_images(a: Series, b: Series, used: Sequence[Sequence[int]]) -> tuple[list[np.ndarray], np.ndarray, int]:
    """For each series, 1 where a seed gets an image wrong, float [seeds, some images]; their indices; all images.

    The images are those that some seed gets wrong.
    """
    if a.errors is None or b.errors is None or a.count is None or b.count is None:
        raise InputError('images "sampled" needs the errors of each seed by image, as trials have them; give trials')
    if a.count != b.count:
        raise InputError(f"one series was scored on {a.count:,} images, the other on {b.count:,}; give the same")
    errors = [
        series.errors[seed] for series, seeds in zip((a, b), used, strict=True) for seed in seeds if series.errors
    ]
    places, columns = np.unique(np.concatenate([np.asarray(each, int) for each in errors]), return_inverse=True)
    wrong = np.zeros((len(errors), len(places)))
    wrong[np.repeat(np.arange(len(errors)), [len(each) for each in errors]), columns] = 1
    return [wrong[: len(used[0])], wrong[len(used[0]) :]], places, a.count


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
    for i, name in enumerate(names):
        for other in names[i + 1 :]:
            try:
                pairs[name, other] = compare_series(series[name], series[other], images=images, paired=paired)
            except InputError as error:
                raise InputError(f"{name} and {other}: {error}") from error
    corrected = dict(zip(pairs, _holm([pair.p_value for pair in pairs.values()]), strict=True))
    best, found = names[0], {}
    for name in series:
        if name != best:
            pair = pairs[best, name]
            reach = _reach(pair.stderr, pair.df, 1 - (1 - LEVEL) / len(pairs))
            ends = {"low": pair.difference - reach, "high": pair.difference + reach}
            found[name] = pair._replace(p_value=corrected[best, name], **ends)
    return best, found


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
    wrong, places, _ = wrong_images(a, b, [sorted(a.accuracies), sorted(b.accuracies)])
    missed = [each.mean(0) > 0.5 for each in wrong]
    only_a, only_b = (places[one & ~other].tolist() for one, other in (missed[::-1], missed))
    few, both = min(len(only_a), len(only_b)), len(only_a) + len(only_b)
    return McNemar(only_a, only_b, min(1.0, 2 * float(scipy.special.bdtr(few, both, 0.5))))
