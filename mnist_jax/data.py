"""MNIST as uint8 arrays, from the package or from TensorFlow Datasets."""

import hashlib
import importlib.util
import logging
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from mnist_jax.errors import InputError

SOURCES = ("bundled", "tfds")
BUNDLED = Path(__file__).parent / "bundled" / "mnist.npz"

# Mean and standard deviation of the training pixels on the [0, 1] scale.
MEAN, STD = 0.1307, 0.3081

_TFDS_NAME = "mnist:3.0.1"
_TFDS_ORIGIN = "https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz"
_OFFLINE_AFTER_SECONDS = 5.0

# SHA-256 of the raw bytes of the full splits in TFDS order: images uint8, labels int32 little-endian.
SHA256 = {
    "train images": "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b",
    "train labels": "062bf4d1a71dfc825d91f86658f9e3f8d6f35b8805a2457550c5000b0b1ff96c",
    "test images": "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca",
    "test labels": "58b236bac2b9f39e838e65b8a6942832a40044c1da3df14e20f2f8291c6af177",
}
_FULL_SIZE = {"train": 60_000, "test": 10_000}


class Split(NamedTuple):
    """Labelled images: `images` uint8 [N, 28, 28, 1], `labels` int32 [N] in 0..9."""

    images: np.ndarray
    labels: np.ndarray


class Mnist(NamedTuple):
    """The two splits of MNIST."""

    train: Split
    test: Split


def load_mnist(source: str = "bundled", data_dir: str | Path | None = None) -> Mnist:
    """Loads MNIST, verified, in the order of TFDS `mnist:3.0.1`: 60,000 training and 10,000 test examples.

    Args:
      source: "bundled" for the arrays shipped in the package, "tfds" to read through `tensorflow_datasets`.
      data_dir: for "tfds", a TFDS data directory, which may declare fewer examples; None for TFDS's own default.

    Raises InputError for an unknown source, data that cannot be had, or data that is corrupt or truncated.

    Reference: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    if source == "bundled":
        if data_dir is not None:
            raise InputError(f"data dir {str(data_dir)!r} is only read by --data-source tfds; drop one of the two")
        return _load_bundled(BUNDLED)
    if source == "tfds":
        return _load_tfds(data_dir)
    raise InputError(f"unknown data source {source!r}; choose from {', '.join(SOURCES)}")


def hold_out(mnist: Mnist, size: int) -> Mnist:
    """Sets the last `size` training examples apart as the split to score, for choosing hyper-parameters.

    The test split is not part of the result, so nothing chosen on it can have seen a test image.
    """
    images, labels = mnist.train
    if not 0 < size < len(labels):
        raise InputError(f"cannot hold out {size} of {len(labels)} training images; choose 1 to {len(labels) - 1}")
    return Mnist(Split(images[:-size], labels[:-size]), Split(images[-size:], labels[-size:]))


def standardise(images):
    """`(x / 255 - 0.1307) / 0.3081`: uint8 [...] to float32 [...] of about zero mean and unit variance."""
    return (jnp.asarray(images, jnp.float32) / 255 - MEAN) / STD


def _load_bundled(path: Path) -> Mnist:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            splits = {
                name: Split(arrays[f"{name}_images"], arrays[f"{name}_labels"].astype(np.int32)) for name in _FULL_SIZE
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"bundled data {path} is damaged ({reason}); reinstall mnist-jax") from error
    for name, split in splits.items():
        _verify(split, name, _FULL_SIZE[name], source=f"bundled data {path}")
    return Mnist(**splits)


def _load_tfds(data_dir: str | Path | None) -> Mnist:
    # Imported here: only this source needs it, and it costs a second.
    import tensorflow_datasets as tfds

    logging.getLogger("absl").setLevel(logging.ERROR)  # It would recommend another decoder at every start.

    if data_dir is not None and not Path(data_dir).is_dir():
        raise InputError(f"data dir {str(data_dir)!r} is not a directory; name one that holds mnist/3.0.1")
    try:
        builder = tfds.builder(_TFDS_NAME, data_dir=data_dir, file_format="array_record")
        if not builder.is_prepared():
            _require_preparable(builder)
            builder.download_and_prepare()
        source = tfds.data_source(_TFDS_NAME, data_dir=data_dir, builder_kwargs={"file_format": "array_record"})
        splits = {}
        for name in _FULL_SIZE:
            # One batched read: reading example by example costs several times as much.
            examples = source[name].__getitems__(range(len(source[name])))
            splits[name] = Split(
                np.stack([example["image"] for example in examples]),
                np.array([example["label"] for example in examples], np.int32),
            )
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        remedy = "prepare it again there, or use --data-source bundled"
        raise InputError(
            f"TFDS cannot read MNIST in {data_dir or 'its default directory'}: {reason}; {remedy}"
        ) from error
    for name, split in splits.items():
        _verify(split, name, builder.info.splits[name].num_examples, source=f"TFDS data {builder.data_dir}")
    return Mnist(**splits)


def _require_preparable(builder) -> None:
    """Says at once what TFDS would find out after minutes of retries: no TensorFlow, or no network."""
    where = f"MNIST is not prepared as array_record in {builder.data_dir}"
    remedy = "use --data-source bundled, or name a prepared --data-dir"
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(f"{where} and preparing it needs TensorFlow: pip install 'mnist-jax[tfds]', {remedy}")
    try:
        urllib.request.urlopen(_TFDS_ORIGIN, timeout=_OFFLINE_AFTER_SECONDS).close()
    except OSError as error:
        raise InputError(f"{where} and its origin cannot be reached ({error}): go online, {remedy}") from error


def _verify(split: Split, name: str, size: int, source: str) -> None:
    """Checks shapes and types, and for a full-size split the content, against what MNIST is."""
    expected = {"images": ((size, 28, 28, 1), np.uint8), "labels": ((size,), np.int32)}
    for field, (shape, dtype) in expected.items():
        array = getattr(split, field)
        if array.shape != shape or array.dtype != dtype:
            raise InputError(
                f"{source}: {name} {field} expected {np.dtype(dtype)} {shape}, found {array.dtype} {array.shape}; "
                "the data is damaged, get it again"
            )
        if size == _FULL_SIZE[name]:
            want, found = SHA256[f"{name} {field}"], sha256(array)
            if found != want:
                raise InputError(
                    f"{source}: {name} {field} expected SHA-256 {want}, found {found}; "
                    "the data is damaged, get it again"
                )


def sha256(array: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of an array's raw little-endian bytes in C order."""
    array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return hashlib.sha256(array).hexdigest()
