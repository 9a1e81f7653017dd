"""What `mnist_jax/pretrained/README.md` says of each file of weights, made from the files in `results/`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tables.accuracy import seeds_of

from mnist_jax.models import ARCHS
from mnist_jax.runs.weights import READER, load_pretrained
from mnist_jax.series.records import last_epoch
from mnist_jax.statistics import seed_statistics
from mnist_jax.summary import count_params

WEIGHTS = (*ARCHS, READER)


def card_table(name: str, results: Path) -> Iterator[str]:
    """The card of one file of weights: training, accuracy of this very file, of its recipe, and on people's pictures.

    Args:
      name: that of the file in `pretrained/`, without its ending.
      results: folder with `series/default-ARCH.jsonl` and `tried/pictures.json`.
    """
    arch = "accurate" if name == READER else name
    seeds = seeds_of(results, arch)
    (trial,) = (seed for seed in seeds if seed.config["seed"] == 1)
    found = json.loads((results / "tried" / "pictures.json").read_text("utf-8"))["networks"][name]
    people, (low, high) = found["people"], found["people"]["interval"]
    last = seed_statistics(last_epoch(seeds))
    spread = "1 seed" if last.std is None else f"standard deviation {100 * last.std:.2f}, {last.n} seeds"
    yield "| property | value |"
    yield "|---|---|"
    parameters = count_params(load_pretrained(name).variables["params"])
    yield f"| network | `{arch}`, {parameters:,} parameters |"
    yield f"| trained on | the {'first 50,000' if name == READER else '60,000'} training images |"
    yield f"| recipe | `default`: {_recipe(trial.config)} |"
    if name == READER:
        yield "| then | on with images drawn anew, seeds 1 and 2; the mean of all three (`scripts/train_reader.py`) |"
    yield "| seed | 1 |"
    yield f"| test images, these weights | {100 * found['test_accuracy']:.2f}% of 10,000 right |"
    if name != READER:
        yield f"| test images, mean of the recipe | {100 * last.mean:.2f}% ({spread}) |"
    yield (
        f"| people's pictures | {100 * people['accuracy']:.2f}% of {people['pictures']} by {people['people']} people "
        f"right (95% interval over people: {100 * low:.1f} to {100 * high:.1f}) |"
    )
    yield f"| 8x8 digits | {100 * found['small_digits']:.1f}% right |"
    yield f'| "may not be a digit" | area under the curve {found["auroc"]["all"]:.3f} |'


def _recipe(config: dict[str, Any]) -> str:
    """A recipe in a line, as its trial was written."""
    config = {"elastic": 0.0, "label_smoothing": 0.0, **config}
    parts = [
        f"{config['epochs']} epochs of {config['optimizer'].capitalize()}",
        f"the last {config['plain_epochs']} without distortion",
        f"learning rate {config['learning_rate']}",
        f"rotation {config['rotation']:g}°",
        f"shift {config['shift']:g} pixels",
        f"scale and shear {config['scale']:.0%}",
    ]
    parts += [f"elastic distortion {config['elastic']:g} pixels"] * bool(config["elastic"])
    parts += [f"label smoothing {config['label_smoothing']:.0%}"] * bool(config["label_smoothing"])
    return ", ".join(parts)
