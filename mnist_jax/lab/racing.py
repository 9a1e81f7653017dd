"""Several settings against the best of them: which to train with another seed, and how they rank."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mnist_jax.differences import LEVEL, Series, against_best
from mnist_jax.lab.records import Trial

# The columns of a ranking and their widths: 80 with the spaces between.
COLUMNS = {"": 1, "accuracy": 8, "std": 7, "seeds": 5, "to best": 8, "95% interval": 20, "loss": 8, "training": 8}
COLUMNS |= {"seconds": 7}
ERROR = 0.05


def next_setting(
    accuracies: Sequence[Sequence[float]], difference: float, images: int, error: float = ERROR
) -> int | None:
    """Chooses the setting to train next: of the best and its closest rival the one with fewer seeds.

    Every setting gets one seed first. The choice is that of UGapE: Gabillon, Ghavamzadeh and Lazaric, "Best arm
    identification: a unified approach to fixed budget and fixed confidence", NeurIPS 2012. A pair is judged by Wald's
    sequential test of the best being ahead or behind by D, the difference, with an estimated variance as in Kim and
    Nelson, "A fully sequential procedure for indifference-zone selection in simulation", ACM TOMACS 11, 2001: with a
    lead L of variance V on f degrees of freedom the odds are (1 + 4 D L / (f V)) ** (-f / 2) that it is behind, for
    many seeds exp(-2 D L / V). The best is resolved when the odds of all pairs sum up to those of `error`. The variance
    over seeds is one for all settings, pooled, and no less than that of rounding to whole images.

    Args:
      accuracies: for each setting, a fraction per seed; nan for a seed in training.
      difference: the lead to resolve, a fraction; of two settings closer than that, either is taken.
      images: number of scored images.
      error: probability, at most, that a setting that is better by the difference is not the one resolved.

    Returns:
      The index of the setting, or None if the best is resolved.
    """
    begun = np.array([len(each) for each in accuracies])
    done = [[accuracy for accuracy in each if accuracy == accuracy] for each in accuracies]
    n = np.array([len(each) for each in done])
    if not n.all():
        return int(begun.argmin())
    if len(n) < 2:
        return None
    means = np.array([np.mean(each) for each in done])
    best = int(means.argmax())
    others = np.arange(len(n)) != best
    leads = means[best] - means
    if (df := n.sum() - len(n)) > 0:
        squares = sum(float(np.var(each)) * len(each) for each in done)
        variance = max(squares / df, 1 / (12 * images**2)) * (1 / n[best] + 1 / n)
        odds = (1 + 4 * difference * leads / (df * variance)) ** (-df / 2)
        if odds[others].sum() <= error / (1 - error):
            return None
    ranks = np.where(others, leads / (1 / begun[best] + 1 / begun), np.inf)
    rival = int(ranks.argmin())
    return best if begun[best] <= begun[rival] else rival


def ranking(trials: Mapping[str, Sequence[Trial]]) -> Iterator[str]:
    """The lines of a table, the best first: figures, 80 characters wide, below the whole name of each setting.

    Differences are corrected for the number of settings by `against_best`. A setting of one seed has no interval. What
    diverged is left out.
    """
    rows = []
    for name, ran in trials.items():
        if ran and not any(trial.diverged for trial in ran):
            figures = [(t.history[-1].test_loss, t.train_accuracy, t.seconds) for t in ran]
            accuracies = [trial.history[-1].test_accuracy for trial in ran]
            rows.append((name, accuracies, np.mean(accuracies), *np.mean(figures, 0), ran[0]))
    rows.sort(key=lambda row: (-row[2], row[3]))
    series = {name: Series(dict(enumerate(accuracies))) for name, accuracies, *_ in rows if len(accuracies) > 1}
    compared = against_best(series)[1] if len(series) > 1 and rows[0][0] in series else {}
    yield _line(COLUMNS)
    for name, accuracies, mean, loss, trained, seconds, trial in rows:
        mark = interval = lead = std = ""
        if name != rows[0][0]:
            mark, lead = "?", f"{mean - rows[0][2]:+.3%}"
        if other := compared.get(name):
            mark = "=" if other.p_value > 1 - LEVEL else ""
            interval = f"{-other.high:+.3%} to {-other.low:+.3%}"
        if len(accuracies) > 1:
            std = f"{np.std(accuracies, ddof=1):.3%}"
        products = f"{(trial.multiply_adds or 0) / 1e6:.2f} million multiply-adds"
        yield f"{name}; {trial.parameters:,} parameters, {products}"
        figures = (f"{loss:.5f}", f"{trained:.3%}", f"{seconds:.0f}")
        yield _line((mark, f"{mean:.3%}", std, len(accuracies), lead, interval, *figures))
    if compared:
        pairs = math.comb(len(series), 2)
        yield f"= cannot be told from the best (Welch, p > 0.05; pairs corrected by Holm: {pairs})"
    if len(compared) < len(rows) - 1:
        yield "? cannot be told: it or the best has one seed"


def _line(cells: Iterable[Any]) -> str:
    return " ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)).rstrip()
