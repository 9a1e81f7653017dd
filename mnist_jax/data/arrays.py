"""A data set as two splits of arrays: checks, mean and deviation, standardization."""

import dataclasses
import functools
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from numpy.typing import ArrayLike

from mnist_jax.errors import InputError, plain_number, require, shown
from mnist_jax.runtime import default_types

_MAX_CLASSES = 65_536  # More is a mistake in the labels.
_SCALES = "give integers from 0 to 255 or floats in [0, 1]"

Statistic: TypeAlias = tuple[float, ...] | Float[jax.typing.ArrayLike, " C"]


class Split(NamedTuple):
    """Labeled images.

    Attributes:
      images: uint8, or float32 in [0, 1], [N, H, W, C].
      labels: int32 [N].
    """

    images: UInt8[np.ndarray, "N H W C"] | Float[np.ndarray, "N H W C"]
    labels: Int[np.ndarray, " N"]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of labeled images, with the statistics that standardize them.

    Every new one is checked, also one that `dataclasses.replace` makes. Images and labels are converted, see
    `Dataset.from_arrays`.

    Attributes:
      train: the images to train on.
      test: the images to score, of the same shape and dtype.
      mean: of the training pixels, per channel or one for all, on the [0, 1] scale.
      deviation: standard deviation of the training pixels, above 0, as many as of `mean`.
      classes: names of the labels, two or more.
      name: name of the data set.

    Raises:
      InputError: a shape, dtype, range or length does not fit, or there are fewer than two classes.
    """

    train: Split
    test: Split
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...]
    name: str = "arrays"

    def __post_init__(self) -> None:
        """Checks and converts the fields."""
        classes = tuple(map(str, self.classes))
        if len(set(classes)) < max(2, len(classes)):
            raise InputError(f"classes are {shown(classes)}; give two or more different names")
        train, test = _splits(self.train, self.test, len(classes))
        kinds = [f"{split.images.dtype} {list(split.images.shape[1:])}" for split in (train, test)]
        if kinds[0] != kinds[1]:
            raise InputError(f"train images are {kinds[0]}, test images {kinds[1]}; give both one shape and one scale")
        channels = train.images.shape[-1]
        try:
            moments = np.array((self.mean, self.deviation), np.float64)
        except (TypeError, ValueError):  # No numbers, or of different lengths.
            moments = np.empty((0, 0))
        if moments.shape not in ((2, 1), (2, channels)) or not np.isfinite(moments).all() or moments[1].min() <= 0:
            numbers = f"mean is {shown(self.mean)}, deviation {shown(self.deviation)}"
            raise InputError(f"{numbers}; give tuples of {channels} finite numbers, or of one, with deviations above 0")
        mean, deviation = map(tuple, moments.tolist())
        fields = {"train": train, "test": test, "mean": mean, "deviation": deviation, "classes": classes}
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @classmethod
    def from_arrays(
        cls,
        train: tuple[ArrayLike, ArrayLike],
        test: tuple[ArrayLike, ArrayLike],
        *,
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> "Dataset":
        """Makes a data set of arrays.

        Mean and deviation are those of the training images. A constant channel has deviation 1.

        Args:
          train: images [N, H, W] or [N, H, W, C], integers from 0 to 255 or floats in [0, 1], and labels [N] or
            [N, 1] of any integer dtype, in 0..K-1.
          test: the same, with the image shape and scale of `train`.
          classes: names of the K classes; None for "0" to the largest label.
          name: name of the data set, for runs and reports.

        Returns:
          The data set, with images uint8 or float32 [N, H, W, C] and labels int32 [N]. An array of uint8 is not copied.

        Raises:
          InputError: a shape, dtype, range or length does not fit, or there are fewer than two classes.

        Example:
          >>> x, y = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 2, 0, 1, 2])
          >>> mj.Dataset.from_arrays((x[:3], y[:3]), (x[3:], y[3:]), classes=("ant", "bee", "cat"))
          Dataset('arrays', train=3, test=3, image_shape=(8, 8, 1), classes=3)
        """
        splits = _splits(train, test)
        if classes is None:
            largest = max(int(split.labels.max()) for split in splits)
            classes = list(map(str, range(largest + 1)))
        return cls(*splits, *_moments(splits[0].images), tuple(classes), name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of both splits' arrays, dtypes and shapes, and of the classes."""
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for name, split in (("train", self.train), ("test", self.test)):
            for field, array in split._asdict().items():
                digest.update(f"{name} {field} {array.dtype.name} {array.shape}".encode())
                digest.update(raw_bytes(array))
        return digest.hexdigest()

    def __repr__(self) -> str:
        """Name, sizes and shape, without the arrays."""
        sizes = f"train={len(self.train.labels)}, test={len(self.test.labels)}"
        return f"Dataset({self.name!r}, {sizes}, image_shape={self.image_shape}, classes={len(self.classes)})"


