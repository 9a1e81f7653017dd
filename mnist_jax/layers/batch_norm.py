"""Batch norm with fewer passes over memory than Flax's."""

import inspect
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jax import lax

from mnist_jax.layers.convolution import stored
from mnist_jax.layers.pooling import max_pool


def _spread(channels):
    """`[c]` to `[1, 1, 1, c]`."""
    return channels.reshape(1, 1, 1, -1)


def _channel_sums(a, b):
    """Sums of `a` and `b` over all but the last axis. On GPU and TPU XLA fuses the plain form."""

    def plain(a, b):
        return a.sum((0, 1, 2)), b.sum((0, 1, 2))

    return lax.platform_dependent(a, b, cpu=_cpu_channel_sums, default=plain)


def _cpu_channel_sums(a, b):
    """Both sums in one pass."""

    def add(p, q):
        return p[0] + q[0], p[1] + q[1]

    zeros = (jnp.zeros((), a.dtype), jnp.zeros((), b.dtype))
    channels = a.shape[-1]
    # Rows first, with columns and channels merged: the inner loop is then wide enough for the vector unit.
    a, b = (z.reshape(z.shape[0], z.shape[1], -1) for z in (a, b))
    a, b = lax.reduce((a, b), zeros, add, (1,))
    # Then columns, then images, because long running sums lose digits.
    a, b = (z.reshape(len(z), -1, channels) for z in (a, b))
    a, b = lax.reduce((a, b), zeros, add, (1,))
    return tuple(lax.reduce((a, b), zeros, add, (0,)))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _batch_norm(x, scale, bias, epsilon, pool=False):
    """`(x - mean) / sqrt(var + epsilon) * scale + bias` with the batch's mean and biased variance.

    With `pool`, the scale must be 1, and a 2x2 max pool follows. Normalization then is increasing and commutes with the
    maximum, so only a quarter of the values is normalized and has a gradient to sum.

    `x: [b, h, w, c]`, `scale, bias: [c]`, all float32. Returns the output, the mean and the variance.
    """
    return _batch_norm_forward(x, scale, bias, epsilon, pool)[0]


def _batch_norm_forward(x, scale, bias, epsilon, pool):
    count = math.prod(x.shape[:-1])
    total, squares = _channel_sums(x, x * x)
    mean = total / count
    var = jnp.maximum(squares / count - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    slope = scale * inverse
    kept, pool_gradient = jax.vjp(max_pool, x) if pool else (x, None)
    y = kept * _spread(slope) + _spread(bias - mean * slope)
    return (y, mean, var), (x, kept, pool_gradient, scale, mean, inverse)


def _batch_norm_backward(pool, residuals, cotangents):
    x, kept, pool_gradient, scale, mean, inverse = residuals
    g, dmean, dvar = cotangents
    count = math.prod(x.shape[:-1])
    kept = stored(kept) if pool else kept  # Pooling inside the sums takes six times as long.
    total, product = _channel_sums(g, g * kept)
    dscale = (product - mean * total) * inverse
    # dx = scale * inverse * (g - mean(g) - z * mean(g * z)) + (dmean + 2 * (x - mean) * dvar) / count
    # as one multiply-add in g and x.
    slope = scale * inverse
    # Both forms are equal except for rounding.
    bend = inverse**3 * (product - mean * total) if pool else slope * inverse * dscale
    tilt = (bend - 2 * dvar) / count
    dx = g * _spread(slope)
    dx = pool_gradient(dx)[0] if pool else dx
    dx -= x * _spread(tilt) + _spread((slope * total - dmean) / count - mean * tilt)
    return dx, dscale, total, None


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` with fewer passes over memory: same fields, defaults, variables and results.

    The fast form takes `[b, h, w, c]` and has float32 statistics over all axes but the last. Other inputs, and fields
    or arguments that ask for more (`mask`, `axis_name`, ...), use Flax's form.

    Attributes:
      pool: whether a 2x2 max pool follows.
    """

    pool: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalizes [B, H, W, C]; with `pool` returns [B, H // 2, W // 2, C]."""
        types = x.dtype, self.param_dtype, x.dtype if self.dtype is None else self.dtype
        if not (
            x.ndim == 4
            and 0 not in x.shape
            and self.axis in (-1, 3)
            and jnp.result_type(*types, jnp.float32) == jnp.float32
            and self.axis_name is None
            and mask is None
            and self.use_fast_variance
            and self.force_float32_reductions
            and not (self.pool and self.use_scale)
        ):
            call = inspect.unwrap(nn.BatchNorm.__call__)  # Flax would record `super().__call__` as a second call.
            y = call(self, x, use_running_average, mask=mask)
            return max_pool(y) if self.pool else y
        average = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        channels = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        scale = self.param("scale", self.scale_init, channels, self.param_dtype) if self.use_scale else None
        bias = self.param("bias", self.bias_init, channels, self.param_dtype) if self.use_bias else None
        dtype = canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        x = x.astype(jnp.float32)
        scale = jnp.ones(channels, jnp.float32) if scale is None else scale.astype(jnp.float32)
        bias = jnp.zeros(channels, jnp.float32) if bias is None else bias.astype(jnp.float32)
        if average:
            slope = scale * lax.rsqrt(var.value + self.epsilon)
            x = max_pool(x) if self.pool else x
            return (x * _spread(slope) + _spread(bias - mean.value * slope)).astype(dtype)
        y, batch_mean, batch_var = _batch_norm(x, scale, bias, self.epsilon, self.pool)  # pyright: ignore[reportGeneralTypeIssues]
        if not self.is_initializing():
            mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
            var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y.astype(dtype)
