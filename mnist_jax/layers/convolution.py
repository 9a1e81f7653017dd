"""Convolution with stride 1: XLA's form on GPU and TPU, the fastest form measured for each shape on CPU."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_CONV_DIMENSIONS = lax.conv_dimension_numbers((1,) * 4, (1,) * 4, _DIMENSIONS)  # as `nn.Conv` passes them
_KERNEL_GRADIENT = ("CHWN", "IHWO", "HWNC")  # batch and channels change places


@jax.jit
def _identity(x):
    return x


def materialize(x: jax.typing.ArrayLike) -> jax.Array:
    """Returns `x`, and keeps XLA:CPU from fusing its computation into every operation that reads it.

    XLA removes optimization barriers before it fuses. A call that must not be inlined stays, and costs nothing.
    """
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


def stored(x: Any) -> jax.Array:
    """`x`, which a CPU materializes; on GPU and TPU XLA decides."""
    return lax.platform_dependent(x, cpu=materialize, default=lambda x: x)


def _xla_conv(x, kernel, padding):
    groups = x.shape[3] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS, feature_group_count=groups
    )


def _as_matrix(x, size, padding):
    """The images as a matrix with one row per output pixel; None unless each input pixel is in one row only."""
    if any(map(any, padding)):
        return None
    if size == (1, 1):
        return x.reshape(-1, x.shape[3])
    return x.reshape(len(x), -1) if size == x.shape[1:3] else None


def _pair_columns(kernel, left):
    """Rewrites a kernel for images whose columns are merged in pairs: `[h, w, i, o] -> [h, pairs, 2 i, 2 o]`.

    Column b of output pair q reads column a of input pair q + j through tap `2 j + a - b + left`, zero if outside.
    Returns the kernel, and the padding in pairs on the left and on the right.
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
    if kernel.shape[2] < x.shape[3]:
        return _cpu_depthwise(x, kernel, padding)
    batch, height, width, inputs = x.shape
    outputs = kernel.shape[3]
    (top, bottom), (left, right) = padding
    out_height = height + top + bottom - kernel.shape[0] + 1
    out_width = width + left + right - kernel.shape[1] + 1
    if (matrix := _as_matrix(x, kernel.shape[:2], padding)) is not None:
        return (matrix @ kernel.reshape(-1, outputs)).reshape(batch, out_height, out_width, outputs)
    if inputs == 1 and kernel.shape[0] * kernel.shape[1] <= 9:
        # With one input channel a matrix product would sum over one element. Adding shifted images is faster.
        x = jnp.pad(x[..., 0], ((0, 0), *padding))
        y = sum(
            x[:, i : i + out_height, j : j + out_width, None] * kernel[i : i + 1, j : j + 1]
            for i in range(kernel.shape[0])
            for j in range(kernel.shape[1])
        )
        return materialize(y)
    if inputs <= 16 and outputs <= 16 and kernel.shape[1] == 3 and not (width % 2 or out_width % 2 or left % 2):
        # Narrow layers underuse the matrix unit. Pairs of columns take a third more arithmetic but less time.
        paired, (before, after) = _pair_columns(kernel, left)
        after -= (width - out_width) // 2
        x = x.reshape(batch, height, width // 2, 2 * inputs)
        y = _xla_conv(x, paired, (padding[0], (before, after)))
        return y.reshape(batch, out_height, out_width, outputs)
    return _xla_conv(x, kernel, padding)


def _cpu_kernel_gradient(x, g, size, padding):
    """Gradient of `sum(g * conv(x, kernel))` with respect to a kernel of this size."""
    if (matrix := _as_matrix(x, size, padding)) is not None:
        return (matrix.T @ g.reshape(-1, g.shape[3])).reshape(*size, x.shape[3], g.shape[3])
    return lax.conv_general_dilated(x, g, (1, 1), padding, dimension_numbers=_KERNEL_GRADIENT)


# Depthwise: one kernel for each channel, `[h, w, 1, c]` ---------------------------------------------------------------


def _shifted_rows(x, kernel_size, padding):
    """The shifted images `[b, h, w * c]` that the taps of a kernel multiply.

    Merging columns and channels makes the inner loop wide enough for the vector unit.
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
    """Sum of shifted images times taps, in one pass over `x`."""
    rows = _shifted_rows(x, kernel.shape[:2], padding)
    batch, height, across = rows[0].shape
    # Materialize: XLA would otherwise recompute the tiling index for every element.
    taps = materialize(jnp.tile(kernel.reshape(len(rows), 1, 1, -1), across // x.shape[3]))
    return materialize(sum(row * tap for row, tap in zip(rows, taps, strict=True))).reshape(
        batch, height, -1, x.shape[3]
    )


def _cpu_depthwise_kernel_gradient(x, g, size, padding):
    """Sums over rows first, two taps per pass, because XLA vectorizes only some widths of more sums."""
    rows, (batch, height, width, channels) = _shifted_rows(x, size, padding), g.shape
    g = g.reshape(batch, height, -1)

    def add(p, q):
        return tuple(a + b for a, b in zip(p, q, strict=True))

    sums = []
    for pair in (rows[i : i + 2] for i in range(0, len(rows), 2)):
        sums += map(materialize, lax.reduce([row * g for row in pair], [jnp.zeros((), g.dtype)] * len(pair), add, (1,)))
    return jnp.stack([one.sum(0).reshape(width, channels).sum(0) for one in sums]).reshape(*size, 1, channels)


# Either kind ----------------------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, padding):
    return lax.platform_dependent(
        x, kernel, cpu=partial(_cpu_conv, padding=padding), default=partial(_xla_conv, padding=padding)
    )


def _conv_forward(x, kernel, padding):
    x = stored(x)
    return _conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding, residuals, g):
    def cpu(x, kernel, g):
        size, outputs = kernel.shape[:2], kernel.shape[3]
        g, dense = materialize(g), kernel.shape[2] == x.shape[3]
        if dense and _as_matrix(x, size, padding) is not None:
            dx = (g.reshape(-1, outputs) @ kernel.reshape(-1, outputs).T).reshape(x.shape)
        else:
            turned = kernel[::-1, ::-1].swapaxes(2, 3) if dense else kernel[::-1, ::-1]
            back = tuple((k - 1 - low, k - 1 - high) for k, (low, high) in zip(size, padding, strict=True))
            dx = _cpu_conv(g, turned, back)
        kernel_gradient = _cpu_kernel_gradient if dense else _cpu_depthwise_kernel_gradient
        return dx, kernel_gradient(x, g, size, padding)

    def xla(x, kernel, g):
        return jax.vjp(partial(_xla_conv, padding=padding), x, kernel)[1](g)

    return lax.platform_dependent(*residuals, g, cpu=cpu, default=xla)


_conv.defvjp(_conv_forward, _conv_backward)


def _fast_padding(x, kernel, strides, padding, dimension_numbers=None, feature_group_count=1, **others):
    """The padding as pairs; None for a convolution without a fast form."""
    dilations = [others.pop(name, None) for name in ("lhs_dilation", "rhs_dilation")]
    if not (
        x.ndim == kernel.ndim == 4
        and dimension_numbers in (_DIMENSIONS, _CONV_DIMENSIONS)
        and all(one is None or np.array_equal(one, (1, 1)) for one in (strides, *dilations))
        and all(other is None for other in others.values())  # `precision`, for instance.
        and (feature_group_count == 1 or feature_group_count == x.shape[3] == kernel.shape[3])
        and x.shape[3] == kernel.shape[2] * feature_group_count
        and x.dtype == kernel.dtype
        and jnp.issubdtype(x.dtype, jnp.floating)
        and 0 not in x.shape + kernel.shape
        and all(isinstance(n, int) for n in x.shape[1:])  # An exported program may have symbolic sizes.
    ):
        return None
    size, window = x.shape[1:3], kernel.shape[:2]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(size, window, (1, 1), padding)
    if np.shape(padding) != (2, 2):
        return None
    pairs = tuple(map(tuple, padding))
    fits = (max(pair) < k <= n + sum(pair) for n, k, pair in zip(size, window, pairs, strict=True))
    return pairs if min(map(min, pairs)) >= 0 and all(fits) else None


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, window_strides: Any, padding: Any, **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated` with the same arguments, for `nn.Conv(conv_general_dilated=...)`.

    2-D convolutions with stride 1 and no dilation, dense or depthwise, padded by less than the kernel's size, have a
    fast form. All others use XLA's, also those with a `precision` or a `preferred_element_type`.
    """
    pairs = _fast_padding(lhs, rhs, window_strides, padding, **options)
    if pairs is None:
        return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
    return _conv(lhs, rhs, pairs)