def as_images(images: ArrayLike) -> UInt8[np.ndarray, "N H W C"] | Float[np.ndarray, "N H W C"]:
    """Returns images as uint8, or float32 in [0, 1], [N, H, W, C]; N may be 0. An array of uint8 is not copied.

    Args:
      images: [N, H, W] or [N, H, W, C]: integers from 0 to 255, or floats in [0, 1].

    Raises InputError for anything else.
    """
    try:
        array = np.asarray(images)
    except ValueError as error:
        raise InputError("images differ in shape; give one array [N, H, W] or [N, H, W, C]") from error
    array = array[..., None] if array.ndim == 3 else array
    shape = list(array.shape)
    if array.ndim != 4 or 0 in shape[1:]:
        raise InputError(f"images have shape {shape}; give [N, H, W] or [N, H, W, C], with H, W and C above 0")
    if shape[1] in (1, 3) and shape[3] > 4:
        raise InputError(f"images have shape {shape}, channels first; give channels last, np.moveaxis(images, 1, -1)")
    integer = jnp.issubdtype(array.dtype, jnp.integer)
    if not integer and not jnp.issubdtype(array.dtype, jnp.floating):
        raise InputError(f"images are {array.dtype}; {_SCALES}")
    if np.ma.is_masked(images):
        raise InputError("images have masked pixels; fill them")
    if array.size and array.dtype != np.uint8:
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= (255 if integer else 1)):  # Neither is true of NaN.
            raise InputError(f"images are {array.dtype} from {low} to {high}; {_SCALES}")
    return array.astype(np.uint8 if integer else np.float32, copy=False)


def to_float(images: jax.typing.ArrayLike) -> jax.Array:
    """Converts uint8 images, or floats in [0, 1], to float32 on the 0 to 255 scale."""
    images = jnp.asarray(images)
    pixels = images.astype(jnp.float32)
    return pixels * 255 if jnp.issubdtype(images.dtype, jnp.floating) else pixels


@default_types()
def standardize(
    images: UInt8[jax.typing.ArrayLike, "*N C"] | Float[jax.typing.ArrayLike, "*N C"],
    mean: Statistic,
    deviation: Statistic,
) -> Float[Array, "*N C"]:
    """Standardizes images to zero mean and unit variance.

    Args:
      images: uint8, or floats in [0, 1], [..., C].
      mean: per channel, or one for all, on the [0, 1] scale: [C] or [1].
      deviation: standard deviation, as the mean.

    Returns:
      `(pixels - mean) / deviation`, float32 [..., C].

    Raises:
      InputError: the images have another number of channels than the mean.

    Example:
      >>> mj.standardize(np.array([[0], [255]], np.uint8), (0.5,), (0.25,))
      Array([[-2.],
             [ 2.]], dtype=float32)
    """
    return standardize_pixels(to_float(images), mean, deviation)


def standardize_pixels(pixels: jax.Array, mean: Statistic, deviation: Statistic) -> jax.Array:
    """As `standardize`, for float32 [..., C] on the 0 to 255 scale."""
    shape = (1,) * (pixels.ndim - 1) + (-1,)
    center, scale = (jnp.asarray(value, jnp.float32).reshape(shape) for value in (mean, deviation))
    if center.shape[-1] not in (1, pixels.shape[-1]):
        actual = f"images have {pixels.shape[-1]} channels, the mean {center.shape[-1]}"
        raise InputError(f"{actual}; give images of {center.shape[-1]}")
    return (pixels / 255 - center) / scale


