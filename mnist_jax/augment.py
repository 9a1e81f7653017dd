"""Random distortions, affine and elastic: `(key, images) -> images`, pure, on the device."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnist_jax.errors import InputError


class Affine(NamedTuple):
    """Affine maps about the image's centre: scaled, then sheared, then rotated, then shifted.

    Either one value for all images or an array [B] for each field.

    Attributes:
      rotation: angle in radians, counter-clockwise as the image is looked at.
      shift_down: in pixels.
      shift_right: in pixels.
      scale: factor above 0; 2 doubles the size of what is drawn.
      shear: pixels to the right per pixel up from the centre.
    """

    rotation: jax.Array | float = 0.0
    shift_down: jax.Array | float = 0.0
    shift_right: jax.Array | float = 0.0
    scale: jax.Array | float = 1.0
    shear: jax.Array | float = 0.0


class Distortion(NamedTuple):
    """How far `distort` goes either way from no distortion. Each image has draws of its own.

    All but `elastic` are bounds of uniform draws. Called as `distortion(key, images, strength)`, it distorts.

    Attributes:
      rotation: in degrees.
      shift: in pixels, down and right drawn apart.
      scale: as a fraction below 1: 0.1 draws factors in [0.9, 1.1].
      shear: in pixels per pixel.
      elastic: standard deviation, in pixels, of what each point of a coarse grid is displaced by, down and right.
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
class Always:
    """An augmentation `(key, images) -> images` that acts in every epoch, whatever the strength."""

    function: Callable[[jax.Array, jax.Array], jax.Array]

    def __call__(self, key: jax.Array, images: jax.Array, strength: jax.Array | float = 1.0) -> jax.Array:
        """Images float32 [B, H, W, C], 0 to 255, to the same; raises InputError if the function gives others."""
        del strength
        changed = self.function(key, images.astype(jnp.float32))
        found, wanted = jnp.shape(changed), images.shape
        if len(found) != 4 or (found[0], found[3]) != (wanted[0], wanted[3]):
            raise InputError(f"augment gives shape {found} for images {wanted}; return as many, with as many channels")
        return changed


_GRID = 5  # Points across and down an image, as smooth as a pen's stroke and as local as a digit's parts.


def distort(key: jax.Array, images: jax.Array, distortion: Distortion, strength: jax.Array | float = 1.0) -> jax.Array:
    """Distorts each image by an affine map of its own and, on top, by a smooth displacement of its points.

    The displacement is drawn on a coarse grid and interpolated between: the elastic distortions of Simard, Steinkraus
    and Platt, "Best practices for convolutional neural networks applied to visual document analysis", 2003.

    Args:
      key: a `jax.random` key, consumed.
      images: uint8 or float32 [B, H, W, C].
      distortion: how far.
      strength: factor of every draw, float32 []; 0 gives the images to the bit.

    Returns:
      float32 [B, H, W, C] on the scale of `images`.
    """
    batch, height, width, _ = images.shape
    affine_key, elastic_key = jax.random.split(key)
    draws = strength * jax.random.uniform(affine_key, (5, batch), minval=-1.0, maxval=1.0)
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
    grid = strength * distortion.elastic * jax.random.normal(elastic_key, (2, batch, _GRID, _GRID))
    displacement = jax.image.resize(grid, (2, batch, height, width), "cubic")
    return affine(images, maps, displacement)


def affine(images: jax.Array, maps: Affine, displacement: jax.Array | None = None) -> jax.Array:
    """Draws images anew under affine maps, with bilinear interpolation and zeros outside.

    Each pixel of the result is looked up where the inverse map takes it, as `scipy.ndimage.affine_transform` of order 1
    and mode "grid-constant" does. Identity gives the images and a shift by whole pixels shifts the array, to the bit.

    Args:
      images: uint8 or float32 [B, H, W, C].
      maps: fields scalar or float32 [B].
      displacement: float32 [2, B, H, W]: how many pixels further down, and right, each pixel is looked up.

    Returns:
      float32 [B, H, W, C].
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

    # A margin of zeros, one pixel before and two behind, takes every lookup outside the image.
    source_y, source_x = jnp.clip(source_y, -1, height), jnp.clip(source_x, -1, width)
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    down, right = (source_y - top)[..., None], (source_x - left)[..., None]
    padded = jnp.pad(images, ((0, 0), (1, 2), (1, 2), (0, 0)))
    stride = width + 3
    corner = (top.astype(jnp.int32) + 1) * stride + left.astype(jnp.int32) + 1
    corner += jnp.arange(batch)[:, None, None] * (height + 3) * stride
    # One flat table: XLA:CPU turns a lookup of rows in it into plain loads; several axes are a slow loop.
    table = padded.reshape(-1, channels)

    def pixel(offset: int) -> jax.Array:
        return table.at[corner + offset].get(mode="promise_in_bounds").astype(jnp.float32)

    upper = pixel(0) * (1 - right) + pixel(1) * right
    lower = pixel(stride) * (1 - right) + pixel(stride + 1) * right
    return upper * (1 - down) + lower * down
