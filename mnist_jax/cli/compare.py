"""Puts finished runs side by side on one page."""

import dataclasses
from pathlib import Path

import tyro

from mnist_jax import data
from mnist_jax.cli.program import writing
from mnist_jax.errors import InputError
from mnist_jax.pages import comparison
from mnist_jax.runs import directory


@dataclasses.dataclass(frozen=True)
class Options:
    """Puts finished runs side by side on one page.

    Accuracy against parameters, the curves, runs that differ in their seed alone as one with a band, and the images
    that all of them get wrong. The figure is written beside the page as PNG.

    Exit status: 0 done, 2 bad input, 4 cannot write.

    Example: mnist-jax compare runs/basic runs/lighter runs/gap runs/bn_dropout
    """

    run_dirs: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of finished runs."""
    out: Path = Path("compare.html")
    """Page to write."""
    data_source: str = "bundled"
    """Where MNIST comes from: bundled (in the package), or tfds (TensorFlow Datasets)."""
    data_dir: Path | None = None
    """TFDS data directory, for --data-source tfds; TFDS's own default if not given."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> None:
    """Reads the runs and writes the page."""
    if not options.run_dirs:
        raise InputError("no run to compare; name the directories of finished runs")
    mnist = data.load_mnist(options.data_source, options.data_dir)
    held_out = directory.load_config(options.run_dirs[0]).held_out
    if held_out:
        mnist = data.hold_out(mnist, held_out)
    with writing(options.out, "--out"):
        comparison.write_comparison(options.run_dirs, mnist.test, options.out)
    print(f"{options.out}: {len(options.run_dirs)} runs; the figure is in {options.out.with_suffix('.png')}")
