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
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from tables.accuracy import PUBLIC, frontier, parameters_of, seeds_of

from mnist_jax.data import load_dataset
from mnist_jax.models import ARCHS
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.reports import figures, themes
from mnist_jax.runs.weights import load_pretrained
from mnist_jax.scoring import predict
from mnist_jax.series.records import last_epoch
from mnist_jax.statistics import error_counts
from mnist_jax.training import EpochMetrics

Points = tuple[int, Sequence[float]]  # Parameters, and accuracies of seeds as fractions.


def write_figures(results: Path) -> list[Path]:
    """Draws README's figures from the files in `results`, light and dark, and writes them to its `figures/`.

    Each carries the hash of what it was drawn from, `sources_hash`.
    """
    seeds = {
        arch: {recipe: group for recipe in ("reference", "default") if (group := seeds_of(results, arch, recipe))}
        for arch in ARCHS
    }
    networks = {
        arch: (parameters_of(arch), {recipe: [seed.history for seed in group] for recipe, group in groups.items()})
        for arch, groups in seeds.items()
        if groups
    }
    ladder = partial(draw_ladder, networks, TARGET_ACCURACY)
    points: dict[str, dict[str, Any]] = {"default": {}, "patient": {}}
    for point in frontier(results):
        points[point.recipe][point.arch] = point.parameters, last_epoch(point.seeds)
    public, patient = [(parameters, accuracy) for parameters, accuracy, *_ in PUBLIC], [*points["patient"].values()]
    sizes = partial(draw_frontier, points["default"], public, TARGET_ACCURACY, patient)
    counted = seeds["bn_dropout"].get("default", [])
    times = error_counts([seed.errors for seed in counted])
    often = sorted(times, key=lambda index: (-times[index], index))[:30]
    test, trained = load_dataset("mnist").test, load_pretrained("bn_dropout")
    captions = []
    for index in often:
        # The likeliest digit but the label: what the shipped weights take the image for, or would next.
        logits = predict(trained, test.images[index : index + 1])[0]
        guess = max(set(range(10)) - {int(test.labels[index])}, key=logits.__getitem__)
        captions.append(f"{test.labels[index]} as {guess}, {times[index]}/{len(counted)}")
    errors = partial(figures.digits, test.images[often], captions)
    folder, written = results / "figures", []
    folder.mkdir(exist_ok=True)
    for name, draw, colors in (
        ("ladder-light", ladder, themes.LIGHT),
        ("ladder-dark", ladder, themes.DARK),
        ("frontier-light", sizes, themes.LIGHT),
        ("frontier-dark", sizes, themes.DARK),
        ("errors-light", errors, themes.LIGHT),
        ("errors-dark", errors, themes.DARK),
    ):
        written.append(folder / f"{name}.png")
        written[-1].write_bytes(themes.png(draw, colors, {"Source": sources_hash(results)}))
    return written


def sources_hash(results: Path) -> str:
    """SHA-256 of all that the figures show: the files in `results`, and `tables.PUBLIC`."""
    recipes = ("reference", "default", "patient")
    paths = sorted(path for recipe in recipes for path in results.glob(f"series/{recipe}-*.jsonl"))
    quoted = json.dumps(PUBLIC).encode()
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in paths), quoted])).hexdigest()


def draw_ladder(
    networks: Mapping[str, tuple[int, Mapping[str, Sequence[Sequence[EpochMetrics]]]]], target: float
) -> Figure:
    """Test accuracy of every network by each of its recipes, and over the epochs of its `default`.

    Each network has a name, a number of parameters, and by the recipe's name the history of each seed.
    """
    figure = Figure(figsize=(10, 4.6))
    left, right = figure.add_axes((0.13, 0.12, 0.34, 0.8)), figure.add_axes((0.55, 0.12, 0.435, 0.8))
    looks: dict[str, dict[str, Any]] = {
        "reference": {"fmt": "s", "color": figures.ORANGE, "mfc": "none"},
        "default": {"fmt": "o", "color": figures.BLUE},
    }
    last = [100 * target]
    for i, (_, recipes) in enumerate(networks.values()):
        for recipe, histories in recipes.items():
            seeds = figures.seed_accuracies(histories)
            mean, reach = figures.seed_range(seeds)
            last += [*seeds[:, -1]]
            left.errorbar(mean, i, xerr=reach, capsize=4, **looks[recipe])
        if "default" in recipes:
            figures.curve(right, i, figures.seed_accuracies(recipes["default"]), list(networks)[i])
    for recipe, look in looks.items():
        left.errorbar([], [], [], label=recipe, **look)
    names = [f"{name}\n{parameters:,}" for name, (parameters, _) in networks.items()]
    left.set_yticks(range(len(names)), names)
    left.set(
        xlabel="test accuracy, %, last epoch", title="mean, lowest and highest seed", ylim=(len(names) - 0.5, -0.5)
    )
    left.axvline(100 * target, color=figures.GREEN, ls="--", lw=1)
    left.legend(loc="lower left", title="recipe")
    figures.by_error(left, "x", min(last), max(last))
    right.axhline(100 * target, color=figures.GREEN, ls="--", lw=1)
    right.set(xlabel="epoch", ylabel="test accuracy, %", title="default: mean, lowest to highest seed")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.legend(loc="lower right", ncols=2)
    figures.by_error(right, "y", min(95, *last), max(last))
    return figure


def draw_frontier(
    ours: Mapping[str, Points], public: Sequence[tuple[int, float]], target: float, patient: Sequence[Points] = ()
) -> Figure:
    """Accuracy against parameters: means of seeds, from the lowest to the highest, beside single runs of others.

    Args:
      ours: parameters and each seed's accuracy, a fraction, of networks by name; layouts stay without one.
      public: parameters and accuracy in percent of single runs at their best epoch, in hollow marks.
      target: where to draw a line, a fraction.
      patient: parameters and accuracies, as in `ours`, of networks trained for longer.
    """
    (figure, axis), means, taken = figures.new_axis(10, 4.6), [], [*public]
    axis.plot(*zip(*public, strict=True), "s", color=figures.ORANGE, mfc="none", label="public, best epoch of one seed")
    told = "ours, last epoch, mean and range of seeds"
    for color, mark, label, group in (
        (figures.BLUE, "o", told, [*ours.values()]),
        (figures.GREEN, "D", "with patience", patient),
    ):
        for i, (parameters, accuracies) in enumerate(group):
            seeds = 100 * np.array(accuracies)[:, None]
            mean, reach = figures.seed_range(seeds)
            means.append((parameters, mean))
            taken += [(parameters, accuracy) for accuracy in np.linspace(seeds.min(), seeds.max(), 9)]
            axis.errorbar(parameters, mean, reach, fmt=mark, color=color, capsize=4, label="" if i else label)
    axis.axhline(100 * target, color=figures.GREEN, ls="--", lw=1)
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
