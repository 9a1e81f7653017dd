"""Scores the trained weights of a run, or those shipped in the package, on all 10,000 test images."""

import dataclasses
import json
from pathlib import Path

import tyro

from mnist_jax import data, training
from mnist_jax.errors import InputError
from mnist_jax.runs import directory


@dataclasses.dataclass(frozen=True)
class Options:
    """Scores the trained weights of a run, or those shipped in the package, on all 10,000 test images.

    Exit status: 0 done, 2 bad input.

    Example: mnist-jax evaluate --arch bn_dropout
    """

    run_dir: tyro.conf.Positional[Path | None] = None
    """Directory of a finished run."""
    arch: str | None = None
    """In place of a run: the network whose shipped weights to score."""
    batch_size: int = 250
    """Images per step; it changes speed and memory, not the result."""
    data_source: str = "bundled"
    """Where MNIST comes from: bundled (in the package), or tfds (TensorFlow Datasets)."""
    data_dir: Path | None = None
    """TFDS data directory, for --data-source tfds; TFDS's own default if not given."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> None:
    """Loads, scores and prints."""
    if not 1 <= options.batch_size <= 10_000:
        raise InputError(f"batch size {options.batch_size} cannot be used; choose 1 to 10000")
    arch, model, variables = directory.load_trained(options.run_dir, options.arch)
    test = data.load_mnist(options.data_source, options.data_dir).test
    metrics = training.evaluate(model, variables, test, options.batch_size)
    loss, accuracy = metrics.mean()
    if options.json:
        result = {"arch": arch, "test_loss": loss, "test_accuracy": accuracy, "images": int(metrics.count)}
        print(json.dumps(result))
    else:
        print(f"{arch}: test accuracy {accuracy:.2%}, loss {loss:.4f} on {int(metrics.count):,} images")
