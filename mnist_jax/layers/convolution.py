"""Convolution at stride 1: GPU and TPU keep XLA's own; on a CPU each shape gets the fastest form that was measured."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_CONV_DIMENSIONS = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _DIMENSIONS)  # the same, as `nn.Conv` says it
_KERNEL_GRADIENT = ("CHWN", "IHWO", "HWNC")  # a convolution whose batch is the channels, and the other way round


@jax.jit
def _identity(x):
    return x


def materialise(x):
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
        return materialise(y)
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


def _padding_back(kernel, padding):
    """The padding of the convolution that the gradient in the input is."""
    return tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(kernel.shape[:2], padding, strict=True))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, padding):
    return lax.platform_dependent(
        x, kernel, cpu=lambda x, k: _cpu_conv(x, k, padding), default=lambda x, k: _xla_conv(x, k, padding)
    )


def _conv_forward(x, kernel, padding):
    x = lax.platform_dependent(x, cpu=materialise, default=lambda x: x)
    return _conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding, residuals, g):
    def cpu(x, kernel, g):
        size = kernel.shape[:2]
        g = materialise(g)
        if _spans_image(x, size, padding):
            dx = (g.reshape(len(x), -1) @ kernel.reshape(-1, kernel.shape[3]).T).reshape(x.shape)
        else:
            dx = _cpu_conv(g, kernel[::-1, ::-1].swapaxes(2, 3), _padding_back(kernel, padding))
        return dx, _cpu_kernel_gradient(x, g, padding)

    def xla(x, kernel, g):
        return jax.vjp(partial(_xla_conv, padding=padding), x, kernel)[1](g)

    return lax.platform_dependent(*residuals, g, cpu=cpu, default=xla)


_conv.defvjp(_conv_forward, _conv_backward)


# Depthwise: each channel has a kernel of its own, `[h, w, 1, c]` ------------------------------------------------------


def _xla_depthwise(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS, feature_group_count=x.shape[3]
    )


def _shifted_rows(x, kernel_size, padding):
    """For each tap of a kernel the image as it sees it, `[b, h, w c]`: columns and channels side by side.

    The inner loop is then wide enough for the vector unit, and a tap to the right is c places further on.
    """
    channels = x.shape[3]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], kernel_size, strict=True))
    x = x.reshape(*x.shape[:2], -1)
    return [
        x[:, i : i + height, j * channels : (j + width) * channels]
        for i in range(kernel_size[0])
        for j in range(kernel_size[1])
    ]


def _cpu_depthwise(x, kernel, padding):
    """Shifted images times their taps, added up: one pass over `x`."""
    rows = _shifted_rows(x, kernel.shape[:2], padding)
    batch, height, across = rows[0].shape
    # Materialised, or their places are worked out again for every element, which takes longer than the products.
    taps = materialise(jnp.tile(kernel.reshape(len(rows), 1, 1, -1), across // x.shape[3]))
    return materialise(sum(row * tap for row, tap in zip(rows, taps, strict=True))).reshape(
        batch, height, -1, x.shape[3]
    )


def _cpu_depthwise_kernel_gradient(x, g, padding):
    """Rows first, two taps in a pass: of more sums at once the compiler vectorises only some widths."""
    kernel_size = tuple(n + sum(p) - m + 1 for n, p, m in zip(x.shape[1:3], padding, g.shape[1:3], strict=True))
    rows, (batch, height, width, channels) = _shifted_rows(x, kernel_size, padding), g.shape
    g = g.reshape(batch, height, -1)

    def add(p, q):
        return tuple(a + b for a, b in zip(p, q, strict=True))

    sums = []
    for pair in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        sums += map(materialise, lax.reduce([row * g for row in pair], [jnp.zeros((), g.dtype)] * len(pair), add, (1,)))
    return jnp.stack([one.sum(0).reshape(width, channels).sum(0) for one in sums]).reshape(*kernel_size, 1, channels)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, padding):
    return lax.platform_dependent(
        x, kernel, cpu=partial(_cpu_depthwise, padding=padding), default=partial(_xla_depthwise, padding=padding)
    )


def _depthwise_forward(x, kernel, padding):
    x = lax.platform_dependent(x, cpu=materialise, default=lambda x: x)
    return _depthwise(x, kernel, padding), (x, kernel)


def _depthwise_backward(padding, residuals, g):
    def cpu(x, kernel, g):
        g = materialise(g)
        back = _padding_back(kernel, padding)
        return _cpu_depthwise(g, kernel[::-1, ::-1], back), _cpu_depthwise_kernel_gradient(x, g, padding)

    def xla(x, kernel, g):
        return jax.vjp(partial(_xla_depthwise, padding=padding), x, kernel)[1](g)

    return lax.platform_dependent(*residuals, g, cpu=cpu, default=xla)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def conv_general_dilated(lhs, rhs, window_strides, padding, **options):
    """`lax.conv_general_dilated` for `nn.Conv`: fast at stride 1 undilated, dense or depthwise, else XLA's own."""
    groups = options.get("feature_group_count", 1)
    others = [options.get(name) or 1 for name in ("lhs_dilation", "rhs_dilation")]
    plain = all(math.prod(np.atleast_1d(one)) == 1 for one in (window_strides, *others))
    known = options.get("dimension_numbers", _DIMENSIONS) in (_DIMENSIONS, _CONV_DIMENSIONS)
    depthwise = groups == lhs.shape[3] == rhs.shape[3] and groups > 1
    if not (plain and known and (groups == 1 or depthwise)):
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], (1, 1), padding)
    return (_depthwise if depthwise else _conv)(lhs, rhs, tuple(map(tuple, padding)))
