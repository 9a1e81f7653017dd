"""README's figures, drawn from the files in `results/`."""

import hashlib
import importlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from tables.accuracy import PUBLIC, frontier, parameters_of, seeds_of

from mnist_jax.data import load_dataset
from mnist_jax.models import ARCHS
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.reports import figures
from mnist_jax.runs.weights import load_pretrained
from mnist_jax.scoring import predict
from mnist_jax.series.records import Trial, last_epoch
from mnist_jax.statistics import error_counts

THEMES = {
    "light": {"ink": "#222222", "paper": "#ffffff", "faint": "#dddddd"},
    "dark": {"ink": "#e6e6e6", "paper": "#16181c", "faint": "#44474d"},
}
LOOKS: dict[str, dict[str, Any]] = {
    "reference": {"fmt": "s", "color": figures.ORANGE, "mfc": "none"},
    "default": {"fmt": "o", "color": figures.BLUE},
}
Points = tuple[int, Sequence[float]]  # Parameters, and accuracies of seeds as fractions.


def write_figures(results: Path) -> list[Path]:
    """Draws README's figures from the files in `results`, light and dark, and writes them to its `figures/`.

    Each carries the hash of what it was drawn from, `sources_hash`.
    """
    networks = {}
    for arch in ARCHS:
        groups = {recipe: seeds_of(results, arch, recipe) for recipe in LOOKS}
        if any(groups.values()):
            accuracies = {recipe: accuracies_of(group) for recipe, group in groups.items() if group}
            networks[arch] = parameters_of(arch), accuracies
    points: dict[str, dict[str, Points]] = {"default": {}, "patient": {}}
    for point in frontier(results):
        points[point.recipe][point.arch] = point.parameters, last_epoch(point.seeds)
    drawings = {
        "ladder": partial(draw_ladder, networks, TARGET_ACCURACY),
        "frontier": partial(draw_frontier, points["default"], points["patient"], TARGET_ACCURACY),
        "errors": partial(draw_errors, seeds_of(results, "bn_dropout", "default")),
    }
    folder, written = results / "figures", []
    folder.mkdir(exist_ok=True)
    for name, draw in drawings.items():
        for theme, colors in THEMES.items():
            written.append(folder / f"{name}-{theme}.png")
            with figures.style(**colors):
                draw().savefig(written[-1], dpi=120, metadata={"Source": sources_hash(results)})
    return written


def accuracies_of(trials: Sequence[Trial]) -> np.ndarray:
    """Test accuracies, fractions [seeds, epochs]."""
    return np.array([[epoch.test_accuracy for epoch in trial.history] for trial in trials])


def sources_hash(results: Path) -> str:
    """SHA-256 of all that the figures show: the files in `results`, and `tables.PUBLIC`."""
    recipes = ("reference", "default", "patient")
    paths = sorted(path for recipe in recipes for path in results.glob(f"series/{recipe}-*.jsonl"))
    quoted = json.dumps(PUBLIC).encode()
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in paths), quoted])).hexdigest()


