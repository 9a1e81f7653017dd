"""The networks, each readable top to bottom like the table it comes from.

First the ladder of "Session 2 - MNIST 99.4% Test Accuracy": a skeleton that works, a lighter one, one without the
7x7 convolution, and the last one regularised. Then `Stack`, which is any chain of convolutions that its layout
names, and three of these that each push one limit of the exercise. Every convolution is bias-free with stride 1,
every one but the last is followed by ReLU, and there is no fully connected layer.

All share one signature: `model.apply(variables, images, train=...)` takes standardised float32 [B, 28, 28, 1] and
gives float32 logits [B, 10]. Comments give output height = width and the parameters, of both networks where two
share a table. ReLU and max pool commute; pooling first leaves ReLU a quarter of the work.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.initializers import he_normal, variance_scaling
from jax import lax

from mnist_jax.errors import InputError
from mnist_jax.layers import FAST, Layers

IMAGE_SHAPE = (28, 28, 1)

# PyTorch's default for convolutions, uniform in +-1/sqrt(fan_in), is a variance of 1 / (3 fan_in).
KERNEL_INITS = {"torch_uniform": variance_scaling(1 / 3, "fan_in", "uniform"), "he_normal": he_normal()}


class Network(nn.Module):
    """What all have in common: the settings, of which a network uses those it has layers for.

    Attributes:
      dropout_rate: probability in [0, 1) that a unit is dropped in training; only `bn_dropout` drops any.
      kernel_init: initialiser of every convolution kernel.
      layers: what the network is made of: `FAST`, or the same in Flax's own layers, `FLAX`.
      dtype: type of the activations; parameters, batch statistics and logits are float32.
    """

    dropout_rate: float = 0.05
    kernel_init: Callable[..., jax.Array] = KERNEL_INITS["torch_uniform"]
    layers: Layers = FAST
    dtype: Any = jnp.float32

    def convolution(self) -> Callable[..., nn.Module]:
        """The bias-free convolution, valid unless told otherwise, of every network."""
        return partial(
            self.layers.conv, padding="VALID", use_bias=False, kernel_init=self.kernel_init, dtype=self.dtype
        )


class Basic(Network):
    """`basic`, the skeleton: 194,884 parameters."""

    widths: tuple[int, ...] = (32, 64, 128, 32, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Standardised images float32 [B, 28, 28, 1] to logits float32 [B, 10]."""
        del train
        conv, (c1, c2, c3, c4, c5, c6) = self.convolution(), self.widths
        x = self.layers.relu(conv(c1, (3, 3), name="conv1")(x))  # 26     288    144
        x = self.layers.relu(conv(c2, (3, 3), name="conv2")(x))  # 24  18,432  2,304
        x = conv(c3, (3, 3), name="conv3")(x)  # 22  73,728  2,304
        x = self.layers.relu(self.layers.max_pool(x))  # 11
        x = self.layers.relu(conv(c4, (1, 1), name="conv4")(x))  # 11   4,096    256
        x = self.layers.relu(conv(c5, (3, 3), name="conv5")(x))  # 9   18,432  2,304
        x = self.layers.relu(conv(c6, (3, 3), name="conv6")(x))  # 7   73,728  1,440
        x = self.layers.relu(conv(10, (1, 1), name="conv7")(x))  # 7    1,280    100
        x = conv(10, (7, 7), name="conv8")(x)  # 1    4,900  4,900
        return x.squeeze((1, 2)).astype(jnp.float32)


class Lighter(Basic):
    """`lighter`, the skeleton with fewer channels: 13,752 parameters."""

    widths: tuple[int, ...] = (16, 16, 16, 16, 16, 10)


