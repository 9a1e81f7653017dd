"""Convolution, pooling, batch norm and dropout with a lowering that suits the platform.

Values, gradients and parameter trees are those of `nn.Conv`, `nn.max_pool`, `nn.BatchNorm` and `nn.Dropout`
(dropout draws other bits). Images are `[batch, height, width, channels]`, kernels `[height, width, in, out]`,
strides are 1. GPU and TPU keep XLA's own convolution; on CPU each shape gets the fastest form that was measured.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_CONV_DIMENSIONS = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _DIMENSIONS)  # the same, as `nn.Conv` says it
_KERNEL_GRADIENT = ("CHWN", "IHWO", "HWNC")  # a convolution whose batch is the channels, and the other way round


# Convolution ---------------------------------------------------------------------------------------------------------


@jax.jit
def _identity(x):
    return x


def _materialise(x):
    """Keeps XLA:CPU from computing `x` again inside every operation that reads it.

    An optimisation barrier goes away before XLA fuses; a call that must not be inlined stays, and costs no copy.
    """
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


def _xla_conv(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


def _xla_kernel_gradient(x, g, padding):
    return lax.conv_general_dilated(x, g, (1, 1), padding, dimension_numbers=_KERNEL_GRADIENT)


def _spans_image(x, kernel_size, padding):
    """Whether the kernel fits the image in one place only, so that the convolution is one matrix product."""
    return not any(map(any, padding)) and kernel_size == x.shape[1:3]


def _pair_columns(kernel, left):
    """The kernel of the same convolution over pairs of columns: `[h, w, i, o] -> [h, pairs, 2 i, 2 o]`.

    Column b of output pair q reads column a of input pair q + j through tap `2 j + a - b + left`, if there is one.
    """
    height, width, inputs, outputs = kernel.shape
    first, last = -((left + 1) // 2), (width - left) // 2
    taps = [[[2 * j + a - b + left for b in range(2)] for a in range(2)] for j in range(first, last + 1)]
    zero = jnp.zeros((height, inputs, outputs), kernel.dtype)
    paired = jnp.stack(
        [
            jnp.concatenate(
                [jnp.concatenate([kernel[:, t] if 0 <= t < width else zero for t in row], -1) for row in pair], -2
            )
            for pair in taps
        ],
        axis=1,
    )
    return paired, (-first, last)


def _cpu_conv(x, kernel, padding):
    """Convolution on CPU; as fast as XLA's own at worst."""
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    (top, bottom), (left, right) = padding
    out_height = height + top + bottom - kernel.shape[0] + 1
    out_width = width + left + right - kernel.shape[1] + 1
    if kernel.shape[:2] == (1, 1) and not any(map(any, padding)):
        return (x.reshape(-1, inputs) @ kernel[0, 0]).reshape(batch, height, width, outputs)
    if _spans_image(x, kernel.shape[:2], padding):
        return (x.reshape(batch, -1) @ kernel.reshape(-1, outputs)).reshape(batch, 1, 1, outputs)
    if inputs == 1 and kernel.shape[0] * kernel.shape[1] <= 9:
        # One channel leaves a matrix product nothing to sum over: multiply shifted images and add.
        x = jnp.pad(x[..., 0], ((0, 0), *padding))
        y = sum(
            x[:, i : i + out_height, j : j + out_width, None] * kernel[i : i + 1, j : j + 1]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        return _materialise(y)
    if inputs <= 16 and outputs <= 16 and kernel.shape[1] == 3 and not (width % 2 or out_width % 2 or left % 2):
        # Narrow layers starve the matrix unit: two columns at a time cost a third more arithmetic, and less time.
        paired, (before, after) = _pair_columns(kernel, left)
        after -= (width - out_width) // 2
        x = x.reshape(batch, height, width // 2, 2 * inputs)
        y = _xla_conv(x, paired, (padding[0], (before, after)))
        return y.reshape(batch, out_height, out_width, outputs)
    return _xla_conv(x, kernel, padding)


def _cpu_kernel_gradient(x, g, padding):
    """Gradient of `sum(g * conv(x, kernel))` in the kernel, on CPU."""
    inputs, outputs = x.shape[3], g.shape[3]
    height, width = (n + sum(p) - m + 1 for n, p, m in zip(x.shape[1:3], padding, g.shape[1:3], strict=True))
    if (height, width) == (1, 1) and not any(map(any, padding)):
        return (x.reshape(-1, inputs).T @ g.reshape(-1, outputs)).reshape(1, 1, inputs, outputs)
    if _spans_image(x, (height, width), padding):
        return (x.reshape(len(x), -1).T @ g.reshape(-1, outputs)).reshape(height, width, inputs, outputs)
    return _xla_kernel_gradient(x, g, padding)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, padding):
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, k: _cpu_conv(x, k, padding), default=lambda x, k: _xla_conv(x, k, padding)
    )


