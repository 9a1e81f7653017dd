"""A data set as two splits of arrays: what is checked, measured and standardized."""

import dataclasses
import functools
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnist_jax.errors import InputError

_MAX_CLASSES = 65_536  # Of unnamed classes: more is a mistake in the labels.


class Split(NamedTuple):
    """Labeled images: `images` uint8, or float32 in [0, 1], [N, H, W, C]; `labels` int32 [N]."""

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of labeled images, and what a network needs to know of them.

    `mean` and `deviation` are per channel, of pixels on the [0, 1] scale; `classes` are the names of the labels.
    """

    train: Split
    test: Split
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]
    name: str = "arrays"

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        *,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """Makes a data set of images and labels, checked once, here.

        Args:
          train: images, as `as_images` takes them, and integer labels [N] in 0..K-1; mean and deviation are theirs.
          test: the same, of the same image shape and scale.
          classes: names of the K classes; None for "0" to the largest label.
          name: how the data set is called in runs and reports.

        Raises InputError for arrays that do not fit: shape, dtype, range, lengths, fewer than two classes.
        """
        splits = {key: _split(key, *pair) for key, pair in (("train", train), ("test", test))}
        found = [f"{split.images.dtype} {list(split.images.shape[1:])}" for split in splits.values()]
        if found[0] != found[1]:
            raise InputError(f"train images are {found[0]}, test images {found[1]}; give both one shape and one scale")
        top = max(int(split.labels.max()) for split in splits.values())
        if classes is None:
            if top >= _MAX_CLASSES:
                raise InputError(f"labels reach {top}; number the classes from 0")
            classes = [str(label) for label in range(top + 1)]
        classes = tuple(str(label) for label in classes)
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise InputError(f"classes are {', '.join(classes) or 'none'}; give two or more, of different names")
        if top >= len(classes):
            raise InputError(f"labels reach {top}, for {len(classes)} classes; number the classes from 0, or name all")
        return cls(*splits.values(), *_moments(splits["train"].images), classes, name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.images.shape[1:]

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256, in hexadecimal, over both splits' arrays, with their dtypes and shapes, and the classes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, split in (("train", self.train), ("test", self.test)):
            for field, array in split._asdict().items():
                digest.update(f"{name} {field} {array.dtype.name} {array.shape}".encode())
                digest.update(little_endian(array))
        return digest.hexdigest()

    def __repr__(self) -> str:
        sizes = f"train={len(self.train.labels)}, test={len(self.test.labels)}"
        return f"Dataset({self.name!r}, {sizes}, image_shape={self.image_shape}, classes={len(self.classes)})"


def as_images(images: ArrayLike) -> np.ndarray:
    """Gives images as uint8, or float32 in [0, 1], [N, H, W, C]; N may be 0. What is uint8 already is not copied.

    Args:
      images: [N, H, W] or [N, H, W, C]: integers from 0 to 255, or floats in [0, 1].

    Raises InputError for anything else.
    """
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise InputError("images differ in shape; give one array [N, H, W] or [N, H, W, C]") from error
    array = array[..., None] if array.ndim == 3 else array
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise InputError(
            f"images have shape {list(np.shape(array))}; give [N, H, W] or [N, H, W, C], none of H, W, C 0"
        )
    integer = jnp.issubdtype(array.dtype, jnp.integer)
    if not integer and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"images are {array.dtype}; give integers from 0 to 255 or floats in [0, 1]")
    if array.size and array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= (255 if integer else 1)):  # Neither is true of NaN.
            raise InputError(
                f"images are {array.dtype} from {low} to {high}; give integers from 0 to 255 or floats in [0, 1]"
            )
    return array.astype(np.uint8 if integer else np.float32, copy=False)


def to_float(images: ArrayLike) -> jax.Array:
    """Brings uint8 images, or floats in [0, 1], to float32 on the 0 to 255 scale."""
    images = jnp.asarray(images)
    scale = 255 if jnp.issubdtype(images.dtype, jnp.floating) else None
    images = images.astype(jnp.float32)
    return images if scale is None else images * scale


def standardize(images: ArrayLike, mean: tuple[float, ...], deviation: tuple[float, ...]) -> jax.Array:
    """Brings uint8 images, or floats in [0, 1], [..., C] to zero mean and unit variance, float32 [..., C].

    Mean and deviation are per channel, on the [0, 1] scale.
    """
    return standardize_pixels(to_float(images), mean, deviation)


def standardize_pixels(pixels: jax.Array, mean: tuple[float, ...], deviation: tuple[float, ...]) -> jax.Array:
    """`(pixels / 255 - mean) / deviation`: as `standardize`, of float32 [..., C] on the 0 to 255 scale."""
    if len(mean) == 1:
        return (pixels / 255 - mean[0]) / deviation[0]
    if pixels.shape[-1] != len(mean):
        raise InputError(f"images have {pixels.shape[-1]} channels, the mean {len(mean)}; give images of {len(mean)}")
    shape = (1,) * (pixels.ndim - 1) + (-1,)
    return (pixels / 255 - jnp.asarray(mean).reshape(shape)) / jnp.asarray(deviation).reshape(shape)


def hold_out(data: Dataset, size: int) -> Dataset:
    """Sets the last `size` training examples apart as the split to score, for choosing hyper-parameters.

    The test split is not part of the result, so nothing chosen on it can have seen a test image. Mean, deviation,
    classes and name stay those of the whole. Warns if the held-out part lacks a class.
    """
    images, labels = data.train
    if not 0 < size < len(labels):
        raise InputError(f"cannot hold out {size} of {len(labels)} training images; choose 1 to {len(labels) - 1}")
    missing = np.setdiff1d(labels, labels[-size:])
    if len(missing):
        names = ", ".join(data.classes[label] for label in missing[:3]) + (", ..." if len(missing) > 3 else "")
        warnings.warn(
            f"the last {size} training examples lack {len(missing)} of {len(data.classes)} classes ({names}); "
            "shuffle the training examples first",
            stacklevel=2,
        )
    train, test = Split(images[:-size], labels[:-size]), Split(images[-size:], labels[-size:])
    return dataclasses.replace(data, train=train, test=test)


def little_endian(array: np.ndarray) -> np.ndarray:
    """The array in C order with little-endian elements: the same bytes on every machine."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _split(name: str, images: ArrayLike, labels: ArrayLike) -> Split:
    try:
        images = as_images(images)
    except InputError as error:
        raise InputError(f"{name} {error}") from error
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{name} labels are {labels.dtype} {list(labels.shape)}; give integers [N], of one-hot ones `argmax(1)`"
        )
    if len(images) != len(labels):
        raise InputError(f"{name} has {len(images)} images and {len(labels)} labels; give a label for each image")
    if not len(labels):
        raise InputError(f"{name} has no images; give one or more")
    if labels.min() < 0:
        raise InputError(f"{name} labels begin at {labels.min()}; number the classes from 0")
    if labels.max() > np.iinfo(np.int32).max:
        raise InputError(f"{name} labels reach {labels.max()}; number the classes from 0")
    return Split(images, labels.astype(np.int32))


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel on the [0, 1] scale; deviation 1 of a constant channel."""
    axes, count = (0, 1, 2), images[..., 0].size
    if images.dtype == np.uint8:  # Exact: in integers until the last division.
        sums = images.sum(axes, dtype=np.int64).tolist()
        squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64, casting="unsafe").tolist()
        roots = [math.sqrt(count * square - one * one) for one, square in zip(sums, squares, strict=True)]
        return tuple(one / (255 * count) for one in sums), tuple(root / (255 * count) or 1.0 for root in roots)
    mean = images.mean(axes, dtype=np.float64)
    parts = np.array_split(images, len(images) // 1024 + 1)  # The differences take eight bytes a pixel.
    variance = sum(((part - mean) ** 2).sum(axes) for part in parts) / count
    constant = images.min(axes) == images.max(axes)
    return tuple(mean.tolist()), tuple(np.where(constant, 1, np.sqrt(variance)).tolist())
