"""README's figures, drawn from the files in `results/`."""

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from mnist_jax.data import load_dataset
from mnist_jax.lab import records
from mnist_jax.lab.tables import PUBLIC, frontier, last_epoch, parameters_of
from mnist_jax.models import ARCHS
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.reports import figures, themes
from mnist_jax.runs.weights import load_pretrained
from mnist_jax.scoring import predict
from mnist_jax.statistics import error_counts


def write_figures(results: Path) -> list[Path]:
    """Draws README's figures from the files in `results`, light and dark, and writes them there.

    Each carries the hash of what it was drawn from, `sources_hash`.
    """
    seeds = {
        arch: {
            recipe: group
            for recipe in ("reference", "default")
            if (group := records.read_trials(results / f"{recipe}-{arch}.jsonl"))
        }
        for arch in ARCHS
    }
    networks = {
        arch: (parameters_of(arch), {recipe: [seed.history for seed in group] for recipe, group in groups.items()})
        for arch, groups in seeds.items()
        if groups
    }
    ladder = partial(figures.ladder, networks, TARGET_ACCURACY)
    points: dict[str, dict[str, Any]] = {"default": {}, "patient": {}}
    for point in frontier(results):
        points[point.recipe][point.arch] = point.parameters, last_epoch(point.seeds)
    public, patient = [(parameters, accuracy) for parameters, accuracy, *_ in PUBLIC], [*points["patient"].values()]
    sizes = partial(figures.frontier, points["default"], public, TARGET_ACCURACY, patient)
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
    written = []
    for name, draw, colors in (
        ("ladder-light", ladder, themes.LIGHT),
        ("ladder-dark", ladder, themes.DARK),
        ("frontier-light", sizes, themes.LIGHT),
        ("frontier-dark", sizes, themes.DARK),
        ("errors-light", errors, themes.LIGHT),
        ("errors-dark", errors, themes.DARK),
    ):
        written.append(results / f"{name}.png")
        written[-1].write_bytes(themes.png(draw, colors, {"Source": sources_hash(results)}))
    return written


def sources_hash(results: Path) -> str:
    """SHA-256 of all that the figures show: the files in `results`, and `tables.PUBLIC`."""
    paths = sorted(path for recipe in ("reference", "default", "patient") for path in results.glob(f"{recipe}-*.jsonl"))
    quoted = json.dumps(PUBLIC).encode()
    return hashlib.sha256(b"".join([*(path.read_bytes() for path in paths), quoted])).hexdigest()
