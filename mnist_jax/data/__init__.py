"""Data sets: two splits of images and labels, from arrays, the package, TensorFlow Datasets or files."""

import os
import re
from pathlib import Path

from mnist_jax.data.arrays import Dataset, Split, as_images, hold_out, standardize, standardize_pixels, to_float
from mnist_jax.data.bundled import load_bundled
from mnist_jax.data.files import load_path
from mnist_jax.data.tfds import load_tfds
from mnist_jax.errors import InputError, require, require_path

__all__ = ["Dataset", "Split", "as_images", "hold_out", "load_dataset", "standardize", "standardize_pixels", "to_float"]

SOURCES = ("bundled", "tfds")

_PATH = re.compile(r"[.~/]|[A-Za-z]:|.*(/|\.npz)$", re.DOTALL)


def load_dataset(
    dataset: str | os.PathLike[str] = "mnist", *, data_dir: str | Path | None = None, source: str = "bundled"
) -> Dataset:
    """Loads a data set by name or path.

    A path is a `Path`, or text that ends in "/" or ".npz" or begins with ".", "~", "/" or a drive letter. It leads to a
    folder with the four IDX files, a folder of pictures `train/LABEL/*.png` and `test/LABEL/*.png`, also of other
    formats, or an npz file with `x_train`, `y_train`, `x_test` and `y_test`. All other text is a name.

    Args:
      dataset: "mnist", another name in TensorFlow Datasets ("fashion_mnist", "emnist/letters"), or a path.
      data_dir: the data directory of TensorFlow Datasets, for names; None for its default.
      source: where "mnist" is read: "bundled", from the package, or "tfds", through TensorFlow Datasets.

    Returns:
      The `Dataset`, with images uint8 [N, H, W, C] or float32 in [0, 1], and labels int32 [N].

    Raises:
      InputError: the data is missing, damaged or does not fit, or an option does not apply.
      OSError: a file cannot be read.

    Example:
      >>> mj.load_dataset("mnist")
      Dataset('mnist', train=60000, test=10000, image_shape=(28, 28, 1), classes=10)
    """
    require(dataset, str | os.PathLike, "dataset", "give a name or a path")
    require(data_dir, str | os.PathLike | None, "data dir", "give a path")
    if source not in SOURCES:
        raise InputError(f"unknown data source {source!r}; choose from {', '.join(SOURCES)}")
    if data_dir is not None:
        data_dir = require_path(data_dir, "data dir")
    if not isinstance(dataset, str) or "://" in dataset:
        dataset = require_path(dataset, "dataset")
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
