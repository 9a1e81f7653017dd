"""A network layer by layer: shapes, parameters, multiply-adds, receptive fields."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, Network
from mnist_jax.runtime import default_types


@default_types()
def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> dict[str, Any]:
    """Shapes and dtypes of a network's variables, as `jax.ShapeDtypeStruct`, without computing any."""
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(partial(_plain(model).init, train=False), jax.random.key(0), images)


def _plain(model: nn.Module) -> Any:
    """A network with the same variables that is traced sooner: one of the package in Flax's own layers."""
    ours = isinstance(model, Network)
    return model.clone(layers=FLAX, kernel_init=nn.initializers.zeros) if ours else model


class Layer(NamedTuple):
    """A layer of a network, once for each call: a module without others inside, or a function between modules.

    Attributes:
      name: path of its parameters, such as `conv1` or `block/conv1`; empty for a function.
      kind: class of a module, or a function: `relu` or another that JAX traces by its name, `max_pool`, `avg_pool`,
        `global_pool`, `crop`.
      shape: of its output for one image.
      params: how many parameters it has that no layer before it has.
      multiply_adds: of its convolutions and matrix products, for one image.
      fixed: how many of its `params` are not trained, since no gradient reaches them.
      receptive_field: height and width in pixels of what a value of its output sees of the image, None if unknown.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int = 0
    multiply_adds: int = 0
    fixed: int = 0
    receptive_field: tuple[int, ...] | None = None


@default_types()
def layers_of(model: nn.Module, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> list[Layer]:
    """Lists a network's layers in the order they are called; parameters that belong to none come last.

    Args:
      model: a Flax module, called as `model(images, train=...)`.
      image_shape: height, width and channels of an image.

    Returns:
      The layers, each with its output shape, parameters, multiply-adds and receptive field.

    Example:
      >>> layers = mj.layers_of(mj.make_model("gap"))
      >>> sum(layer.params for layer in layers)
      9752
    """
    model, images = _plain(model), jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    calls: list[Layer | None] = []  # None for a call with others inside.

    def mark(call, args, kwargs, context):
        """Numbers the operations of a module's call, and adds one: dropout has none in scoring."""
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        number = len(calls)
        calls.append(None)
        with jax.named_scope(f"call:{number}"):
            output = jax.tree.map(jnp.copy, call(*args, **kwargs))
        if len(calls) == number + 1:
            shape = next((leaf.shape[1:] for leaf in jax.tree.leaves(output)), ())
            calls[number] = Layer("/".join(context.module.path), type(context.module).__name__, shape)
        return output

    with nn.intercept_methods(mark):
        run = partial(model.init_with_output, jax.random.key(0), train=False)
        traced, (_, variables) = jax.make_jaxpr(run, return_shape=True)(images)
    rows: dict[Any, Layer] = {}  # By the number of the call; a function has a key of its own.

    def visit(equation, values, scope):
        number = int(re.findall(r"call:(\d+)", f"call:0/{scope}")[-1])
        key, layer, function = number, calls[number], _function(equation)
        if layer:
            rows.setdefault(key, layer)
        if values.count(None) == len(values):
            return None
        if function and not layer:
            key = number, len(rows)
            rows[key] = Layer("", function, equation.outvars[0].aval.shape[1:])
        seen = _after(equation, values)
        if key in rows:
            work = rows[key].multiply_adds + _multiply_adds(equation)
            rows[key] = rows[key]._replace(multiply_adds=work, receptive_field=tuple(map(_extent, seen)) or None)
        return seen

    _walk(traced.jaxpr, [tuple(np.eye(size, dtype=bool) for size in image_shape[:2])], visit)
    sizes = _sizes(model, variables, images)
    for key, layer in rows.items():
        rows[key] = layer._replace(**sizes.pop(layer.name, {})) if key in range(len(calls)) else layer
    return [*rows.values(), *(Layer(name, "parameters", ())._replace(**size) for name, size in sizes.items())]


# By height and width: which pixels activations depend on, bool [places or 1, pixels]; () if unknown, None if on none.
Seen: TypeAlias = tuple[np.ndarray, ...] | None
# Functions that are called once, not repeated as by a scan.
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")


