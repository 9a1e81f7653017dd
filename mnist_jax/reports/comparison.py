"""Several runs side by side: the ladder of networks, or one network's recipes, with their seeds together."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.data import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.recipes.config import MAY_CHANGE, Config
from mnist_jax.reports import figures, render, report, themes
from mnist_jax.runs import directory
from mnist_jax.scoring import predict
from mnist_jax.statistics import error_counts, seed_statistics
from mnist_jax.summary import count_params
from mnist_jax.training import EpochMetrics


class Run(NamedTuple):
    """A finished run: `wrong` are the indices of the scored images that it gets wrong."""

    config: Config
    history: list[EpochMetrics]
    parameters: int
    wrong: np.ndarray


def read_run(run_dir: Path, scored: Split) -> Run:
    """Reads a finished run, and lets its weights score the images again; raises InputError as `load_run`."""
    trained = directory.load_run(run_dir)
    guesses = predict(trained, scored.images).argmax(-1)
    return Run(
        directory.load_config(run_dir),
        directory.load_epochs(run_dir),
        count_params(trained.variables["params"]),
        np.flatnonzero(guesses != scored.labels),
    )


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but their seed, together, by a name that tells the groups apart."""
    groups: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:
        settings = dataclasses.asdict(run.config).items()
        told_apart = frozenset(item for item in settings if item[0] not in ("seed", *MAY_CHANGE))
        groups.setdefault(told_apart, []).append(run)
    named = {}
    for settings, members in groups.items():
        config = members[0].config
        alike = [other for other in groups if {("arch", config.arch), ("recipe", config.recipe)} <= other]
        own = settings - frozenset.intersection(*alike)
        told = [f"{name} {value}" for name, value in dataclasses.asdict(config).items() if (name, value) in own]
        named[", ".join([config.arch, config.recipe, *told])] = members
    return named


def write_comparison(run_dirs: Sequence[Path], data: Dataset, out: Path) -> Path:
    """Writes a page that compares finished runs, all scored on `data.test`, and its figure as PNG beside it.

    Returns the page. Raises InputError if a run cannot be read, or was scored on other images than the first, and
    OSError if the page cannot be written.
    """
    scored = data.test
    configs = [directory.load_config(run_dir) for run_dir in run_dirs]
    for run_dir, config in zip(run_dirs, configs, strict=True):
        if config.held_out != configs[0].held_out:
            raise InputError(
                f"run dir {str(run_dir)!r} holds out {config.held_out} images and {str(run_dirs[0])!r} "
                f"{configs[0].held_out}; compare runs that were scored on the same images"
            )
    groups = group([read_run(run_dir, scored) for run_dir in run_dirs])
    runs = [run for members in groups.values() for run in members]
    times = error_counts([run.wrong.tolist() for run in runs])
    everywhere = sorted(index for index, count in times.items() if count == len(runs))
    name = "held-out" if configs[0].held_out else "test"
    rows = [
        {
            "name": label,
            "parameters": members[0].parameters,
            "epochs": len(members[0].history),
            "seeds": sorted(run.config.seed for run in members),
            "accuracy": seed_statistics([run.history[-1].test_accuracy for run in members]),
            "train": seed_statistics([run.history[-1].train_accuracy for run in members]).mean,
            "seconds": float(np.median([sum(epoch.seconds for epoch in run.history) for run in members])),
        }
        for label, members in groups.items()
    ]
    drawn = {label: (members[0].parameters, [run.history for run in members]) for label, members in groups.items()}
    draw = partial(figures.comparison, drawn, name, TARGET_ACCURACY)
    best = max(rows, key=lambda row: row["accuracy"].mean)
    captions = [f"{data.classes[scored.labels[index]]}, image {index}" for index in everywhere]
    page = render(
        "compare.html",
        rows=rows,
        scored=name,
        scored_images=len(scored.labels),
        dataset=data.name,
        everywhere=everywhere,
        anywhere=len(times),
        runs=len(runs),
        figure=report.picture(
            draw,
            f"Accuracy against parameters, and over the epochs, of {len(rows)} groups of runs; the best is "
            f"{best['name']} with {best['accuracy'].mean:.2%}.",
        ),
        digits=report.picture_of_digits(scored.images[everywhere], captions, "The images that every run gets wrong."),
    )
    out.with_suffix(".png").write_bytes(themes.png(draw, themes.LIGHT))
    out.write_text(page, encoding="utf-8")
    return out
