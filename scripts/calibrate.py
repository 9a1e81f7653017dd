"""Writes the statistics of the shipped weights' logits, by which pictures that may not be a digit are found."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from mnist_jax import ARCHS, load_dataset, load_pretrained, predict
from mnist_jax.cli import run
from mnist_jax.deploy.reading import DOUBT, calibrate
from mnist_jax.runs.weights import READER


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes how the shipped weights' logits of the last 10,000 training images lie.

    Of `accurate-held-out` they were held out; the other weights were trained on them too.

    Example: python scripts/calibrate.py --out doubt.json
    """

    out: Path = DOUBT
    """File to write."""


def main(options: Options) -> None:
    """Calibrates and writes."""
    images, labels = (array[-10_000:] for array in load_dataset("mnist").train)
    statistics = {}
    for name in (*ARCHS, READER):
        doubt = calibrate(predict(load_pretrained(name), images), labels)
        statistics[name] = {key: np.round(value, 5).tolist() for key, value in doubt._asdict().items()}
    options.out.write_text(json.dumps(statistics) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main, Options)
