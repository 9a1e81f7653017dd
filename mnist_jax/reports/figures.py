"""The pictures of a report: numbers in, a matplotlib `Figure` out, in colors that the color-blind tell apart."""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from mnist_jax.differences import Comparison
from mnist_jax.statistics import Calibration

# Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_CYCLE = (BLUE, ORANGE, RED, "#56B4E9", "#CC79A7", "#8C6D00")
_MARKERS = "osD^vPX"  # One more than colors, so that both repeat together after 42 only.


def style(ink: str = "#222222", paper: str = "none", faint: str = "#dddddd") -> contextlib.AbstractContextManager[None]:
    """Matplotlib's settings for figures in these colors, with names as text: no formulas, and in the viewer's fonts."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    papered = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    settings: dict[Any, Any] = {
        **dict.fromkeys(inked, ink),
        **dict.fromkeys(papered, paper),
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon", "text.parse_math"), False),
        "grid.color": faint,
        "font.size": 10,
        "svg.fonttype": "none",
    }
    return mpl.rc_context(settings)


def svg(figure: Figure) -> bytes:
    """A figure as SVG, without its date."""
    file = io.BytesIO()
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # Our font lacks it, and the viewer's may have it.
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def new_axis(width: float, height: float, below: float = 0.5, left: float = 0.8) -> tuple[Figure, Any]:
    """An empty figure, in inches, with room for the labels; a layout engine would cost half the drawing's time."""
    figure = Figure(figsize=(width, height))
    margin = 0.12
    box = (left / width, below / height, 1 - (left + margin) / width, 1 - (below + margin) / height)
    return figure, figure.add_axes(box)


def losses(series: Mapping[str, np.ndarray]) -> Figure:
    """Losses over the epochs, float [seeds, epochs] by name."""
    figure, axis = _curves(series, "cross-entropy in nats, log scale")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high > 20 * low else (1.5, 2, 3, 4, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.grid(visible=True, which="minor")
    return figure


def accuracies(series: Mapping[str, np.ndarray], target: float) -> Figure:
    """Accuracies over the epochs, fractions [seeds, epochs] by name, and a line at a target."""
    figure, axis = _curves(series, "accuracy, %")
    axis.axhline(target, color=GREEN, ls="--", lw=1)
    values = np.concatenate([curves.ravel() for curves in series.values()])
    lowest = min(curves[:, -1].min() for curves in series.values())
    by_error(axis, "y", max(1 - 4 * (1 - lowest), values.min()), max(values.max(), target))
    return figure


def learning_rates(rates: np.ndarray) -> Figure:
    """The learning rate of every step, float [steps]."""
    figure, axis = new_axis(5.2, 2.4)
    axis.plot(np.arange(1, len(rates) + 1), rates, color=BLUE)
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, 1.1 * rates.max()))
    return figure


def _curves(series: Mapping[str, np.ndarray], label: str) -> tuple[Figure, Any]:
    legend = 0.6 + 0.17 * len(series)  # Inches, below the axis, where it covers no curve.
    figure, axis = new_axis(5.2, 3 + legend, below=legend)
    for i, (name, values) in enumerate(series.items()):
        curve(axis, i, values, name)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="lower left", fontsize=8, borderaxespad=0)
    return figure, axis


def curve(axis: Any, number: int, seeds: np.ndarray, label: str) -> None:
    """The mean over the epochs and a band from the lowest to the highest seed, in the look of this number."""
    look = {"color": _CYCLE[number % len(_CYCLE)], "marker": _MARKERS[number % len(_MARKERS)]}
    look["ls"] = ("-", "--", ":")[number // len(_CYCLE) % 3]
    epochs = np.arange(1, seeds.shape[1] + 1)
    axis.plot(epochs, seeds.mean(0), ms=4, label=label, **look)
    if len(seeds) > 1:
        axis.fill_between(epochs, seeds.min(0), seeds.max(0), color=look["color"], alpha=0.2, lw=0)


def by_error(axes: Any, which: str, low: float, high: float) -> None:
    """Makes axis "x" or "y" one of accuracies, fractions from the lowest to the highest, by their errors' logarithm."""
    low, high = max(1 - 1.2 * max(1 - low, 4e-4), 0.005), 1 - max(1 - high, 4e-4) / 1.2
    axes.set(**{f"{which}scale": "logit", f"{which}lim": (low, high)})
    ticks = [tick for tick in (0.02, 0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.994, 0.996, 0.998) if low < tick < high]
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks) if len(ticks) > 2 else MaxNLocator(5))
    axis.set_major_formatter(lambda share, _: f"{100 * share:g}")
    axis.set_minor_locator(NullLocator())


def seed_range(seeds: np.ndarray) -> tuple[float, list[list[float]]]:
    """Mean of the last epoch, and how far below and above it the seeds reach."""
    last = seeds[:, -1]
    mean = last.mean()
    return mean, [[mean - last.min()], [last.max() - mean]]


def reliability(result: Calibration) -> Figure:
    """Accuracy against confidence; points on the diagonal are worth what they say."""
    figure, axis = new_axis(5.2, 3.6)
    axis.plot([0, 1], [0, 1], "--", color=GREEN, lw=1, label="calibrated")
    axis.plot(result.confidence, result.accuracy, "o-", color=BLUE, ms=4, label="this network")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.legend(title=f"calibration error {100 * result.error:.2f} %", loc="upper left")
    return figure


def seed_dots(series: Mapping[str, np.ndarray]) -> Figure:
    """Accuracies in percent by name: a dot for each seed, equal ones on top of each other, and a line at the mean."""
    figure, axis = _rows([*series], "accuracy, %")
    for i, accuracies in enumerate(series.values()):
        values = np.sort(np.round(accuracies, 6))
        equal = np.arange(len(values)) - np.searchsorted(values, values)
        step = min(0.09, 0.4 / max(equal.max(), 1))
        axis.plot(values, i + 0.35 - step * equal, "o", color=BLUE, alpha=0.75, ms=5)
        axis.vlines(np.mean(accuracies), i - 0.1, i + 0.45, color=mpl.rcParams["text.color"])
    return figure


def differences(others: Mapping[str, Comparison]) -> Figure:
    """Differences by name in percentage points, with the intervals that are bounded."""
    figure, axis = _rows([*others], "percentage points")
    axis.axvline(0, color=mpl.rcParams["text.color"], ls="--", lw=1)
    for i, result in enumerate(others.values()):
        low, middle, high = (100 * value for value in (result.low, result.difference, result.high))
        reach = [[middle - low], [high - middle]] if np.isfinite(low) else None
        axis.errorbar(middle, i + 0.2, xerr=reach, fmt="o", color=BLUE, capsize=4)
    return figure


def _rows(names: Sequence[str], label: str) -> tuple[Figure, Any]:
    """A figure with a row for each name, which is written over its row."""
    figure, axis = new_axis(5.2, 0.7 + 0.7 * len(names), left=0.12)
    for i, name in enumerate(names):
        axis.text(0, i - 0.3, name, transform=axis.get_yaxis_transform(), va="center", fontsize=9)
    axis.set(xlabel=label, yticks=[], ylim=(len(names) - 0.4, -0.5))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.ticklabel_format(axis="x", useOffset=False)
    axis.spines["left"].set_visible(False)
    return figure, axis
