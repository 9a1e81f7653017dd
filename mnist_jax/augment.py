"""Random affine and elastic distortions on the device: pure functions `(key, images) -> images`."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.errors import InputError


class Affine(NamedTuple):
    """Affine maps about the image's center: scale, then shear, rotate and shift.

    Each field is one value for all images, or float32 [B].

    Attributes:
      rotation: angle in radians, counter-clockwise on the screen.
      shift_down: pixels down.
      shift_right: pixels to the right.
      scale: factor above 0; 2 doubles the size of a digit.
      shear: pixels to the right per pixel up from the center.
    """

    rotation: jax.Array | float = 0.0
    shift_down: jax.Array | float = 0.0
    shift_right: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0
    shear: jax.Array | float = 0.0


class Distortion(NamedTuple):
    """Bounds of random distortions; a callable `distortion(key, images, strength)`, see `distort`.

    Each image has its own draws. All but `elastic` are uniform, between minus and plus the bound.

    Attributes:
      rotation: degrees.
      shift: pixels; down and right are drawn separately.
      scale: fraction below 1; 0.1 draws factors in [0.9, 1.1].
      shear: pixels per pixel.
      elastic: standard deviation, in pixels, of the displacement of each point of a coarse grid, down and right.
    """

    rotation: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    elastic: float = 0.0

    def __call__(self, key: jax.Array, images: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """See `distort`."""
        return distort(key, images, self, strength)


@dataclasses.dataclass(frozen=True)
class EveryEpoch:
    """An augmentation `(key, images) -> images` that acts in every epoch and ignores the strength."""

    function: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, key: jax.Array, images: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """Maps float32 [B, H, W, C], 0 to 255; raises InputError if B or C changes."""
        del strength
        changed = self.function(key, images.astype(jnp.float32))
        shape, wanted = jnp.shape(changed), images.shape
        if len(shape) != 4 or (shape[0], shape[3]) != (wanted[0], wanted[3]):
            raise InputError(f"augment gives shape {shape} for images {wanted}; keep the number of images and channels")
        return changed


_GRID = 5  # Points across and down an image: few enough to be smooth, enough to bend the parts of a digit.


def distort(key: jax.Array, images: jax.Array, distortion: Distortion, strength: jax.Array | float = 1.0) -> jax.Array:
    """Distorts each image by a random affine map and a smooth random displacement of its points.

    The displacement is drawn on a coarse grid and interpolated: the elastic distortions of Simard, Steinkraus and
    Platt, "Best practices for convolutional neural networks applied to visual document analysis", 2003.

    Args:
      key: a `jax.random` key, consumed.
      images: uint8 or float32 [B, H, W, C].
      distortion: bounds of the draws.
      strength: factor of every draw, float32 []; 0 returns the images bit for bit.

    Returns:
      float32 [B, H, W, C] on the scale of `images`.

    Example:
      >>> distort = mj.jit(augment.distort, static_argnames="distortion")
      >>> bounds = augment.Distortion(rotation=7.0, shift=1.5)
      >>> distort(jax.random.key(0), data.train.images[:4], distortion=bounds).shape
      (4, 12, 12, 1)
    """
    batch, height, width, _ = images.shape
    affine_key, elastic_key = jax.random.split(key)
    draws = strength * jax.random.uniform(affine_key, (5, batch), jnp.float32, -1.0, 1.0)
    rotation, down, right, scale, shear = draws
    maps = Affine(
        jnp.deg2rad(distortion.rotation) * rotation,
        distortion.shift * down,
        distortion.shift * right,
        1 + distortion.scale * scale,
        distortion.shear * shear,
    )
    if not isinstance(distortion.elastic, jax.Array) and not distortion.elastic:
        return affine(images, maps)
    grid = strength * distortion.elastic * jax.random.normal(elastic_key, (2, batch, _GRID, _GRID), jnp.float32)
    displacement = jax.image.resize(grid, (2, batch, height, width), "cubic")
    return affine(images, maps, displacement)


def affine(images: jax.Array, maps: Affine, displacement: jax.Array | None = None) -> jax.Array:
    """Resamples images under affine maps, with bilinear interpolation and zeros outside.

    Each pixel of the result is read where the inverse map takes it, as by `scipy.ndimage.affine_transform` of order 1
    and mode "grid-constant". The identity and shifts by whole pixels are exact.

    Args:
      images: uint8 or float32 [B, H, W, C].
      maps: fields scalar or float32 [B].
      displacement: pixels down, and right, added to the place where each pixel is read, float32 [2, B, H, W]; or None.

    Returns:
      float32 [B, H, W, C] on the scale of `images`.

    Example:
      >>> moved = mj.jit(augment.affine)(data.train.images[:4], augment.Affine(shift_right=1))
      >>> np.array_equal(moved[:, :, 1:], data.train.images[:4, :, :-1])
      True
    """
    batch, height, width, channels = images.shape
    maps = Affine(*(jnp.broadcast_to(jnp.asarray(field, jnp.float32), (batch,))[:, None, None] for field in maps))
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None] - middle_y - maps.shift_down
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :] - middle_x - maps.shift_right
    # The inverses of rotation, shear and scale, one after the other; y points down.
    cos, sin = jnp.cos(maps.rotation), jnp.sin(maps.rotation)
    x, y = cos * x - sin * y, sin * x + cos * y
    x = x + maps.shear * y
    source_y, source_x = y / maps.scale + middle_y, x / maps.scale + middle_x
    if displacement is not None:
        source_y, source_x = source_y + displacement[0], source_x + displacement[1]

    # Lookups outside the image read a margin of zeros, one pixel before and two behind.
    source_y, source_x = jnp.clip(source_y, -1, height), jnp.clip(source_x, -1, width)
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    down, right = (source_y - top)[..., None], (source_x - left)[..., None]
    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    stride = width + 3
    corner = (top.astype(jnp.int32) + 1) * stride + left.astype(jnp.int32) + 1
    corner += jnp.arange(batch, dtype=jnp.int32)[:, None, None] * (height + 3) * stride
    # A flat table, because XLA:CPU turns a lookup of its rows into plain loads; several axes are a slow loop.
    table = padded.reshape(-1, channels)

    def pixel(offset: int) -> jax.Array:
        return table.at[corner + offset].get(mode="promise_in_bounds").astype(jnp.float32)

    upper = pixel(0) * (1 - right) + pixel(1) * right
    lower = pixel(stride) * (1 - right) + pixel(stride + 1) * right
    return upper * (1 - down) + lower * down
