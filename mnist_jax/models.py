"""The networks, each readable from top to bottom like the table it comes from.

First the four of "Session 2 - MNIST 99.4% Test Accuracy": a skeleton, a lighter one, one with global average pooling
instead of the 7x7 convolution, and that one regularized. Then `Stack`, the network of any layout, and three layouts
that each push one limit of the exercise. Every convolution is bias-free with stride 1, every one but the last is
followed by ReLU, and there is no fully connected layer.

All share one signature: `model.apply(variables, images, train=...)` takes standardized float32 [B, H, W, C] and returns
float32 logits [B, num_classes]. Comments give the output height (= width) and the parameters for MNIST, of both
networks where two share a table. ReLU and max pool commute; pooling first leaves ReLU a quarter of the work.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers
from jax import lax
from jaxtyping import Array, Float

from mnist_jax.errors import InputError, require, require_whole
from mnist_jax.layers import FAST, Layers
from mnist_jax.layouts import Block, parse_layout

IMAGE_SHAPE = (28, 28, 1)


# Functions with names rather than closures, so that networks can be pickled and compared.
def torch_uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """PyTorch's default for convolutions, uniform in +-1/sqrt(fan_in), which has variance 1 / (3 fan_in)."""
    return initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """He's initialization, a truncated normal of variance 2 / fan_in (He et al., arXiv:1502.01852)."""
    return initializers.he_normal()(key, shape, dtype)


KERNEL_INITS = {"torch_uniform": torch_uniform, "he_normal": he_normal}


class Network(nn.Module):
    """Base class of the networks, with their settings.

    Attributes:
      num_classes: number of logits.
      dropout_rate: probability in [0, 1) that a unit is dropped in training; only `bn_dropout` has dropout layers.
      kernel_init: initializer of the convolution kernels.
      layers: `FAST`, with reverse-mode derivatives only, or `FLAX`, Flax's layers, with forward mode too.
      dtype: type of the activations; parameters, batch statistics and logits are float32.
      arch: the name or layout given to `make_model`.
    """

    num_classes: int = 10
    dropout_rate: float = 0.0
    kernel_init: Callable[..., jax.Array] = KERNEL_INITS["torch_uniform"]
    layers: Layers = FAST
    dtype: Any = jnp.float32
    arch: str = ""

    def convolution(self) -> Callable[..., nn.Module]:
        """The bias-free convolution of every network, by default without padding."""
        return partial(
            self.layers.conv, padding="VALID", use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype
        )

    def require_pixels(self, x: jax.Array, images: jax.Array) -> jax.Array:
        """Returns activations `x`; raises InputError if no pixel is left in them."""
        if 0 in x.shape[1:]:
            size = "x".join(map(str, images.shape[1:3]))
            name = self.arch or type(self).__name__
            raise InputError(f"images of {size} are too small for network {name!r}; choose another, or larger images")
        return x


class Basic(Network):
    """`basic`, the skeleton: 194,884 parameters."""

    widths: tuple[int, ...] = (32, 64, 128, 32, 64, 128)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B classes"]:
        """Standardized images float32 [B, H, W, C] to logits float32 [B, num_classes]."""
        images, conv, (c1, c2, c3, c4, c5, c6) = x, self.convolution(), self.widths
        x = self.layers.relu(conv(c1, (3, 3), name="conv1")(x))  # 26     288    144
        x = self.layers.relu(conv(c2, (3, 3), name="conv2")(x))  # 24  18,432  2,304
        x = conv(c3, (3, 3), name="conv3")(x)  # 22  73,728  2,304
        x = self.layers.relu(self.layers.max_pool(x))  # 11
        x = self.layers.relu(conv(c4, (1, 1), name="conv4")(x))  # 11   4,096    256
        x = self.layers.relu(conv(c5, (3, 3), name="conv5")(x))  # 9   18,432  2,304
        x = self.layers.relu(conv(c6, (3, 3), name="conv6")(x))  # 7   73,728  1,440
        x = self.layers.relu(conv(10, (1, 1), name="conv7")(x))  # 7    1,280    100
        x = self.require_pixels(x, images)
        x = conv(self.num_classes, x.shape[1:3], name="conv8")(x)  # 1    4,900  4,900
        return x.squeeze((1, 2)).astype(jnp.float32)


class Lighter(Basic):
    """`lighter`, the skeleton with fewer channels: 13,752 parameters."""

    widths: tuple[int, ...] = (16, 16, 16, 16, 16, 10)


