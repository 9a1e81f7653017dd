"""Dropout by a hash of places, cheap enough to be drawn again in the backward pass."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.layers.convolution import materialise


def _mix(h):
    """A bijection of 32-bit words in which every input bit flips every output bit about half the time (lowbias32)."""
    h = (h ^ (h >> 16)) * jnp.uint32(0x21F0AAAD)
    h = (h ^ (h >> 15)) * jnp.uint32(0x735A2D97)
    return h ^ (h >> 15)


def keep_mask(key, rate, shape):
    """True with probability `1 - rate`, independently in each place. The key is consumed.

    Each place hashes its own number with the key: a few integer operations that fuse into whatever uses the mask, so
    that the backward pass draws it again rather than reading it from memory.
    """
    data = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    place = lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _mix(place * jnp.uint32(0x9E3779B9) + data[0] ^ data[-1])
    return bits >= jnp.uint32(round(rate * 2**32))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x, key, rate):
    """Zero with probability `rate`, else `x / (1 - rate)`. The key is consumed."""
    return jnp.where(keep_mask(key, rate, x.shape), x * (1 / (1 - rate)), 0)


def _dropout_forward(x, key, rate):
    return dropout(x, key, rate), key


def _dropout_backward(rate, key, g):
    dx = dropout(g, key, rate)
    return lax.platform_dependent(dx, cpu=materialise, default=lambda x: x), None


dropout.defvjp(_dropout_forward, _dropout_backward)


class Dropout(nn.Module):
    """`nn.Dropout` with cheap bits: zero with probability `rate`, else `x / (1 - rate)`; stream `dropout`."""

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Floating point of any shape to the same."""
        if self.deterministic or self.rate == 0:
            return x
        return dropout(x, self.make_rng("dropout"), self.rate)