def draw_errors(trials: Sequence[Trial]) -> Figure:
    """The 30 test images that most seeds get wrong, as the label and what the shipped weights take them for."""
    times = error_counts([trial.errors for trial in trials])
    often = sorted(times, key=lambda index: (-times[index], index))[:30]
    test, trained = load_dataset("mnist").test, load_pretrained("bn_dropout")
    figure = Figure(figsize=(10, 3.5))
    shades = LinearSegmentedColormap.from_list("", [mpl.rcParams["figure.facecolor"], mpl.rcParams["text.color"]])
    for i, index in enumerate(often):
        logits = predict(trained, test.images[index : index + 1])[0]
        guess = max(set(range(10)) - {int(test.labels[index])}, key=logits.__getitem__)  # Or would next.
        axis = figure.add_axes((i % 10 / 10, 0.74 - i // 10 / 3, 0.1, 0.25))
        axis.imshow(test.images[index, ..., 0], cmap=shades)
        axis.set_title(f"{test.labels[index]} as {guess}, {times[index]}/{len(trials)}", y=-0.22, fontsize=8)
        axis.axis("off")
    return figure


def draw_ladder(networks: Mapping[str, tuple[int, Mapping[str, np.ndarray]]], target: float) -> Figure:
    """Test accuracy of every network by each of its recipes, and over the epochs of its `default`.

    Each network has a name, a number of parameters, and by the recipe's name accuracies, fractions [seeds, epochs].
    """
    figure = Figure(figsize=(10, 4.6))
    left, right = figure.add_axes((0.13, 0.12, 0.34, 0.8)), figure.add_axes((0.55, 0.12, 0.435, 0.8))
    last = [target]
    for i, (_, recipes) in enumerate(networks.values()):
        for recipe, accuracies in recipes.items():
            mean, reach = figures.seed_range(accuracies)
            last += [*accuracies[:, -1]]
            left.errorbar(mean, i, xerr=reach, capsize=4, **LOOKS[recipe])
        if "default" in recipes:
            figures.curve(right, i, recipes["default"], list(networks)[i])
    for recipe, look in LOOKS.items():
        left.errorbar([], [], [], label=recipe, **look)
    names = [f"{name}\n{parameters:,}" for name, (parameters, _) in networks.items()]
    left.set_yticks(range(len(names)), names)
    left.set(
        xlabel="test accuracy, %, last epoch", title="mean, lowest and highest seed", ylim=(len(names) - 0.5, -0.5)
    )
    left.axvline(target, color=figures.GREEN, ls="--", lw=1)
    left.legend(loc="lower left", title="recipe")
    figures.by_error(left, "x", min(last), max(last))
    right.axhline(target, color=figures.GREEN, ls="--", lw=1)
    right.set(xlabel="epoch", ylabel="test accuracy, %", title="default: mean, lowest to highest seed")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.legend(loc="lower right", ncols=2)
    figures.by_error(right, "y", min(0.95, *last), max(last))
    return figure


def draw_frontier(ours: Mapping[str, Points], patient: Mapping[str, Points], target: float) -> Figure:
    """Accuracy against parameters: means of seeds, from the lowest to the highest, beside the public runs.

    Args:
      ours: parameters and each seed's accuracy, a fraction, of networks by name; layouts stay without one.
      patient: the same of networks trained for longer.
      target: where to draw a line, a fraction.
    """
    (figure, axis), means = figures.new_axis(10, 4.6), []
    taken = [(parameters, accuracy / 100) for parameters, accuracy, *_ in PUBLIC]
    axis.plot(*zip(*taken, strict=True), "s", color=figures.ORANGE, mfc="none", label="public, best epoch of one seed")
    for color, mark, label, group in (
        (figures.BLUE, "o", "ours, last epoch, mean and range of seeds", ours),
        (figures.GREEN, "D", "with patience", patient),
    ):
        for i, (parameters, accuracies) in enumerate(group.values()):
            seeds = np.array(accuracies)[:, None]
            mean, reach = figures.seed_range(seeds)
            means.append((parameters, mean))
            taken += [(parameters, accuracy) for accuracy in np.linspace(seeds.min(), seeds.max(), 9)]
            axis.errorbar(parameters, mean, reach, fmt=mark, color=color, capsize=4, label="" if i else label)
    axis.axhline(target, color=figures.GREEN, ls="--", lw=1)
    axis.set(xscale="log", xlabel="parameters", ylabel="test accuracy, %")
    axis.margins(x=0.14)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    figures.by_error(axis, "y", *(pick(accuracy for _, accuracy in taken) for pick in (min, max)))
    axis.legend(loc="lower right")
    texts = [axis.text(*place, name, fontsize=9) for name, place in zip(ours, means, strict=False) if "-" not in name]
    importlib.import_module("adjustText").adjust_text(
        texts,
        *zip(*taken, strict=True),
        ax=axis,
        expand=(1.4, 1.6),
        iter_lim=300,  # Not a time, the default: the figure would depend on how busy the machine is.
        arrowprops={"arrowstyle": "-", "color": mpl.rcParams["text.color"], "lw": 0.6},
    )
    return figure
