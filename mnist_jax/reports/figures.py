"""The pictures of a report: numbers in, a matplotlib `Figure` out, in colors that the color-blind tell apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnist_jax.reports import any_backend
from mnist_jax.statistics import Calibration
from mnist_jax.training import EpochMetrics

with any_backend():
    import matplotlib as mpl
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullFormatter

# Okabe and Ito, "Color Universal Design", 2008.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
_CYCLE = (BLUE, ORANGE, RED, "#56B4E9", "#CC79A7", "#8C6D00")
_MARKERS = "osD^vPX"  # One more than colors, so that both repeat together after 42 only.
_MOST = 200  # Digits in one picture; a table beside it lists all.


def losses(history: Sequence[EpochMetrics], scored: str) -> Figure:
    """Training loss and that on what was scored, "test" or "held-out", over the epochs."""
    figure, axis = _curves(history, scored, "loss", "cross-entropy in nats, log scale")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    subs = (2, 5) if high > 20 * low else (1.5, 2, 3, 4, 5, 7)
    axis.yaxis.set_minor_locator(LogLocator(subs=subs))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.grid(visible=True, which="minor")
    axis.legend()
    return figure


def learning_rates(rates: np.ndarray) -> Figure:
    """The learning rate of every step, float [steps]."""
    figure, axis = new_axis(5.2, 2.4)
    axis.plot(np.arange(1, len(rates) + 1), rates, color=BLUE)
    axis.set(xlabel="step", ylabel="learning rate", ylim=(0, 1.1 * rates.max()))
    return figure


def accuracies(history: Sequence[EpochMetrics], scored: str, target: float) -> Figure:
    """Training accuracy and that on what was scored over the epochs, and a line at a target, a fraction."""
    figure, axis = _curves(history, scored, "accuracy", "accuracy, %", 100)
    axis.axhline(100 * target, color=GREEN, ls="--", lw=1, label=f"{100 * target:.1f}")
    low = min(100 * target, np.median([100 * metrics.test_accuracy for metrics in history])) - 1
    axis.set_ylim(max(low, 0), 100)
    axis.legend(loc="lower right")
    return figure


def new_axis(width: float, height: float) -> tuple[Figure, Any]:
    """An empty figure, in inches, with room for the labels; a layout engine would cost half the drawing's time."""
    figure = Figure(figsize=(width, height))
    left, below, margin = 0.8, 0.5, 0.12
    box = (left / width, below / height, 1 - (left + margin) / width, 1 - (below + margin) / height)
    return figure, figure.add_axes(box)


def _curves(
    history: Sequence[EpochMetrics], scored: str, figure: str, label: str, factor: float = 1
) -> tuple[Figure, Any]:
    drawn, axis = new_axis(5.2, 3.6)
    epochs = [metrics.epoch for metrics in history]
    for split, name, color, marker in (("train", "train", BLUE, "o"), ("test", scored, ORANGE, "s")):
        values = [factor * getattr(metrics, f"{split}_{figure}") for metrics in history]
        axis.plot(epochs, values, marker=marker, color=color, ms=3, label=name)
    axis.set(xlabel="epoch", ylabel=label)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return drawn, axis


def by_error(axis: Any, which: str, low: float, high: float) -> None:
    """Draws accuracies in percent, from the lowest to the highest, on the logarithm of the error: 99 to 99.9 is far."""
    limits = 100 - max(100 - low, 0.04) * 1.2, 100 - max(100 - high, 0.04) / 1.2
    getattr(axis, f"set_{which}scale")(
        "function",
        functions=(
            lambda share: -np.log10(np.maximum(100 - share, 1e-3)),
            lambda place: 100 - 10.0**-place,
        ),
    )
    ticks = [0, 50, 80, 90, 95, 98, 99, 99.2, 99.4, 99.6, 99.8, 99.9]
    inside = [tick for tick in ticks if limits[0] < tick < limits[1]]
    getattr(axis, f"{which}axis").set_major_locator(FixedLocator(inside) if len(inside) > 2 else MaxNLocator(5))
    getattr(axis, f"{which}axis").set_major_formatter("{x:g}")
    axis.set(**{f"{which}lim": (max(limits[0], 0), limits[1])})


def seed_accuracies(histories: Sequence[Sequence[EpochMetrics]]) -> np.ndarray:
    """Accuracies on what was scored, in percent, float [seeds, epochs]."""
    return 100 * np.array([[epoch.test_accuracy for epoch in history] for history in histories])