class Gap(Network):
    """`gap`, global average pooling in place of the 7x7 convolution: 9,752 parameters."""

    def after_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """The identity; `BnDropout` adds layers here, after the ReLU of the 3x3 convolutions."""
        return x

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B classes"]:
        """Standardized images float32 [B, H, W, C] to logits float32 [B, num_classes]."""
        images, conv, then = x, self.convolution(), partial(self.after_relu, train=train)
        x = then(self.layers.relu(conv(16, (3, 3), name="conv1")(x)), "bn1")  # 26    144 + 32 in `bn_dropout`
        x = then(self.layers.relu(conv(16, (3, 3), name="conv2")(x)), "bn2")  # 24  2,304 + 32
        x = conv(16, (1, 1), name="conv3")(x)  # 24    256
        x = self.layers.relu(self.layers.max_pool(x))  # 12
        x = then(self.layers.relu(conv(16, (3, 3), name="conv4")(x)), "bn4")  # 10  2,304 + 32
        x = then(self.layers.relu(conv(16, (3, 3), name="conv5")(x)), "bn5")  # 8   2,304 + 32
        x = then(self.layers.relu(conv(10, (3, 3), name="conv6")(x)), "bn6")  # 6   1,440 + 20
        x = then(self.layers.relu(conv(10, (3, 3), padding=1, name="conv7")(x)), "bn7")  # 6     900 + 20
        x = self.require_pixels(x, images).mean((1, 2), keepdims=True)  # 1
        x = conv(self.num_classes, (1, 1), name="conv8")(x)  # 1     100
        return x.squeeze((1, 2)).astype(jnp.float32)


class BnDropout(Gap):
    """`bn_dropout`, `gap` with batch norm and dropout after the ReLU of its 3x3 convolutions: 9,920 parameters."""

    def after_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """Batch norm and dropout."""
        norm = self.layers.batch_norm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=name
        )
        return self.layers.dropout(self.dropout_rate, deterministic=not train)(norm(x))


