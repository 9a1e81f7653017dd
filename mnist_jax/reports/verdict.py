"""Series of seeds compared on one page: seeds as dots, a forest plot, and the images that differ."""

import statistics
from collections.abc import Mapping, Sequence
from math import floor, isfinite, log10
from pathlib import Path
from typing import Any

from mnist_jax.data import Dataset
from mnist_jax.differences import Comparison, McNemar, Series
from mnist_jax.reports import figures, render, report


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
    means = {name: statistics.fmean(each.accuracies.values()) for name, each in series.items()}
    percent = {name: [100 * accuracy for accuracy in each.accuracies.values()] for name, each in series.items()}
    dots = {name: _dots(accuracies) for name, accuracies in percent.items()}
    ends = [100 * end for each in others.values() for end in (each.low, each.high, 0) if isfinite(end)]
    first = next(iter(others.values()))
    page = render(
        "verdict.html",
        best=best,
        means=means,
        dots=dots,
        accuracies=_Axis([value for each in dots.values() for value, _ in each]),
        differences=_Axis(ends),
        others=others,
        fixed=first.images == "fixed",
        paired=first.paired,
        scored=series[best].scored,
        texts=texts,
        differing={name: _differing(best, name, each, data) for name, each in differing.items()},
        isfinite=isfinite,
    )
    out.write_text(page, encoding="utf-8")


class _Axis:
    """A horizontal axis over some values, whose ticks are round numbers; a place is a percentage of its width."""

    def __init__(self, values: Sequence[float]):
        locator = figures.MaxNLocator(4, steps=[1, 2, 5, 10])
        self.ticks = locator.tick_values(min(values), max(values) + 1e-3)
        self.digits = max(0, -floor(log10(self.ticks[1] - self.ticks[0]) + 1e-9))

    def place(self, value: float) -> str:
        """Where a value is; the first and last tick are 6% from the edges, for their numbers."""
        low, high = self.ticks[0], self.ticks[-1]
        return f"{6 + 88 * (value - low) / (high - low):.2f}%"

    def label(self, tick: float) -> str:
        """A tick's number."""
        return f"{tick:.{self.digits}f}"


def _dots(values: Sequence[float]) -> list[tuple[float, int]]:
    """Each value and how many equal ones are under it."""
    seen: dict[float, int] = {}
    placed = []
    for value in sorted(values):
        place = round(value, 6)
        placed.append((value, seen.get(place, 0)))
        seen[place] = seen.get(place, 0) + 1
    return placed


def _differing(best: str, other: str, result: McNemar, data: Dataset | None) -> dict[str, Any]:
    """The images of each side with their pictures."""
    sides = []
    for right, wrong, indices in ((best, other, result.only_a), (other, best, result.only_b)):
        shown = None
        if data and indices:
            captions = [f"{data.classes[data.test.labels[index]]}, {index}" for index in indices]
            alt = f"Images that most seeds of {right} get right and most of {wrong} wrong."
            shown = report.picture_of_digits(data.test.images[indices], captions, alt)
        sides.append({"right": right, "wrong": wrong, "indices": indices, "picture": shown})
    return {"sides": sides, "p_value": result.p_value}
