"""Convolution, pooling, ReLU, batch norm and dropout, each with a lowering that suits the platform.

Values, gradients and parameter trees are those of `nn.Conv`, `nn.max_pool`, `nn.relu`, `nn.BatchNorm` and `nn.Dropout`
(dropout draws other bits). Images are `[batch, height, width, channels]`, kernels `[height, width, in, out]`,
strides are 1.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax

from mnist_jax.layers.batch_norm import BatchNorm
from mnist_jax.layers.convolution import conv_general_dilated
from mnist_jax.layers.dropout import Dropout
from mnist_jax.layers.pooling import flax_max_pool, max_pool, relu


class Layers(NamedTuple):
    """The layers of a network; their arguments are those of Flax's.

    `batch_norm_max_pool` is a batch norm without scale, and a 2x2 max pool after it.
    """

    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    batch_norm_max_pool: Callable[..., Callable[[jax.Array], jax.Array]]
    dropout: Callable[..., nn.Module]
    max_pool: Callable[[jax.Array], jax.Array]
    relu: Callable[[jax.Array], jax.Array]


def _flax_batch_norm_max_pool(**options):
    norm = nn.BatchNorm(use_scale=False, **options)
    return lambda x: flax_max_pool(norm(x))


FAST = Layers(
    partial(nn.Conv, conv_general_dilated=conv_general_dilated),
    BatchNorm,
    partial(BatchNorm, use_scale=False, pool=True),
    Dropout,
    max_pool,
    relu,
)
FLAX = Layers(nn.Conv, nn.BatchNorm, _flax_batch_norm_max_pool, nn.Dropout, flax_max_pool, nn.relu)
