"""Scores the trained weights of a run, or those shipped in the package, on all test images."""

import dataclasses
import json
import sys
from pathlib import Path

import tyro

from mnist_jax.cli.program import load_trained
from mnist_jax.data import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.runs import directory
from mnist_jax.scoring import evaluate


@dataclasses.dataclass(frozen=True)
class Options:
    """Scores the trained weights of a run, or those shipped in the package, on all test images.

    A run is scored on its own data, unless other data of the same classes is named.

    Exit status: 0 done, 2 bad input.

    Example: mnist-jax evaluate --arch bn_dropout
    """

    run_dir: tyro.conf.Positional[Path | None] = None
    """Directory of a finished run."""
    arch: str | None = None
    """In place of a run: the network whose shipped weights to score."""
    batch_size: int = 250
    """Images per step; it changes speed and memory, not the result."""
    dataset: str | None = None
    """Other data than the run's: mnist, another name of TensorFlow Datasets, or a path to a folder or an .npz file."""
    data_source: str | None = None
    """Where mnist comes from: bundled (in the package), or tfds (TensorFlow Datasets); if not given, as the run."""
    data_dir: Path | None = None
    """Data directory of TensorFlow Datasets; if not given, as the run."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> None:
    """Loads, scores and prints."""
    if not 1 <= options.batch_size <= 10_000:
        raise InputError(f"batch size {options.batch_size} cannot be used; choose 1 to 10000")
    trained = load_trained(options.run_dir, options.arch)
    if options.run_dir:
        named = options.dataset, options.data_dir, options.data_source
        data, remark = directory.load_run_data(options.run_dir, trained, *named)
        if remark:
            print(f"note: {remark}", file=sys.stderr)
    else:
        source = options.data_source or "bundled"
        data = load_dataset(options.dataset or "mnist", data_dir=options.data_dir, source=source)
        directory.require_classes(trained, data)
    metrics = evaluate(trained, data.test, options.batch_size)
    loss, accuracy = metrics.mean()
    arch = trained.model.arch
    if options.json:
        result = {
            "arch": arch,
            "dataset": data.name,
            "test_loss": loss,
            "test_accuracy": accuracy,
            "images": int(metrics.count),
        }
        print(json.dumps(result))
    else:
        images = f"{int(metrics.count):,} images of {data.name}"
        print(f"{arch}: test accuracy {accuracy:.2%}, loss {loss:.4f} on {images}")
