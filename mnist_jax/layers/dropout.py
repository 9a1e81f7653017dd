"""Dropout whose mask is a hash of positions, cheap enough to recompute in the backward pass."""

import math
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.errors import InputError
from mnist_jax.layers.convolution import stored


def _mix(h):
    """Permutes 32-bit words so that each input bit flips each output bit about half the time (lowbias32)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x21F0AAAD)
    h = (h ^ (h >> 15)) * jnp.uint32(0x735A2D97)
    return h ^ (h >> 15)


def keep_mask(key: jax.Array, rate: float, shape: Sequence[int]) -> jax.Array:
    """Boolean array, True with probability `1 - rate`, independently at each position. The key is consumed.

    Each position hashes its index with the key. These few integer operations fuse into the code that reads the mask, so
    the backward pass recomputes it instead of loading it from memory.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    position = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _mix(position * jnp.uint32(0x9E3779B9) + data[0] ^ data[-1])
    return bits >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _dropout(x, key, rate, broadcast_dims=()):
    """Zero with probability `rate` < 1, else `x / (1 - rate)`. The key is consumed.

    All positions along `broadcast_dims` share one draw.
    """
    shape = list(x.shape)
    for dim in broadcast_dims:
        shape[dim] = 1
    return jnp.where(keep_mask(key, rate, shape), x * (1 / (1 - rate)), 0)


def _dropout_forward(x, key, rate, broadcast_dims):
    return _dropout(x, key, rate, broadcast_dims), key


def _dropout_backward(rate, broadcast_dims, key, g):
    dx = _dropout(g, key, rate, broadcast_dims)
    return stored(dx), None


_dropout.defvjp(_dropout_forward, _dropout_backward)


class Dropout(nn.Dropout):
    """`nn.Dropout` with cheaper random bits: same fields and arguments, other masks."""

    @nn.compact
    def __call__(self, inputs: jax.Array, deterministic: bool | None = None, rng: jax.Array | None = None) -> jax.Array:
        """Drops elements of a float array of any shape. Raises InputError for a rate outside [0, 1]."""
        if not 0 <= self.rate <= 1:
            raise InputError(f"dropout rate {self.rate} is not a probability; choose one in [0, 1]")
        if nn.merge_param("deterministic", self.deterministic, deterministic) or self.rate == 0:
            return inputs
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return _dropout(inputs, key, float(self.rate), tuple(self.broadcast_dims))
