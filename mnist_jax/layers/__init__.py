"""Convolution, pooling, ReLU, batch norm and dropout, with fast forms for each platform.

Arguments, defaults, parameter trees, values and gradients are those of `nn.Conv`, `nn.BatchNorm`, `nn.Dropout`, 2x2
`nn.max_pool` and `nn.relu`, except for rounding and the bits that dropout draws. Arguments without a fast form use
Flax's or XLA's. Images are `[batch, height, width, channels]`, kernels `[height, width, in, out]`.

The fast forms have reverse-mode derivatives only (`jax.custom_vjp`). The same network with `layers=FLAX` has the same
parameters, and forward mode too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from mnist_jax.layers.batch_norm import BatchNorm
from mnist_jax.layers.convolution import conv_general_dilated
from mnist_jax.layers.dropout import Dropout
from mnist_jax.layers.pooling import flax_max_pool, max_pool, relu


class Layers(NamedTuple):
    """The layers of a network: `FAST` (reverse mode only), or `FLAX` (forward mode too).

    Attributes:
      conv: takes the arguments of `nn.Conv`.
      batch_norm: takes the arguments of `nn.BatchNorm`.
      batch_norm_max_pool: batch norm without scale, then a 2x2 max pool; takes the arguments of `nn.BatchNorm` except
        `use_scale`.
      dropout: takes the arguments of `nn.Dropout`.
      max_pool: 2x2 max pool of [..., H, W, C].
      relu: ReLU of any shape; takes `after_norm=True` for the output of a normalization.
    """

    conv: Callable[..., nn.Module]
    batch_norm: Callable[..., nn.Module]
    batch_norm_max_pool: Callable[..., Callable[[jax.Array], jax.Array]]
    dropout: Callable[..., nn.Module]
    max_pool: Callable[[jax.Array], jax.Array]
    relu: Callable[..., jax.Array]


# Functions with names, so that a network can be pickled and its copy is equal: a partial or a custom derivative is not.
def _conv(*args: Any, **options: Any) -> nn.Module:
    return nn.Conv(*args, conv_general_dilated=conv_general_dilated, **options)


def _batch_norm_max_pool(**options: Any) -> nn.Module:
    return BatchNorm(use_scale=False, pool=True, **options)


def _flax_batch_norm_max_pool(**options: Any) -> Callable[[jax.Array], jax.Array]:
    norm = nn.BatchNorm(use_scale=False, **options)
    return lambda x: flax_max_pool(norm(x))


def _flax_relu(x: jax.Array, after_norm: bool = False) -> jax.Array:
    return nn.relu(x)


FAST = Layers(_conv, BatchNorm, _batch_norm_max_pool, Dropout, max_pool, relu)
FLAX = Layers(nn.Conv, nn.BatchNorm, _flax_batch_norm_max_pool, nn.Dropout, flax_max_pool, _flax_relu)
