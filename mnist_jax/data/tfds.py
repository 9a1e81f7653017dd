"""Data sets of TensorFlow Datasets that have images, one label each, and the splits train and test."""

import dataclasses
import importlib.util
import logging
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.data.arrays import Dataset, Split
from mnist_jax.data.bundled import FULL_SIZE, as_mnist, verify
from mnist_jax.errors import InputError, refusing

_MNIST = "mnist:3.0.1"
_OFFLINE_AFTER_SECONDS = 5.0


def load_tfds(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set by its TFDS name, and prepares it if needed.

    EMNIST, which TFDS stores transposed, is turned upright. A class that occurs in neither split is dropped.

    Args:
      name: TFDS name, such as `fashion_mnist` or `emnist/letters`; `mnist` is verified to be 3.0.1.
      data_dir: a TFDS data directory, which may declare fewer examples; None for TFDS's default.

    Raises InputError if the name is unknown, features or splits do not fit, or the data is missing or damaged.
    """
    # Only this source needs the import, which takes a second.
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # Else it recommends another decoder at every start.

    full_name = _MNIST if name == "mnist" else name
    title = "MNIST" if name == "mnist" else repr(name)
    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"data dir {str(data_dir)!r} is not a directory; name one that holds {title}, prepared")
    where = f"TFDS cannot read {title} in {data_dir or 'its default directory'} ("
    with refusing(where, "); prepare it again there" + (", or use data source 'bundled'" if name == "mnist" else "")):
        try:
            builder: Any = tfds.builder(full_name, data_dir=data_dir, file_format="array_record")
        except tfds.core.DatasetNotFoundError as error:
            raise InputError(f"TFDS has no data set {name!r}; for a folder write {name + '/'!r}") from error
        image, label = _features(builder, tfds.features, name)
        if not builder.is_prepared():
            _require_preparable(builder, title)
            builder.download_and_prepare()
        if not {"train", "test"} <= set(builder.info.splits):
            splits = ", ".join(builder.info.splits)
            raise InputError(f"TFDS data set {name!r} has the splits {splits}; choose one with train and test")
        source, splits = builder.as_data_source(), {}
        for key in ("train", "test"):
            # A batched read is several times faster than reading example by example.
            examples = source[key].__getitems__(range(len(source[key])))
            images = np.stack([example[image] for example in examples])
            if builder.name == "emnist":
                images = images.swapaxes(1, 2).copy()
            splits[key] = Split(images, np.array([example[label] for example in examples], np.int32))
    if name == "mnist":
        for key, split in splits.items():
            if builder.info.splits[key].num_examples == FULL_SIZE[key]:
                verify(split, key, source=f"TFDS data {builder.data_dir}")
        return as_mnist(**splits)
    try:
        data = Dataset.from_arrays(**splits, classes=builder.info.features[label].names, name=name)
        used = np.union1d(data.train.labels, data.test.labels)
        for key, (images, labels) in (("train", data.train), ("test", data.test)):
            splits[key] = Split(images, np.searchsorted(used, labels))
        return dataclasses.replace(data, **splits, classes=tuple(data.classes[label] for label in used))
    except InputError as error:
        raise InputError(f"TFDS data set {name!r}: {error}") from error


def _features(builder: Any, kinds: Any, name: str) -> tuple[str, str]:
    """Names of the image and label features, which are the supervised keys of TFDS."""
    features: dict[str, Any] = dict(builder.info.features.items())
    names = builder.info.supervised_keys or ("", "")
    image: Any = features.get(names[0])
    label: Any = features.get(names[1])
    if not isinstance(image, kinds.Image) or not isinstance(label, kinds.ClassLabel) or not all(image.shape):
        remedy = "choose one with an image of fixed size and a class label"
        raise InputError(f"TFDS data set {name!r} has the features {', '.join(features)}; {remedy}")
    return names


def _require_preparable(builder: Any, title: str) -> None:
    """Raises InputError at once without TensorFlow or network, where TFDS would retry for minutes."""
    what = f"{title} is not prepared as array_record in {builder.data_dir}"
    remedy = "name a data dir where it is" + (", or use data source 'bundled'" if title == "MNIST" else "")
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"{what}, and preparing it needs TensorFlow; pip install 'mnist-jax[tfds]', or {remedy}")
    for origin in list(builder.url_infos)[:1]:
        try:
            urllib.request.urlopen(origin, timeout=_OFFLINE_AFTER_SECONDS).close()
        except OSError as error:
            raise InputError(f"{what}, and its origin cannot be reached ({error}); go online, or {remedy}") from error
