"""Several runs side by side: the ladder of networks, or one network's recipes, with their seeds together."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.data import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.recipes.config import MAY_CHANGE, Config
from mnist_jax.reports import figures, render
from mnist_jax.reports.page import Section, picture, small_images
from mnist_jax.reports.report import WHILE_TRAINING
from mnist_jax.runs import directory
from mnist_jax.runs.files import write_text
from mnist_jax.scoring import predict
from mnist_jax.statistics import error_counts, seed_statistics
from mnist_jax.summary import count_params
from mnist_jax.training import EpochMetrics

COLUMNS = ("runs", "accuracy, %", "lowest", "highest", "training, %", "parameters", "epochs", "seeds", "seconds")


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
    """Runs that differ in nothing but their seed, by a name that tells the groups apart."""
    groups: dict[frozenset[tuple[str, Any]], list[Run]] = {}
    for run in runs:
        settings = dataclasses.asdict(run.config).items()
        key = frozenset(item for item in settings if item[0] not in ("seed", *MAY_CHANGE))
        groups.setdefault(key, []).append(run)
    named = {}
    for settings, members in groups.items():
        config = members[0].config
        alike = [other for other in groups if {("arch", config.arch), ("recipe", config.recipe)} <= other]
        differing = settings - frozenset.intersection(*alike)
        texts = [f"{name} {value}" for name, value in dataclasses.asdict(config).items() if (name, value) in differing]
        named[", ".join([config.arch, config.recipe, *texts])] = members
    return named


def write_comparison(run_dirs: Sequence[Path], data: Dataset, out: Path) -> Path:
    """Writes a page that compares finished runs, all scored on `data.test`, and returns it.

    Raises InputError if a run cannot be read, or was scored on other images than the first, and OSError if the page
    cannot be written.
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
    times = error_counts([run.wrong.tolist() for members in groups.values() for run in members])
    everywhere = sorted(index for index, count in times.items() if count == len(run_dirs))
    name, count = "held-out" if configs[0].held_out else "test", f"{len(scored.labels):,}"
    sections = [
        _training(groups, name),
        Section(
            "What every run gets wrong",
            [
                f"{len(everywhere)} of {count} images are got wrong by every run, and {len(times):,} by at least one. "
                "At most 200 are shown."
            ],
            images=small_images(
                scored.images[everywhere], [f"{data.classes[scored.labels[i]]}, image {i}" for i in everywhere]
            ),
        ),
    ]
    title = f"{len(run_dirs)} runs side by side, on {count} {name} images of {data.name}"
    write_text(out, render("report.html", title=title, sections=sections))
    return out


def _training(groups: Mapping[str, Sequence[Run]], scored: str) -> Section:
    """The curves of groups of runs, and a table of their last epochs."""
    series: dict[str, np.ndarray] = {}
    table: list[tuple[str, ...]] = [COLUMNS]
    for name, members in groups.items():
        series[f"{name} ({len(members)})"] = np.array(
            [[epoch.test_accuracy for epoch in run.history] for run in members]
        )
        accuracy = seed_statistics([100 * run.history[-1].test_accuracy for run in members])
        training = np.mean([100 * run.history[-1].train_accuracy for run in members])
        seconds = np.median([sum(epoch.seconds for epoch in run.history) for run in members])
        seeds = ", ".join(map(str, sorted(run.config.seed for run in members)))
        spread = "" if accuracy.std is None else f" ± {accuracy.std:.2f}"
        percent = f"{accuracy.mean:.2f}{spread}", f"{accuracy.min:.2f}", f"{accuracy.max:.2f}", f"{training:.2f}"
        parameters, epochs = members[0].parameters, len(members[0].history)
        table.append((name, *percent, f"{parameters:,}", f"{epochs}", seeds, f"{seconds:.0f}"))
    caption = "Mean over the epochs, and a band from the lowest to the highest seed. In brackets: seeds."
    with figures.style():
        curves = picture(figures.accuracies(series, TARGET_ACCURACY), caption)
    lines = [f"Accuracies are those on {scored} images in the last epoch, mean ± standard deviation.", WHILE_TRAINING]
    return Section(lines=lines, pictures=[curves], table=table)