class Gap(Network):
    """`gap`, global average pooling in place of the 7x7 convolution: 9,752 parameters."""

    def after_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """What follows the ReLU of the 3x3 convolutions: nothing."""
        del name, train
        return x

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Standardised images float32 [B, 28, 28, 1] to logits float32 [B, 10]."""
        conv, then = self.convolution(), partial(self.after_relu, train=train)
        x = then(self.layers.relu(conv(16, (3, 3), name="conv1")(x)), "bn1")  # 26    144, and in `bn_dropout` 32
        x = then(self.layers.relu(conv(16, (3, 3), name="conv2")(x)), "bn2")  # 24  2,304 + 32
        x = conv(16, (1, 1), name="conv3")(x)  # 24    256
        x = self.layers.relu(self.layers.max_pool(x))  # 12
        x = then(self.layers.relu(conv(16, (3, 3), name="conv4")(x)), "bn4")  # 10  2,304 + 32
        x = then(self.layers.relu(conv(16, (3, 3), name="conv5")(x)), "bn5")  # 8   2,304 + 32
        x = then(self.layers.relu(conv(10, (3, 3), name="conv6")(x)), "bn6")  # 6   1,440 + 20
        x = then(self.layers.relu(conv(10, (3, 3), padding=1, name="conv7")(x)), "bn7")  # 6     900 + 20
        x = x.mean((1, 2), keepdims=True)  # 1
        x = conv(10, (1, 1), name="conv8")(x)  # 1     100
        return x.squeeze((1, 2)).astype(jnp.float32)


class BnDropout(Gap):
    """`bn_dropout`, `gap` with batch norm and dropout after the ReLU of its 3x3 convolutions: 9,920 parameters."""

    def after_relu(self, x: jax.Array, name: str, train: bool) -> jax.Array:
        """Batch norm and dropout."""
        norm = self.layers.batch_norm(
            use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, name=name
        )
        return self.layers.dropout(self.dropout_rate, deterministic=not train)(norm(x))


class Block(NamedTuple):
    """A convolution of a `Stack`, with batch norm and ReLU after it.

    Attributes:
      channels: of its output.
      size: height and width of its kernel.
      padded: whether its output is as large as its input.
      separable: whether it is a kernel for each channel, and then a 1x1 convolution.
      pool: whether a 2x2 max pool follows.
      again: the number of an earlier convolution, counted from 1, whose kernels it uses; 0 for kernels of its own.
      crop: how many pixels on each side of its input it leaves out.
      fixed: whether its kernel is that of `directional_derivatives` and not trained; weight decay, where there is any,
        shrinks it by a factor that batch norm undoes.
    """

    channels: int
    size: int = 3
    padded: bool = False
    separable: bool = False
    pool: bool = False
    again: int = 0
    crop: int = 0
    fixed: bool = False


_WORD = re.compile(r"(?P<separable>s?)(?P<channels>[1-9]\d{0,3})(?:k(?P<size>[1357]))?(?P<padded>p?)")


def parse_layout(layout: str) -> list[Block]:
    """The convolutions that a layout names, such as `16-pool-s24p-=2-pool-32`, in order.

    A number is a 3x3 convolution to so many channels, valid, with batch norm and ReLU after it; `16k5` is 5x5, `16p`
    padded to the size of its input, `s16` separable: a kernel for each channel, then a 1x1 convolution (Chollet,
    arXiv:1610.02357). `=2` uses the kernels of the second convolution again, with a batch norm of its own; `pool` is a
    2x2 max pool; `crop2`, as the first word, leaves out two pixels on each side of the images; `16f`, as the first
    convolution and of an even number, has the kernels of `directional_derivatives`, which are not trained.

    Raises InputError for a word that is none of these, or kernels used again on another number of channels.
    """
    blocks: list[Block] = []
    words = layout.split("-")
    crop = int(words.pop(0)[4:]) if len(words) > 1 and re.fullmatch(r"crop[1-9]", words[0]) else 0
    for word in words:
        inputs = [1, *(block.channels for block in blocks)][: len(blocks)]  # Of each block.
        again = re.fullmatch(r"=(\d{1,2})", word)
        if word == "pool" and blocks and not blocks[-1].pool:
            blocks[-1] = blocks[-1]._replace(pool=True)
        elif again and blocks and inputs[int(again[1]) - 1 : int(again[1])] == [blocks[-1].channels]:
            used = blocks[int(again[1]) - 1]
            blocks.append(used._replace(pool=False, again=used.again or int(again[1]), crop=0))
        elif found := _WORD.fullmatch(word):
            size = int(found["size"] or 3)
            block = Block(int(found["channels"]), size, bool(found["padded"]), bool(found["separable"]))
            blocks.append(block if blocks else block._replace(crop=crop))
        elif not blocks and (fixed := re.fullmatch(r"([1-9]\d{0,2}[02468]|[2468])f", word)):
            blocks.append(Block(int(fixed[1]), crop=crop, fixed=True))
        else:
            raise InputError(f"layout {layout!r} cannot be read at {word!r}; write it as in 16-pool-s24p-=2-pool-32")
    return blocks


def directional_derivatives(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Kernels [3, 3, 1, c] that find strokes and their edges: an initialiser that draws nothing.

    The first c / 2 are slopes, first derivatives in as many directions of the circle; the others second derivatives,
    negative, in as many of half the circle: bright lines. All are seen through a Gaussian window of two pixels, with a
    sum of 0 and a norm of 1. So few are enough for a derivative in any direction (Freeman and Adelson, "The design and
    use of steerable filters", 1991).
    """
    del key
    count = shape[-1] // 2
    y, x = np.mgrid[-1:2, -1:2, :1][:2] + 0.0
    window = np.exp(-(x * x + y * y) / 8)

    def along(angles):
        return np.cos(angles) * x + np.sin(angles) * y

    turns = np.pi * np.arange(count) / count
    lines = -(along(turns) ** 2)
    lines -= (window * lines).sum((0, 1)) / window.sum()
    kernels = window * np.concatenate([along(2 * turns), lines], -1)
    return jnp.asarray((kernels / np.linalg.norm(kernels, axis=(0, 1)))[:, :, None], dtype)


