"""Data sets: two splits of images and labels, from arrays, the package, TensorFlow Datasets or files."""

import os
import re
from pathlib import Path

from mnist_jax.data.arrays import Dataset, Split, as_images, hold_out, standardize, standardize_pixels, to_float
from mnist_jax.data.bundled import load_bundled
from mnist_jax.data.files import load_path
from mnist_jax.data.tfds import load_tfds
from mnist_jax.errors import InputError

__all__ = ["Dataset", "Split", "as_images", "hold_out", "load_dataset", "standardize", "standardize_pixels", "to_float"]

SOURCES = ("bundled", "tfds")

_PATH = re.compile(r"[.~/]|[A-Za-z]:|.*(/|\.npz)$", re.DOTALL)


def load_dataset(
    dataset: str | os.PathLike[str] = "mnist", *, data_dir: str | Path | None = None, source: str = "bundled"
) -> Dataset:
    """Loads a data set by its name or path.

    Args:
      dataset: "mnist"; another name of TFDS, as in "fashion_mnist" or "emnist/letters"; or a path: a `Path`, or text
        that ends in "/" or ".npz" or begins with ".", "~", "/" or a drive letter, of a folder with the four IDX files
        or with train/LABEL/*.png and test/LABEL/*.png, or of an npz file of x_train, y_train, x_test and y_test.
      data_dir: for names of TFDS, the TFDS data directory; None for TFDS's own default.
      source: of "mnist": "bundled" for the arrays shipped in the package, "tfds" to read them through TFDS.

    Raises InputError for data that cannot be had, is damaged, or does not fit, and for options that do not apply.
    """
    if source not in SOURCES:
        raise InputError(f"unknown data source {source!r}; choose from {', '.join(SOURCES)}")
    if not isinstance(dataset, str) or _PATH.match(dataset):
        if data_dir is not None or source == "tfds":
            option = "data source 'tfds'" if data_dir is None else f"data dir {str(data_dir)!r}"
            raise InputError(f"{option} does not go with path {str(dataset)!r}; drop one of the two")
        return load_path(Path(dataset))
    if (dataset, source) != ("mnist", "bundled"):
        return load_tfds(dataset, data_dir)
    if data_dir is not None:
        raise InputError(f"data dir {str(data_dir)!r} is only read by data source 'tfds'; choose that, or drop it")
    return load_bundled()
