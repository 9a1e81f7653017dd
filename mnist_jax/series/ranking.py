"""A table of settings, the best first, each with its difference from the best."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mnist_jax.differences import LEVEL, Series, against_best
from mnist_jax.series.records import Trial

# The columns of a ranking and their widths: 80 with the spaces between.
COLUMNS = {"": 1, "accuracy": 8, "std": 7, "seeds": 5, "to best": 8, "95% interval": 20, "loss": 8, "training": 8}
COLUMNS |= {"seconds": 7}


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
