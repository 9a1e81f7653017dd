"""A network layer by layer: shapes, parameters, multiply-adds."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, Network
from mnist_jax.runtime import default_types


def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> dict[str, Any]:
    """Shapes and dtypes of a network's variables, as `jax.ShapeDtypeStruct`, without computing any."""
    if isinstance(model, Network):  # The same variables, and sooner traced.
        model = model.clone(layers=FLAX, kernel_init=nn.initializers.zeros)
    return _described(model, image_shape)


@default_types()
def _described(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape), jnp.float32), train=False))


class Layer(NamedTuple):
    """A layer of a network; a layer that is called twice is listed twice.

    Attributes:
      name: name of its parameters.
      kind: its class.
      shape: output shape for one image.
      params: number of its parameters, 0 when it is called again.
      multiply_adds: multiply-adds of a convolution for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int


def layers_of(model: nn.Module, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> list[Layer]:
    """Lists a network's layers in the order they are called.

    Args:
      model: a Flax module, called as `model(images, train=...)`.
      image_shape: height, width and channels of an image.

    Returns:
      The layers, each with its output shape, parameters and multiply-adds.

    Example:
      >>> layers = mj.layers_of(mj.make_model("gap"))
      >>> sum(layer.params for layer in layers)
      9752
    """
    called: list[tuple[str, str, tuple[int, ...]]] = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.module.name and hasattr(output, "shape"):
            called.append((context.module.name, type(context.module).__name__, output.shape[1:]))
        return output

    with nn.intercept_methods(record):
        params = _described(model, image_shape).get("params", {})
    layers: list[Layer] = []
    seen: set[str] = set()
    for name, kind, shape in called:
        size = count_params(params.get(name, {}))
        # Without bias, every parameter of a convolution is used once for each pixel of its output.
        multiply_adds = size * shape[0] * shape[1] if kind == "Conv" else 0
        layers.append(Layer(name, kind, shape, 0 if name in seen else size, multiply_adds))
        seen.add(name)
    return layers


def is_kernel(leaf: Any) -> bool:
    """Whether a parameter is a kernel: of rank 2 and more, so that it mixes channels; others scale or shift them."""
    return leaf.ndim > 1


def count_params(params: Any) -> int:
    """Number of scalars in a pytree of parameters.

    Args:
      params: pytree of arrays or `jax.ShapeDtypeStruct`.

    Returns:
      The number.

    Example:
      >>> mj.count_params(mj.load_pretrained("small").variables["params"])
      3936
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def count_dense(params: Any) -> int:
    """Number of fully connected layers in a parameter tree: kernels of rank below 4 (convolutions have 4)."""
    return sum(is_kernel(leaf) and leaf.ndim < 4 for leaf in jax.tree.leaves(params))
