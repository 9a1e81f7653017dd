"""README's figures, drawn from the files in `results/`."""

import hashlib
import itertools
from functools import partial
from pathlib import Path

from mnist_jax.data import load_mnist
from mnist_jax.lab import trials
from mnist_jax.lab.analysis import TARGET_ACCURACY, error_counts
from mnist_jax.models import ARCHS, abstract_variables, count_params, create_model
from mnist_jax.pages import figures
from mnist_jax.training import EpochMetrics


def write_figures(results: Path) -> list[Path]:
    """Draws README's figures from the files in `results`, light and dark, and writes them there.

    Each carries the hash of what it was drawn from, `sources_hash`.
    """
    seeds = {
        f"{arch}, {recipe}": trials.read(results / f"{recipe}-{arch}.jsonl")
        for arch, recipe in itertools.product(ARCHS, ("reference", "default"))
    }
    seeds = {name: group for name, group in seeds.items() if group}
    parameters = {arch: count_params(abstract_variables(create_model(arch))["params"]) for arch in ARCHS}
    groups = {
        name: (parameters[name.split(",")[0]], [[EpochMetrics(**epoch) for epoch in seed["history"]] for seed in group])
        for name, group in seeds.items()
    }
    ladder = partial(figures.comparison, groups, "test", TARGET_ACCURACY)
    times = error_counts([seed.get("errors", []) for seed in seeds.get("bn_dropout, default", [])])
    often = sorted(times, key=lambda index: (-times[index], index))[:30]
    test = load_mnist().test
    captions = [f"{test.labels[index]}: {times[index]} of {len(seeds['bn_dropout, default'])}" for index in often]
    errors = partial(figures.digits, test.images[often], captions)
    written = []
    for name, draw, colours in (
        ("ladder-light", ladder, figures.LIGHT),
        ("ladder-dark", ladder, figures.DARK),
        ("errors-light", errors, figures.LIGHT),  # Black on white in any case.
    ):
        written.append(results / f"{name}.png")
        written[-1].write_bytes(figures.png(draw, colours, {"Source": sources_hash(results)}))
    return written


def sources_hash(results: Path) -> str:
    """SHA-256 of the files that the figures are drawn from."""
    paths = (results / f"{recipe}-{arch}.jsonl" for arch, recipe in itertools.product(ARCHS, ("reference", "default")))
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths if path.exists())).hexdigest()