def directional_derivatives(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initializer without randomness: kernels [3, 3, channels, c] that find strokes and their edges.

    The first c / 2 kernels are first derivatives, in c / 2 directions over the circle, and find edges. The others are
    negative second derivatives, in c / 2 directions over half the circle, and find bright lines. All are weighted by a
    Gaussian of two pixels and have sum 0 and norm 1; image channels share them. A derivative in any direction is a
    combination of a few such kernels (Freeman and Adelson, "The design and use of steerable filters", 1991).
    """
    count = shape[-1] // 2
    y, x = np.mgrid[-1:2, -1:2, :1][:2] + 0.0
    window = np.exp(-(x * x + y * y) / 8)

    def along(angles):
        return np.cos(angles) * x + np.sin(angles) * y

    turns = np.pi * np.arange(count) / count
    lines = -(along(turns) ** 2)
    lines -= (window * lines).sum((0, 1)) / window.sum()
    kernels = window * np.concatenate([along(2 * turns), lines], -1)
    kernels = (kernels / np.linalg.norm(kernels, axis=(0, 1)))[:, :, None] / shape[2] ** 0.5
    return jnp.asarray(np.broadcast_to(kernels, shape), dtype)


class Stack(Network):
    """The blocks of a layout, then global average pooling and a 1x1 convolution to the logits.

    Batch norm comes before ReLU and has no scale, because a positive factor passes through ReLU and is absorbed by the
    next kernels. Kernels used more than once count once as parameters. Kernels that are not trained count too.

    Attributes:
      blocks: the convolutions, as `parse_layout` returns them.
    """

    blocks: tuple[Block, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], *, train: bool) -> Float[Array, "B classes"]:
        """Standardized images float32 [B, H, W, C] to logits float32 [B, num_classes]."""
        images, convolutions = x, []
        options = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-5, "dtype": self.dtype}
        for number, block in enumerate(self.blocks, 1):
            x = x[:, block.crop : x.shape[1] - block.crop, block.crop : x.shape[2] - block.crop]
            if block.again:
                convolutions.append(convolutions[block.again - 1])
            else:
                convolutions.append(self._block(block, number, x.shape[-1]))
            for conv in convolutions[-1]:
                x = conv(x)
            norm = self.layers.batch_norm_max_pool if block.pool else partial(self.layers.batch_norm, use_scale=False)
            x = self.layers.relu(norm(name=f"bn{number}", **options)(x), after_norm=True)
            if block.fixed and train:  # Outside training, gradients with respect to the images pass.
                x = lax.stop_gradient(x)
        x = self.require_pixels(x, images).mean((1, 2), keepdims=True)
        x = self.convolution()(self.num_classes, (1, 1), name=f"conv{len(self.blocks) + 1}")(x)
        return x.squeeze((1, 2)).astype(jnp.float32)

    def _block(self, block, number, inputs):
        conv = partial(self.convolution(), kernel_size=(block.size,) * 2)
        conv = partial(conv, padding="SAME") if block.padded else conv
        conv = partial(conv, kernel_init=directional_derivatives) if block.fixed else conv
        if not block.separable:
            return [conv(block.channels, name=f"conv{number}")]
        depthwise = conv(inputs, feature_group_count=inputs, name=f"depthwise{number}")
        return [depthwise, self.convolution()(block.channels, (1, 1), name=f"conv{number}")]


class Swift(Stack):
    """`swift`, the fastest to 99.4%: 9,910 parameters, 160 of them not trained.

    It cuts off a border of one pixel, which is empty in 59,187 of the 60,000 training images. It pools after the first
    convolution, whose kernels are not trained: the backward pass skips the layer with the largest images.
    """

    blocks: tuple[Block, ...] = parse_layout(
        "crop1-"  # 26
        "16f-pool-"  # 24, then 12   144 + 16
        "16-"  # 10                2,304 + 16
        "16-"  # 8                 2,304 + 16
        "16p-pool-"  # 8, then 4   2,304 + 16
        "18p"  # 4                 2,592 + 18
    )  # mean, 10                    180


class Small(Stack):
    """`small`, the fewest parameters, 3,936: separable convolutions that widen towards the end."""

    blocks: tuple[Block, ...] = parse_layout(
        "16-"  # 26                  144       + 16
        "s20-pool-"  # 24, then 12   144 + 320 + 20
        "s22p-"  # 12                180 + 440 + 22
        "s22p-pool-"  # 12, then 6   198 + 484 + 22
        "s24p-"  # 6                 198 + 528 + 24
        "s28p"  # 6                  216 + 672 + 28
    )  # mean, 10                    280


class Accurate(Stack):
    """`accurate`, 9,408 parameters: `small`, as wide as fewer than 10,000 parameters allow."""

    blocks: tuple[Block, ...] = parse_layout(
        "24-"  # 26                  216         + 24
        "s32-pool-"  # 24, then 12   216 +   768 + 32
        "s36p-"  # 12                288 + 1,152 + 36
        "s36p-pool-"  # 12, then 6   324 + 1,296 + 36
        "s40p-"  # 6                 324 + 1,440 + 40
        "s56p"  # 6                  360 + 2,240 + 56
    )  # mean, 10                    560


ARCHS: dict[str, type[Network]] = {
    "basic": Basic,
    "lighter": Lighter,
    "gap": Gap,
    "bn_dropout": BnDropout,
    "swift": Swift,
    "small": Small,
    "accurate": Accurate,
}


def make_model(arch: str, **settings: Any) -> Network:
    """Builds a network from its name in `ARCHS`, or from a layout.

    Args:
      arch: a name, such as "gap", or a layout as `mnist_jax.layouts.parse_layout` reads it.
      settings: fields of the network: `num_classes`, `dropout_rate`, `kernel_init`, `layers`, `dtype`.

    Returns:
      A Flax module. `model.apply(variables, images, train=...)` takes standardized float32 [B, H, W, C] and returns
      float32 logits [B, num_classes].

    Raises:
      InputError: `arch` is neither, or the number of classes is below 1.

    Example:
      >>> model = mj.make_model("8-pool-s16p", num_classes=3)
      >>> [layer.name for layer in mj.layers_of(model, image_shape=(12, 12, 1))][0]
      'conv1'
    """
    require(arch, str, "arch", "give a name or a layout")
    if "num_classes" in settings:
        settings["num_classes"] = require_whole(settings["num_classes"], "number of classes", 1)
    if arch in ARCHS:
        return ARCHS[arch](arch=arch, **settings)
    try:
        return Stack(blocks=parse_layout(arch), arch=arch, **settings)
    except InputError as error:
        raise InputError(f"unknown arch {arch!r}; choose from {', '.join(ARCHS)}, or write a layout: {error}") from None