def hold_out(data: Dataset, size: int) -> Dataset:
    """Replaces the test split by the last `size` training examples, for choosing hyper-parameters.

    The result has no test images, so no choice can depend on them. Mean, deviation, classes and name stay those of the
    whole data set. Warns if the held-out part lacks a class.

    Args:
      data: the whole data set, a `Dataset`.
      size: number of examples to hold out, from 1 to one less than the training examples.

    Returns:
      A data set with the other training examples in `train` and the held-out ones in `test`.

    Raises:
      InputError: `size` is out of range.

    Example:
      >>> mj.hold_out(data, 16)
      Dataset('arrays', train=48, test=16, image_shape=(12, 12, 1), classes=3)
    """
    require(data, Dataset, "data", "make a Dataset of it, by Dataset.from_arrays")
    (images, labels), given, size = data.train, size, plain_number(size, int) or 0
    if not 0 < size < len(labels):
        what = f"{shown(given)} of {len(labels)} training images"
        raise InputError(f"cannot hold out {what}; choose 1 to {len(labels) - 1}")
    missing = np.setdiff1d(labels, labels[-size:])
    if len(missing):
        names = ", ".join(data.classes[label] for label in missing[:3]) + (", ..." if len(missing) > 3 else "")
        lacking = f"lack {len(missing)} of {len(data.classes)} classes ({names})"
        warnings.warn(f"the last {size} training examples {lacking}; shuffle the examples first", stacklevel=2)
    train, test = Split(images[:-size], labels[:-size]), Split(images[-size:], labels[-size:])
    return dataclasses.replace(data, train=train, test=test)


def raw_bytes(array: np.ndarray) -> memoryview:
    """An array's little-endian bytes in C order, equal on every machine."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data


def as_split(images: ArrayLike, labels: ArrayLike, num_classes: int = _MAX_CLASSES, name: str = "split") -> Split:
    """Checks images, as `as_images` takes them, and as many integer labels [N] or [N, 1] in 0..num_classes-1.

    Raises InputError for arrays that do not fit.
    """
    try:
        images, array = as_images(images), np.asarray(labels)
    except InputError as error:
        raise InputError(f"{name} {error}") from error
    array = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if array.ndim != 1 or not jnp.issubdtype(array.dtype, jnp.integer):
        actual = f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{name} labels are {actual}; give integers [N], labels.argmax(-1) if they are one-hot")
    if np.ma.is_masked(labels):
        raise InputError(f"{name} labels are masked; leave out images without a label")
    if len(images) != len(array) or not len(array):
        raise InputError(f"{name} has {len(images)} images and {len(array)} labels; give images and one label each")
    if array.min() < 0 or array.max() >= num_classes:
        actual = f"{name} labels go from {array.min()} to {array.max()}"
        raise InputError(f"{actual}; number the classes from 0 to at most {num_classes - 1}")
    return Split(images, array.astype(np.int32))


def _splits(train: Any, test: Any, num_classes: int = _MAX_CLASSES) -> tuple[Split, Split]:
    splits = []
    for name, pair in (("train", train), ("test", test)):
        require(pair, tuple | list, name, "give a pair (images, labels)")
        splits.append(as_split(pair[0], pair[1], num_classes, name))
    return splits[0], splits[1]


def _moments(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel on the [0, 1] scale; a constant channel has deviation 1."""
    axes, count = (0, 1, 2), images[..., 0].size
    if images.dtype == np.uint8:  # Exact: in integers until the last division.
        sums = images.sum(axes, dtype=np.int64).tolist()
        squares = np.einsum("nhwc,nhwc->c", images, images, dtype=np.int64, casting="unsafe").tolist()
        roots = [math.sqrt(count * square - one * one) for one, square in zip(sums, squares, strict=True)]
        return tuple(one / (255 * count) for one in sums), tuple(root / (255 * count) or 1.0 for root in roots)
    mean, deviation = images.mean(axes, dtype=np.float64), images.std(axes, dtype=np.float64)
    constant = images.min(axes) == images.max(axes)
    return tuple(mean.tolist()), tuple(np.where(constant, 1, deviation).tolist())
