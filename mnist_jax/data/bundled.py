"""MNIST from the package, and the hashes that the whole data set must have."""

import hashlib
from pathlib import Path

import numpy as np

from mnist_jax.data.arrays import Dataset, Split, raw_bytes
from mnist_jax.data.files import read_npz
from mnist_jax.errors import InputError

BUNDLED = Path(__file__).parent.parent / "bundled" / "mnist.npz"

# Mean and standard deviation of MNIST's training pixels on the [0, 1] scale.
MEAN, STD = 0.1307, 0.3081

# SHA-256 of the raw bytes of the full splits in TFDS order: images uint8, labels int32 little-endian.
SHA256 = {
    "train images": "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b",
    "train labels": "062bf4d1a71dfc825d91f86658f9e3f8d6f35b8805a2457550c5000b0b1ff96c",
    "test images": "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca",
    "test labels": "58b236bac2b9f39e838e65b8a6942832a40044c1da3df14e20f2f8291c6af177",
}
FULL_SIZE = {"train": 60_000, "test": 10_000}


def load_bundled(path: Path = BUNDLED) -> Dataset:
    """Loads and verifies MNIST, in the order of TFDS `mnist:3.0.1`: 60,000 training and 10,000 test examples.

    Raises InputError if the file is missing, damaged or truncated.

    Reference: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998.
    """
    names = ("train_images", "train_labels", "test_images", "test_labels")
    x_train, y_train, x_test, y_test = read_npz(path, names, "reinstall mnist-jax")
    splits = {"train": Split(x_train, y_train.astype(np.int32)), "test": Split(x_test, y_test.astype(np.int32))}
    for name, split in splits.items():
        verify(split, name, source=f"bundled data {path}")
    return as_mnist(**splits)


def as_mnist(train: Split, test: Split) -> Dataset:
    """The data set named `mnist`, with the published mean and deviation."""
    return Dataset(train, test, (MEAN,), (STD,), tuple("0123456789"), "mnist")


def verify(split: Split, name: str, source: str) -> None:
    """Raises InputError if the content of a full split is not MNIST's."""
    for field, array in split._asdict().items():
        expected, actual = SHA256[f"{name} {field}"], sha256(array)
        if actual != expected:
            what = f"{name} {field} expected SHA-256 {expected}, found {actual}"
            raise InputError(f"{source}: {what}; the data is damaged, replace it")


def sha256(array: np.ndarray) -> str:
    """SHA-256, in hexadecimal, of an array's little-endian bytes in C order."""
    return hashlib.sha256(raw_bytes(array)).hexdigest()
