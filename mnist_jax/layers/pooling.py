"""2x2 max pooling and ReLU, with a gradient for each platform."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.layers.convolution import stored


def flax_max_pool(x: jax.Array) -> jax.Array:
    """2x2 max pool by `nn.max_pool`."""
    return nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))


def max_pool(x: jax.Array) -> jax.Array:
    """`nn.max_pool(x, (2, 2), (2, 2))`: `[..., h, w, c] -> [..., h // 2, w // 2, c]`; an odd edge is dropped.

    The gradient goes to the first of equal largest values, in row-major order, as Flax's does. On CPU, arrays of rank 4
    have a fast form: the maximum of four strided views.
    """
    return _max_pool(x) if x.ndim == 4 else flax_max_pool(x)


@jax.custom_vjp
def _max_pool(x):
    return lax.platform_dependent(x, cpu=_cpu_max_pool, default=flax_max_pool)


def _cpu_max_pool(x):
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _corners(x):
    """The four strided views of `x`, in row-major order, each as large as the pooled image."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [x[:, :, i, :, j] for i in range(2) for j in range(2)]


def _max_pool_forward(x):
    a, b, c, d = _corners(x)
    first = jnp.where(jnp.maximum(a, b) >= jnp.maximum(c, d), jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3))
    first = stored(first.astype(jnp.int8))  # Else the gradient would compare the four again.
    return _max_pool(x), (first, x)  # XLA drops the one that a platform's gradient does not read.


def _cpu_max_pool_gradient(first, x, g):
    batch, half_height, half_width, channels = g.shape
    corner = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    chosen = first[:, :, None, :, None] == corner
    dx = jnp.where(chosen, g[:, :, None, :, None], 0).reshape(batch, 2 * half_height, 2 * half_width, channels)
    odd = [(0, n - m) for n, m in zip(x.shape[1:3], dx.shape[1:3], strict=True)]
    return jnp.pad(dx, ((0, 0), *odd, (0, 0)))


def _max_pool_backward(residuals, g):
    def default(first, x, g):
        return jax.vjp(flax_max_pool, x)[1](g)[0]

    return (lax.platform_dependent(*residuals, g, cpu=_cpu_max_pool_gradient, default=default),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def relu(x: jax.Array, after_norm: bool = False) -> jax.Array:
    """`max(x, 0)`, with gradient 0 at 0, as `nn.relu`.

    Behind a normalization a CPU stores the result for the gradient, else it would normalize again to know the sign.
    """
    return _relu(x, after_norm)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _relu(x, after_norm):
    return jnp.maximum(x, 0)


def _relu_forward(x, after_norm):
    y = _relu(x, after_norm)
    y = stored(y) if after_norm else y
    return y, y


def _relu_backward(after_norm, y, g):
    def tpu(y, g):
        # The compiler would pack the result of a comparison with 0 into bits, which takes longer than it saves.
        return g * jnp.sign(y)

    return (lax.platform_dependent(y, g, tpu=tpu, default=lambda y, g: jnp.where(y > 0, g, jnp.zeros_like(g))),)


_relu.defvjp(_relu_forward, _relu_backward)
