"""Puts finished runs side by side on one page."""

import dataclasses
import sys
from pathlib import Path

import tyro

from mnist_jax.cli.program import counted, writing
from mnist_jax.errors import InputError
from mnist_jax.recipes.values import part_of
from mnist_jax.reports import comparison
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
    dataset: str | None = None
    """Other data than the first run's: mnist, another name of TensorFlow Datasets, or a path."""
    data_source: str | None = None
    """Where mnist comes from: bundled (in the package), or tfds (TensorFlow Datasets). If not given: as the run."""
    data_dir: Path | None = None
    """Data directory of TensorFlow Datasets. If not given: as the run."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> None:
    """Reads the runs and writes the page."""
    if not options.run_dirs:
        raise InputError("no run to compare; name the directories of finished runs")
    first, *others = options.run_dirs
    named = options.dataset, options.data_dir, options.data_source
    data, remark = directory.load_run_data(first, directory.load_run(first), *named)
    remedy = "compare runs of the same data, or name with --dataset what to score all of them on"
    for other in others if options.dataset is None else ():
        directory.require_same_data(other, data, remedy)
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    with writing(options.out, "--out"):
        comparison.write_comparison(options.run_dirs, part_of(directory.load_config(first), data), options.out)
    print(f"{options.out}: {counted(len(options.run_dirs), 'run')}; the figure is in {options.out.with_suffix('.png')}")