class Stack(Network):
    """A network as its layout says, with global average pooling and a 1x1 convolution to the logits at the end.

    Batch norm comes before ReLU and has no scale: a positive factor passes through ReLU into the kernels behind it.
    Kernels that are used more than once count once, and those that are not trained count too.

    Attributes:
      layout: as `parse_layout` reads it.
    """

    layout: str = ""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Standardised images float32 [B, H, W, 1] to logits float32 [B, 10]."""
        blocks, convolutions = parse_layout(self.layout), []
        options = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-5, "dtype": self.dtype}
        for number, block in enumerate(blocks, 1):
            x = x[:, block.crop : x.shape[1] - block.crop, block.crop : x.shape[2] - block.crop]
            if block.again:
                convolutions.append(convolutions[block.again - 1])
            else:
                convolutions.append(self._block(block, number, x.shape[-1]))
            for conv in convolutions[-1]:
                x = conv(x)
            norm = self.layers.batch_norm_max_pool if block.pool else partial(self.layers.batch_norm, use_scale=False)
            x = self.layers.relu(norm(name=f"bn{number}", **options)(x))
            if block.fixed and train:  # Else a gradient in the images may be asked for.
                x = lax.stop_gradient(x)
        x = x.mean((1, 2), keepdims=True)
        x = self.convolution()(10, (1, 1), name=f"conv{len(blocks) + 1}")(x)
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
    """`swift`, the shortest way to 99.4%: 9,910 parameters, of which 160 are not trained.

    It leaves out a pixel all around, empty in 59,187 of the 60,000 training images, and pools after one convolution,
    whose kernels are given. That ends the backward pass where the images are large.
    """

    layout: str = (
        "crop1-"  # 26
        "16f-pool-"  # 24, then 12   144 + 16
        "16-"  # 10                2,304 + 16
        "16-"  # 8                 2,304 + 16
        "16p-pool-"  # 8, then 4   2,304 + 16
        "18p"  # 4                 2,592 + 18
    )  # mean, 10                    180


class Small(Stack):
    """`small`, the fewest parameters: 3,936, of separable convolutions that widen towards the end."""

    layout: str = (
        "16-"  # 26                  144       + 16
        "s20-pool-"  # 24, then 12   144 + 320 + 20
        "s22p-"  # 12                180 + 440 + 22
        "s22p-pool-"  # 12, then 6   198 + 484 + 22
        "s24p-"  # 6                 198 + 528 + 24
        "s28p"  # 6                  216 + 672 + 28
    )  # mean, 10                    280


class Accurate(Stack):
    """`accurate`, as `small` and as wide as 10,000 parameters allow: 9,408."""

    layout: str = (
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


def create_model(arch: str, **overrides: Any) -> Network:
    """Builds a network by name, as `create_model("gap", dropout_rate=0.0)`, or a `Stack` by its layout.

    Raises InputError if it is neither, or if the images become too small for a layout.
    """
    if arch in ARCHS:
        return ARCHS[arch](**overrides)
    if not fits_layout(arch, IMAGE_SHAPE[0]):
        layout = "a layout that fits 28x28 images, such as 16-pool-s24p-=2-pool-32"
        raise InputError(f"unknown arch {arch!r}; choose from {', '.join(ARCHS)}, or write {layout}")
    return Stack(layout=arch, **overrides)


def fits_layout(layout: str, size: int) -> bool:
    """Whether it is a layout, and leaves a pixel of images of that height and width."""
    try:
        for block in parse_layout(layout):
            size -= 2 * block.crop
            size = (size if block.padded else size - block.size + 1) // (2 if block.pool else 1)
    except InputError:
        return False
    return size > 0


def abstract_variables(model: Network) -> dict[str, Any]:
    """Shapes and dtypes of a network's variables, as `jax.ShapeDtypeStruct`, without computing any."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *IMAGE_SHAPE)), train=False))


class Layer(NamedTuple):
    """A layer of a network, each time it is called.

    Attributes:
      name: of its parameters.
      kind: its class.
      shape: of its output for one image.
      params: how many parameters it has that no layer before it has.
      multiply_adds: of a convolution, for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int


def layers_of(model: Network) -> list[Layer]:
    """The network's layers in the order they are called."""
    called = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.name:
            called.append((context.module.name, type(context.module).__name__, output.shape[1:]))
        return output

    with nn.intercept_methods(record):
        params = abstract_variables(model)["params"]
    layers, seen = [], set()
    for name, kind, shape in called:
        size = count_params(params.get(name, {}))
        # Without bias, every parameter of a convolution is used once for each pixel of its output.
        multiply_adds = size * shape[0] * shape[1] if kind == "Conv" else 0
        layers.append(Layer(name, kind, shape, 0 if name in seen else size, multiply_adds))
        seen.add(name)
    return layers


def count_params(params: Any) -> int:
    """Number of scalars in a pytree of parameters (arrays or `jax.ShapeDtypeStruct`)."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_dense(params: Any) -> int:
    """Number of fully connected layers in a parameter tree: kernels of rank below 4 (convolutions have 4)."""
    flat = jax.tree_util.tree_leaves_with_path(params)
    return sum(path[-1].key == "kernel" and leaf.ndim < 4 for path, leaf in flat)
