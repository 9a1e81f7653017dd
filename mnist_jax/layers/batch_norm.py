"""Batch norm with fewer passes over memory than Flax's."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.layers.pooling import max_pool


def _spread(channels):
    """`[c]` to `[1, 1, 1, c]`."""
    return channels.reshape(1, 1, 1, -1)


def _channel_sums(a, b):
    """Sums of `a` and `b` over all but the last axis; elsewhere than on a CPU, XLA fuses the plain form into others."""
    return lax.platform_dependent(
        a, b, cpu=_cpu_channel_sums, default=lambda *both: tuple(z.sum((0, 1, 2)) for z in both)
    )


def _cpu_channel_sums(a, b):
    """In one pass over both."""

    def add(p, q):
        return p[0] + q[0], p[1] + q[1]

    zeros = (jnp.zeros((), a.dtype), jnp.zeros((), b.dtype))
    channels = a.shape[-1]
    # Rows first, while columns and channels lie side by side: the inner loop is then wide enough for the vector unit.
    a, b = (z.reshape(z.shape[0], z.shape[1], -1) for z in (a, b))
    a, b = lax.reduce((a, b), zeros, add, (1,))
    # Then columns, then images: no running sum gets long, which would cost digits.
    a, b = (z.reshape(len(z), -1, channels) for z in (a, b))
    a, b = lax.reduce((a, b), zeros, add, (1,))
    return tuple(lax.reduce((a, b), zeros, add, (0,)))


@jax.custom_vjp
def batch_norm(x, scale, bias, epsilon):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` with the batch's own mean and biased variance.

    `x: [b, h, w, c]`, `scale, bias: [c]`. Returns the output, the mean and the variance; the gradient is the output's.
    """
    return _batch_norm_forward(x, scale, bias, epsilon)[0]


def _statistics(x):
    """Mean and biased variance of each channel."""
    count = math.prod(x.shape[:-1])
    total, squares = _channel_sums(x, x * x)
    mean = total / count
    return mean, jnp.maximum(squares / count - mean * mean, 0)


def _batch_norm_forward(x, scale, bias, epsilon):
    mean, var = _statistics(x)
    inverse = lax.rsqrt(var + epsilon)
    slope = scale * inverse
    y = x * _spread(slope) + _spread(bias - mean * slope)
    return (y, mean, var), (x, scale, mean, inverse)


def _batch_norm_backward(residuals, cotangents):
    x, scale, mean, inverse = residuals
    g = cotangents[0]
    count = math.prod(x.shape[:-1])
    total, product = _channel_sums(g, g * x)
    dscale = (product - mean * total) * inverse
    # dx = scale * inverse * (g - mean(g) - normalised x * mean(g * normalised x)), as one multiply-add in g and x
    slope = scale * inverse
    tilt = slope * inverse * dscale / count
    dx = g * _spread(slope) - (x * _spread(tilt) + _spread(slope * total / count - mean * tilt))
    return dx, dscale, total, None


batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


@jax.custom_vjp
def batch_norm_max_pool(x, bias, epsilon):
    """`max_pool(batch_norm(x, 1, bias, epsilon))`, and the mean and variance of `x`.

    Without a scale that might be negative the two commute but for the statistics, and the largest values are a quarter
    of all: only they are normalised, and only they have a gradient to be summed.
    """
    return _batch_norm_max_pool_forward(x, bias, epsilon)[0]


def _batch_norm_max_pool_forward(x, bias, epsilon):
    mean, var = _statistics(x)
    inverse = lax.rsqrt(var + epsilon)
    largest, pool_gradient = jax.vjp(max_pool, x)
    y = largest * _spread(inverse) + _spread(bias - mean * inverse)
    return (y, mean, var), (x, largest, pool_gradient, mean, inverse)


def _batch_norm_max_pool_backward(residuals, cotangents):
    x, largest, pool_gradient, mean, inverse = residuals
    g = cotangents[0]
    count = math.prod(x.shape[:-1])
    total, product = _channel_sums(g, g * largest)
    tilt = inverse**3 * (product - mean * total) / count
    (dx,) = pool_gradient(g * _spread(inverse))
    return dx - (x * _spread(tilt) + _spread(inverse * total / count - mean * tilt)), total, None


batch_norm_max_pool.defvjp(_batch_norm_max_pool_forward, _batch_norm_max_pool_backward)


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all but the last axis: same variables, same running averages, fewer passes over memory.

    With `pool`, which goes without a scale, the 2x2 max pool of it.
    """

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    pool: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same, or [B, H // 2, W // 2, C], of type `dtype`; the statistics are taken in float32."""
        channels = x.shape[-1:]
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels) if self.use_scale else jnp.ones(channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        if self.use_running_average:
            slope = scale * lax.rsqrt(var.value + self.epsilon)
            x = max_pool(x) if self.pool else x
            return (x * _spread(slope) + _spread(bias - mean.value * slope)).astype(self.dtype)
        if self.pool:
            y, batch_mean, batch_var = batch_norm_max_pool(x, bias, self.epsilon)
        else:
            y, batch_mean, batch_var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y.astype(self.dtype)