def _walk(jaxpr: Any, inputs: Sequence[Seen], visit: Callable[[Any, list[Seen], str], Seen], scope: str = "") -> list:
    """Visits the operations of a function, and of those it calls, with what they see and their scope, in order."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return None if hasattr(atom, "val") else known.get(atom)  # Literals have a value.

    for equation in jaxpr.eqns:
        values, inside = [read(atom) for atom in equation.invars], f"{scope}/{equation.source_info.name_stack}"
        if equation.primitive.name in _CALLS and not _function(equation):
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            results = _walk(getattr(inner, "jaxpr", inner), values, visit, inside)
        else:
            results = [visit(equation, values, inside)] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _function(equation: Any) -> str | None:
    """The name of a function that is a layer between modules."""
    primitive, name = equation.primitive.name, equation.params.get("name")
    if primitive in _CALLS and hasattr(nn.activation, name or "-"):
        return name
    if primitive in ("reduce_sum", "reduce_max") and {1, 2} <= {*equation.params["axes"]}:
        return "global_pool"
    kinds = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool", "slice": "crop"}
    return kinds.get(primitive, primitive if primitive in ("conv_general_dilated", "dot_general") else None)


def _multiply_adds(equation: Any) -> int:
    output, operand = equation.outvars[0].aval, equation.invars[-1].aval
    if equation.primitive.name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        return output.size * operand.size // operand.shape[numbers.rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        contracted, _ = equation.params["dimension_numbers"]
        return output.size * math.prod(operand.shape[axis] for axis in contracted[1])
    return 0


# Operations that leave values where they are, if height and width stay the same.
_IN_PLACE = """abs add broadcast_in_dim concatenate convert_element_type copy div erf exp ge gt integer_pow jit le
    log log1p logistic lt max min mul ne neg pjit pow reshape rsqrt select_n sign sqrt square squeeze stop_gradient sub
    tanh"""


def _after(equation: Any, values: Sequence[Seen]) -> tuple[np.ndarray, ...]:
    """What the output of an operation depends on."""
    name, shape, params = equation.primitive.name, equation.outvars[0].aval.shape, equation.params
    seen = [value for value in values if value is not None]
    if () in seen:
        return ()
    wide = [i for i, masks in enumerate(values) if masks and max(map(len, masks)) > 1]  # Others depend on one part.
    if wide:
        windows, shapes = _windows(equation), [equation.invars[i].aval.shape for i in wide]
        if windows:
            return tuple(map(_slide, seen[0], *windows))
        if _function(equation) == "global_pool" or (name == "reshape" and len(shape) == 2):
            return tuple(np.logical_or.reduce(mask, 0, keepdims=True) for mask in seen[0])
        on_channels = min(params.get("axes", (0,))) > 2
        if name == "dot_general":
            on_channels = params["dimension_numbers"] == (((len(shapes[0]) - 1,), (0,)), ((), ()))
        stays = name in _IN_PLACE.split() or on_channels
        if not stays or any(other[1:3] != shape[1:3] for other in shapes):
            return ()
    return tuple(reduce(np.logical_or, masks) for masks in zip(*seen, strict=True))


def _windows(equation: Any) -> Sequence[Any]:
    """The sizes, strides, dilations and paddings of a window that slides over height and width; none if none does."""
    name, params = equation.primitive.name, equation.params
    if name in ("reduce_window_max", "reduce_window_sum"):
        names = "window_dimensions", "window_strides", "window_dilation", "padding"
        return [params[name][1:3] for name in names]
    if name == "slice":
        ends = zip(params["start_indices"], params["limit_indices"], equation.invars[0].aval.shape, strict=True)
        padding = [(-start, limit - size) for start, limit, size in ends]
        return [(1, 1), (params["strides"] or (1,) * 4)[1:3], (1, 1), padding[1:3]]
    dimensions = (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
    if name == "conv_general_dilated" and (params["dimension_numbers"], {*params["lhs_dilation"]}) == (dimensions, {1}):
        kernel = equation.invars[1].aval.shape
        return [kernel[:2], params["window_strides"], params["rhs_dilation"], params["padding"]]
    return []


def _slide(mask: np.ndarray, length: int, stride: int, dilation: int, padding: tuple[int, int]) -> np.ndarray:
    """What an axis depends on after a window has slid over it."""
    starts = np.arange(-padding[0], len(mask) + padding[1] - (length - 1) * dilation, stride)
    places = starts[:, None] + dilation * np.arange(length)
    inside = (places >= 0) & (places < len(mask))
    return np.logical_or.reduce(mask[places.clip(0, len(mask) - 1)] & inside[..., None], 1)


def _extent(mask: np.ndarray) -> int:
    return max((int(np.ptp(np.flatnonzero(row))) + 1 for row in mask if row.any()), default=0)


def _sizes(model: nn.Module, variables: dict[str, Any], images: jax.ShapeDtypeStruct) -> dict[str, dict[str, int]]:
    """By the path of each module with parameters, how many those are, and how many of them no gradient reaches."""
    collections = {**variables}
    params = collections.pop("params", {})

    def logits(params, collections, images):
        options: dict[str, Any] = {"mutable": [*collections], "rngs": {"params": jax.random.key(0)}}
        return model.apply({"params": params, **collections}, images, train=True, **options)[0]

    jaxpr = jax.make_jaxpr(logits)(params, collections, images).jaxpr
    live = {atom for atom in jaxpr.outvars if not hasattr(atom, "val")}
    for equation in reversed(jaxpr.eqns):
        if equation.primitive.name != "stop_gradient" and live.intersection(equation.outvars):
            live.update(atom for atom in equation.invars if not hasattr(atom, "val"))
    sizes: dict[str, dict[str, int]] = {}
    for (path, leaf), variable in zip(jax.tree_util.tree_leaves_with_path(params), jaxpr.invars, strict=False):
        size = sizes.setdefault("/".join(key.key for key in path[:-1]), {"params": 0, "fixed": 0})
        size["params"] += leaf.size
        size["fixed"] += 0 if variable in live else leaf.size
    return sizes


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