def _conv_forward(x, kernel, padding):
    x = lax.platform_dependent(x, cpu=_materialise, default=lambda x: x)
    return _conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding, residuals, g):
    x, kernel = residuals
    size = kernel.shape[:2]
    back = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, padding, strict=True))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)

    def cpu(x, g, flipped):
        g = _materialise(g)
        if _spans_image(x, size, padding):
            dx = (g.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[3]).T).reshape(x.shape)
        else:
            dx = _cpu_conv(g, flipped, back)
        return dx, _cpu_kernel_gradient(x, g, padding)

    def xla(x, g, flipped):
        return _xla_conv(g, flipped, back), _xla_kernel_gradient(x, g, padding)

    return lax.platform_dependent(x, g, flipped, cpu=cpu, default=xla)


_conv.defvjp(_conv_forward, _conv_backward)


def conv_general_dilated(lhs, rhs, window_strides, padding, **options):
    """`lax.conv_general_dilated` for `nn.Conv`: fast at stride 1 without dilation or groups, else XLA's own."""
    ones = (
        window_strides,
        options.get("lhs_dilation"),
        options.get("rhs_dilation"),
        options.get("feature_group_count"),
    )
    plain = all(math.prod(np.atleast_1d(one or 1)) == 1 for one in ones)
    if not plain or options.get("dimension_numbers", _DIMENSIONS) not in (_DIMENSIONS, _CONV_DIMENSIONS):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
    return _conv(lhs, rhs, tuple(map(tuple, padding)))


# Pooling -------------------------------------------------------------------------------------------------------------


@jax.custom_vjp
def max_pool(x):
    """Largest value of every 2x2 window. `[b, h, w, c] -> [b, h // 2, w // 2, c]`; an odd edge is dropped.

    The gradient goes to the first largest value of a window, rows before columns, as `nn.max_pool` does it.
    """
    a, b, c, d = _corners(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _corners(x):
    """The four strided views of `x`, in row-major order, each as large as the pooled image."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return [x[:, :, i, :, j] for i in range(2) for j in range(2)]


def _max_pool_forward(x):
    a, b, c, d = _corners(x)
    first = jnp.where(jnp.maximum(a, b) >= jnp.maximum(c, d), jnp.where(a >= b, 0, 1), jnp.where(c >= d, 2, 3)).astype(
        jnp.int8
    )
    return max_pool(x), (first, x[:0])


def _max_pool_backward(residuals, g):
    first, like = residuals
    batch, half_height, half_width, channels = g.shape
    corner = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    chosen = first[:, :, None, :, None] == corner
    dx = jnp.where(chosen, g[:, :, None, :, None], 0).reshape(batch, 2 * half_height, 2 * half_width, channels)
    odd = [(0, n - m) for n, m in zip(like.shape[1:3], dx.shape[1:3], strict=True)]
    return (jnp.pad(dx, ((0, 0), *odd, (0, 0))),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# Batch norm ----------------------------------------------------------------------------------------------------------


def _spread(channels):
    """`[c]` to `[1, 1, 1, c]`."""
    return channels.reshape(1, 1, 1, -1)


def _channel_sums(a, b):
    """Sums of `a` and `b` over all but the last axis, in one pass over both."""

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
    return lax.reduce((a, b), zeros, add, (0,))


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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] to the same, of type `dtype`; the statistics are taken in float32."""
        channels = x.shape[-1:]
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, channels)
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


# Dropout -------------------------------------------------------------------------------------------------------------


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
    return lax.platform_dependent(dx, cpu=_materialise, default=lambda x: x), None


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


# What a network is made of -------------------------------------------------------------------------------------------


class Layers(NamedTuple):
    """The layers of a network; their arguments are those of Flax's."""

    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    dropout: Callable[..., nn.Module]
    max_pool: Callable[[jax.Array], jax.Array]


FAST = Layers(partial(nn.Conv, conv_general_dilated=conv_general_dilated), BatchNorm, Dropout, max_pool)
FLAX = Layers(nn.Conv, nn.BatchNorm, nn.Dropout, partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2)))
