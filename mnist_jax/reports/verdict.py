"""Series of seeds compared on one page: seeds as dots, their differences, and the images that differ."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import fmean

import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.differences import Comparison, McNemar, Series
from mnist_jax.reports import figures, render
from mnist_jax.reports.page import Section, picture, small_images
from mnist_jax.runs.files import write_text

COLUMNS = ("less", "points", "95% interval", "p", "variance by images", "a seed beats one of it", "seeds")


def write_verdict(
    series: Mapping[str, Series],
    best: str,
    others: Mapping[str, Comparison],
    differing: Mapping[str, McNemar],
    texts: Sequence[str],
    data: Dataset | None,
    out: Path,
) -> None:
    """Writes the page.

    Args:
      series: by name, as compared.
      best: the name of the most accurate.
      others: by name of each other, the best less it.
      differing: the images that only the best or only the other gets right; empty if errors are not known.
      texts: the claims as sentences.
      data: what was scored, in `test`; None where it cannot be had, and images are told by their indices alone.
      out: file to write; raises OSError if it cannot be written.
    """
    percent = {name: 100 * np.array([*one.accuracies.values()]) for name, one in series.items()}
    first, scored = next(iter(others.values())), series[best].scored
    lines = [
        f"{best} less each other, in percentage points, with its 95% interval. "
        + ("Seeds are random, images fixed." if first.images == "fixed" else "Seeds and images are random.")
        + (" Seeds are paired." if first.paired else "")
    ]
    if len(others) > 1:
        lines.append(
            "The same data chose the best, so all pairs are corrected for: p-values by Holm's method, intervals by "
            "Bonferroni's."
        )
    values = [
        (name, f"{100 * fmean(one.accuracies.values()):.3f}", len(one.accuracies)) for name, one in series.items()
    ]
    caption = f"Accuracy{f' on {scored}' if scored else ''}: a dot for each seed, a line at their mean."
    with figures.style():
        dots = picture(figures.seed_dots(percent), caption)
        intervals = picture(figures.differences(others), f"{best} less the other: mean and 95% interval.")
    sections = [
        Section(lines=texts),
        Section("Seeds", pictures=[dots], table=[("series", "mean, %", "seeds"), *values]),
        Section("Differences", lines, pictures=[intervals], table=[COLUMNS, *map(_row, others, others.values())]),
    ]
    for name, result in differing.items():
        lines = [
            "A network gets an image right if more than half its seeds do. "
            f"p = {result.p_value:.2g} by McNemar's exact test."
        ]
        sections.append(_alone(f"{best} alone, not {name}", lines, result.only_a, data))
        sections.append(_alone(f"{name} alone, not {best}", lines, result.only_b, data))
    write_text(out, render("report.html", title=f"Is {best} better?", sections=sections))


def _row(name: str, result: Comparison) -> tuple[str, ...]:
    """A difference, in the order of `COLUMNS`."""
    interval = f"{100 * result.low:.3f} to {100 * result.high:.3f}" if isfinite(result.low) else "unbounded"
    p = f"{result.p_value:.2g}" if result.p_value >= 1e-4 else "< 0.0001"
    shares = f"{result.image_share:.0%}" if result.images == "sampled" else "-", f"{result.chance:.0%}"
    return name, f"{100 * result.difference:.3f}", interval, p, *shares, " and ".join(map(str, result.seeds))


def _alone(title: str, lines: Sequence[str], indices: Sequence[int], data: Dataset | None) -> Section:
    """The images that one series gets right and the other wrong, or their indices."""
    lines = [f"{len(indices)} images.", *lines]
    if data is None:
        return Section(title, [*lines, ", ".join(map(str, indices))])
    captions = [f"{data.classes[data.test.labels[index]]}, {index}" for index in indices]
    return Section(title, lines, images=small_images(data.test.images[[*indices]], captions))
