"""Writes mnist_jax/pretrained/doubt.json: how the shipped weights' logits of the last 10,000 training images lie.

Of `accurate-held-out` they were held out; the other weights were trained on them too.
"""

import json

import numpy as np

from mnist_jax import ARCHS, load_dataset, load_pretrained, predict
from mnist_jax.deploy.reading import DOUBT, calibrate
from mnist_jax.runs.weights import READER


def main() -> None:
    """Calibrates and writes."""
    images, labels = (each[-10_000:] for each in load_dataset("mnist").train)
    doubts = {}
    for name in (*ARCHS, READER):
        doubt = calibrate(predict(load_pretrained(name), images), labels)
        doubts[name] = {key: np.round(value, 5).tolist() for key, value in doubt._asdict().items()}
    DOUBT.write_text(json.dumps(doubts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