def curve(axis: Any, number: int, seeds: np.ndarray, label: str) -> None:
    """The mean over the epochs and a band from the lowest to the highest seed, in the look of this number."""
    look = {"color": _CYCLE[number % len(_CYCLE)], "marker": _MARKERS[number % len(_MARKERS)]}
    look["ls"] = ("-", "--", ":")[number // len(_CYCLE) % 3]
    epochs = np.arange(1, seeds.shape[1] + 1)
    axis.plot(epochs, seeds.mean(0), ms=4, label=label, **look)
    if len(seeds) > 1:
        axis.fill_between(epochs, seeds.min(0), seeds.max(0), color=look["color"], alpha=0.2, lw=0)


def seed_range(seeds: np.ndarray) -> tuple[float, list[list[float]]]:
    """Mean of the last epoch, and how far below and above it the seeds reach."""
    last = seeds[:, -1]
    mean = last.mean()
    return mean, [[mean - last.min()], [last.max() - mean]]


def comparison(
    groups: Mapping[str, tuple[int, Sequence[Sequence[EpochMetrics]]]], scored: str, target: float
) -> Figure:
    """Accuracy against parameters, and over the epochs, on "test" or "held-out" images, and a line at a target.

    Each group has a name, a number of parameters and the history of each of its seeds.
    """
    legend = 0.25 + 0.2 * -(-len(groups) // 3)  # Inches, below the axes, where it covers no curve.
    height = 4.2 + legend
    below, share = (0.55 + legend) / height, 3.5 / height
    figure = Figure(figsize=(10, height))
    left = figure.add_axes((0.08, below, 0.36, share))
    right = figure.add_axes((0.53, below, 0.455, share))
    last = [100 * target]
    for i, (name, (parameters, histories)) in enumerate(groups.items()):
        seeds = seed_accuracies(histories)
        mean, reach = seed_range(seeds)
        last += [*seeds[:, -1]]
        marker, color = _MARKERS[i % len(_MARKERS)], _CYCLE[i % len(_CYCLE)]
        left.errorbar(parameters, mean, reach, fmt=marker, color=color, capsize=4)
        curve(right, i, seeds, f"{name} ({len(seeds)})")
    for axis, low in ((left, min(last)), (right, 100 - 4 * (100 - min(last)))):
        axis.axhline(100 * target, color=GREEN, ls="--", lw=1)
        by_error(axis, "y", max(low, 0), max(last))
    left.set(xlabel="parameters", ylabel=f"{scored} accuracy, %, last epoch")
    left.margins(x=0.15)
    sizes = [parameters for parameters, _ in groups.values()]
    if max(sizes) > 3 * min(sizes):
        left.set_xscale("log")
        left.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        left.xaxis.set_minor_formatter(NullFormatter())
    else:
        left.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    left.xaxis.set_major_formatter("{x:,.0f}")
    right.set(xlabel="epoch", ylabel=f"{scored} accuracy, %")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="lower center", ncols=3, title="runs (seeds)", fontsize=8, title_fontsize=9)
    return figure


def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Confusion matrix: errors shaded, every count written. `counts` is int [K, K], true classes in rows."""
    figure, axis = new_axis(5.2, 4.8)
    errors = counts - np.diag(np.diag(counts))
    shades = np.sqrt(errors)
    axis.imshow(shades, cmap="Blues", vmin=0, vmax=max(shades.max() * 1.4, 1))
    size, wide = min(8, 110 / len(classes)), max(map(len, classes)) > 2
    for i, j in np.ndindex(counts.shape):
        color = "#8a8a8a" if i != j and not counts[i, j] else "#1a1a1a"
        axis.text(j, i, counts[i, j], ha="center", va="center", fontsize=size, color=color)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_xticks(range(len(classes)), classes, fontsize=size, rotation=90 if wide else 0)
    axis.set_yticks(range(len(classes)), classes, fontsize=size)
    axis.grid(visible=False)
    return figure


def reliability(result: Calibration) -> Figure:
    """Accuracy against confidence; points on the diagonal are worth what they say."""
    figure, axis = new_axis(5.2, 3.6)
    axis.plot([0, 1], [0, 1], "--", color=GREEN, lw=1, label="calibrated")
    axis.plot(result.confidence, result.accuracy, "o-", color=BLUE, ms=4, label="this network")
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    axis.legend(title=f"calibration error {100 * result.error:.2f} %", loc="upper left")
    return figure


def digits(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Images in rows of ten, each with a caption under it. `images` are [N, H, W, C], of which 200 are drawn.

    One channel is drawn in ink on paper, three as colors.
    """
    images, captions = images[:_MOST], captions[:_MOST]
    images = images if images.shape[-1] == 3 else images[..., 0]
    _, height, width = images.shape[:3]
    below, beside = round(height * 3 / 7), round(width * 3 / 14)  # Room for the caption, in pixels of the images.
    paper, ink = (to_rgb(mpl.rcParams[name]) for name in ("figure.facecolor", "text.color"))
    shares = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    if images.ndim == 3:
        shares = np.array(paper) + shares[..., None] * np.subtract(ink, paper)
    tiles = np.empty((len(shares), height // 14 + height + below, width + 2 * beside, 3), np.uint8)
    tiles[:] = np.rint(255 * np.array(paper))
    tiles[:, height // 14 : height // 14 + height, beside : beside + width] = np.rint(255 * shares)
    figure, axis = _tiled(tiles, columns=10, width=10.0)
    down, across = tiles.shape[1:3]
    for i, caption in enumerate(captions):
        x, y = i % 10 * across + (across - 1) / 2, i // 10 * down + down - below / 2
        axis.text(x, y, caption, ha="center", va="center", fontsize=8)
    return figure


def kernels(weights: np.ndarray) -> Figure:
    """The kernels of a first convolution, float [height, width, inputs, channels]; blue is negative, red positive."""
    limit = np.abs(weights).max()
    flat = weights.reshape(*weights.shape[:2], -1).transpose(2, 0, 1)
    tiles = np.pad(flat, ((0, 0), (0, 1), (0, 1)), constant_values=np.nan)
    return _tiled(tiles, columns=8, width=5.2, cmap="RdBu_r", vmin=-limit, vmax=limit)[0]


def _tiled(tiles: np.ndarray, columns: int, width: float, **options) -> tuple[Figure, Any]:
    """Tiles [N, H, W] or [N, H, W, 3] in rows, as one image, which draws many times faster than an axis for each."""
    count, height, breadth, *colors = tiles.shape
    rows = max(-(-count // columns), 1)
    blank = tiles[0, -1, -1] if count else 0  # Tiles have an edge of paper.
    empty = np.full((rows * columns - count, height, breadth, *colors), blank, tiles.dtype)
    grid = np.concatenate([tiles, empty]).reshape(rows, columns, height, breadth, *colors).swapaxes(1, 2)
    figure = Figure(figsize=(width, width * rows * height / (columns * breadth)))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.imshow(grid.reshape(rows * height, columns * breadth, *colors), **options)
    axis.axis("off")
    return figure, axis
