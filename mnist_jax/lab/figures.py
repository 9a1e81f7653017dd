"""README's figures, drawn from the files in `results/`."""

import hashlib
import itertools
import json
from functools import partial
from pathlib import Path

from mnist_jax.data import load_dataset
from mnist_jax.lab import records
from mnist_jax.lab.tables import NOTEBOOKS, PUBLIC, frontier, last_epoch, parameters_of
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.reports import figures
from mnist_jax.statistics import error_counts


def write_figures(results: Path) -> list[Path]:
    """Draws README's figures from the files in `results`, light and dark, and writes them there.

    Each carries the hash of what it was drawn from, `sources_hash`.
    """
    seeds = {
        f"{arch}, {recipe}": group
        for arch, recipe in itertools.product(NOTEBOOKS, ("reference", "default"))
        if (group := records.read_trials(results / f"{recipe}-{arch}.jsonl"))
    }
    groups = {
        name: (parameters_of(name.split(",")[0]), [seed.history for seed in group]) for name, group in seeds.items()
    }
    ladder = partial(figures.comparison, groups, "test", TARGET_ACCURACY)
    points = {point.arch: (point.parameters, last_epoch(point.seeds)) for point in frontier(results)}
    sizes = partial(
        figures.frontier, points, [(parameters, accuracy) for parameters, accuracy, *_ in PUBLIC], TARGET_ACCURACY
    )
    times = error_counts([seed.errors for seed in seeds.get("bn_dropout, default", [])])
    often = sorted(times, key=lambda index: (-times[index], index))[:30]
    test = load_dataset("mnist").test
    captions = [f"{test.labels[index]}: {times[index]} of {len(seeds['bn_dropout, default'])}" for index in often]
    errors = partial(figures.digits, test.images[often], captions)
    written = []
    for name, draw, colors in (
        ("ladder-light", ladder, figures.LIGHT),
        ("ladder-dark", ladder, figures.DARK),
        ("frontier-light", sizes, figures.LIGHT),
        ("frontier-dark", sizes, figures.DARK),
        ("errors-light", errors, figures.LIGHT),  # Black on white in any case.
    ):
        written.append(results / f"{name}.png")
        written[-1].write_bytes(figures.png(draw, colors, {"Source": sources_hash(results)}))
    return written


def sources_hash(results: Path) -> str:
    """SHA-256 of all that the figures show: the files in `results`, and `tables.NOTEBOOKS` and `PUBLIC`."""
    paths = sorted(path for recipe in ("reference", "default") for path in results.glob(f"{recipe}-*.jsonl"))
    quoted = json.dumps([NOTEBOOKS, PUBLIC]).encode()
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in paths), quoted])).hexdigest()
