"""Writes the arrays shipped in the package from a prepared TFDS directory."""

import dataclasses
from pathlib import Path

import numpy as np

from mnist_jax.cli import run
from mnist_jax.data import load_dataset
from mnist_jax.data.bundled import BUNDLED


@dataclasses.dataclass(frozen=True)
class Options:
    """Writes MNIST, read through TFDS, as the one compressed file that the package ships.

    Example: python scripts/bundle_mnist.py --data-dir ~/tensorflow_datasets
    """

    data_dir: Path | None = None
    """TFDS data directory that holds mnist/3.0.1; TFDS's own default if not given."""
    out: Path = BUNDLED
    """File to write."""


def main(options: Options) -> None:
    """Reads, verifies and writes."""
    mnist = load_dataset("mnist", source="tfds", data_dir=options.data_dir)
    arrays = {
        "train_images": mnist.train.images,
        "train_labels": mnist.train.labels.astype(np.uint8),
        "test_images": mnist.test.images,
        "test_labels": mnist.test.labels.astype(np.uint8),
    }
    np.savez_compressed(options.out, **arrays)
    print(f"wrote {options.out} ({options.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run(main, Options)
