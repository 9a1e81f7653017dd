"""Batch norm with fewer passes over memory than Flax's."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax


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


def _batch_norm_forward(x, scale, bias, epsilon):
    count = math.prod(x.shape[:-1])
    total, squares = _channel_sums(x, x * x)
    mean = total / count
    var = jnp.maximum(squares / count - mean * mean, 0)
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


class BatchNorm(nn.Module):
    """`nn.BatchNorm` over all but the last axis: same variables, same running averages, fewer passes over memory."""

    use_running_average: bool
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same, of type `dtype`; the statistics are taken in float32."""
        channels = x.shape[-1:]
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels) if self.use_scale else jnp.ones(channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        var = self.variable("batch_stats", "var", jnp.ones, channels)
        if self.use_running_average:
            slope = scale * lax.rsqrt(var.value + self.epsilon)
            return (x * _spread(slope) + _spread(bias - mean.value * slope)).astype(self.dtype)
        y, batch_mean, batch_var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y.astype(self.dtype)
