"""A network layer by layer: shapes, parameters, multiply-adds, receptive fields."""

import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, Network
from mnist_jax.runtime import default_types


@default_types()
def abstract_variables(model: nn.Module, image_shape: tuple[int, int, int] = IMAGE_SHAPE) -> dict[str, Any]:
    """Shapes and dtypes of a network's variables, as `jax.ShapeDtypeStruct`, without computing any."""
    plain = _plain(model)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda images: plain.init(jax.random.key(0), images, train=False), images)


def _plain(model: nn.Module) -> nn.Module:
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
      given: how many of its `params` are not trained, since no gradient reaches them.
      receptive_field: height and width in pixels of what a value of its output sees of the image, None if unknown.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    multiply_adds: int
    given: int = 0
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
    calls: list[_Call] = []

    def mark(call, args, kwargs, context):
        """Names the operations of a module's call by its number, and adds one: dropout has none in scoring."""
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        number = len(calls)
        calls.append(_Call(context.module.path, type(context.module).__name__))
        with jax.named_scope(f"call:{number}"):
            output = jax.tree.map(jnp.copy, call(*args, **kwargs))
        shape = next((leaf.shape[1:] for leaf in jax.tree.leaves(output)), ())
        calls[number] = calls[number]._replace(shape=shape, is_layer=len(calls) == number + 1)
        return output

    def run(images):
        return model.init_with_output(jax.random.key(0), images, train=False)

    with nn.intercept_methods(mark):
        traced, (_, variables) = jax.make_jaxpr(run, return_shape=True)(images)
    rows: dict[Any, tuple[Any, Layer]] = {}
    seen = {traced.jaxpr.invars[0]: tuple(_Axis(1, 1, size) for size in image_shape[:2])}
    _follow(traced.jaxpr, seen, 0, calls, rows)
    sizes = _sizes(model, variables, images)
    layers = [layer._replace(**sizes.pop(path, {})) for path, layer in rows.values()]
    others = (Layer("/".join(path), "parameters", (), 0, 0)._replace(**own) for path, own in sizes.items())
    return [*layers, *others]


class _Call(NamedTuple):
    """The call of a module; it is a layer if no other module is called inside."""

    path: tuple[str, ...]
    kind: str
    shape: tuple[int, ...] = ()
    is_layer: bool = False


class _Axis(NamedTuple):
    """An axis of activations: each value sees `field` pixels of the image, `jump` after the last's; all see `limit`."""

    jump: int
    field: int
    limit: int

    def slide(self, size: int, length: int = 1, stride: int = 1, dilation: int = 1) -> "_Axis":
        """The axis, of `size` values, after a window has slid over it."""
        jump, field = self.jump * stride, self.field + (length - 1) * dilation * self.jump
        limit = min(self.limit, (size - 1) * jump + field)  # Less than before where a crop or an odd pool drops pixels.
        return _Axis(jump, min(field, limit), limit)


# Operations that leave values where they are, if height and width stay the same.
_IN_PLACE = """abs add broadcast_in_dim concatenate convert_element_type copy div erf exp ge gt integer_pow jit le
    log log1p logistic lt max min mul ne neg pjit pow reshape rsqrt select_n sign sqrt square squeeze stop_gradient sub
    tanh"""


def _follow(jaxpr: Any, seen: dict[Any, Any], number: int, calls: list[_Call], rows: dict[Any, Any]) -> list:
    """Appends a row for each layer; gives what the outputs see of the image.

    Args:
      jaxpr: operations.
      seen: the axes of all variables that depend on the image, None for those whose axes are unknown.
      number: the call that the operations belong to, if they name none.
      calls: every call of a module.
      rows: path and layer by the number of a call or the variable of a function.
    """
    for equation in jaxpr.eqns:
        named = re.findall(r"call:(\d+)", str(equation.source_info.name_stack))
        call = calls[inside := int(named[-1]) if named else number]
        if call.is_layer:
            layer = Layer("/".join(call.path), call.kind, call.shape, 0, 0)
            rows.setdefault(inside, (call.path, layer))
        inputs = [atom for atom in equation.invars if not hasattr(atom, "val") and atom in seen]  # Literals have one.
        if not inputs:
            continue
        function, inner = _function(equation), _inner(equation)
        if inner and not function:
            known = zip(inner.invars, equation.invars, strict=True)
            states = {theirs: seen[ours] for theirs, ours in known if ours in inputs}
            results = _follow(inner, states, inside, calls, rows)
        else:
            results = [_after(equation, inputs, [seen[atom] for atom in inputs])] * len(equation.outvars)
        seen.update(zip(equation.outvars, results, strict=True))
        key, output = inside, equation.outvars[0]
        if function and not call.is_layer:
            key = output
            rows[key] = None, Layer("", function, output.aval.shape[1:], 0, 0)
        if key in rows:
            path, layer = rows[key]
            field = None if results[0] is None else tuple(axis.field for axis in results[0])
            work = 0 if inner else _multiply_adds(equation)
            rows[key] = path, layer._replace(multiply_adds=layer.multiply_adds + work, receptive_field=field)
    return [None if hasattr(atom, "val") else seen.get(atom) for atom in jaxpr.outvars]


def _inner(equation: Any) -> Any:
    """The operations of a function that is called, such as one under `jax.jit`; None for a loop or a branch."""
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)
    shapes = [[atom.aval.shape for atom in each.invars] for each in (inner, equation)] if inner else [0, 1]
    return inner if equation.primitive.name != "scan" and shapes[0] == shapes[1] else None


def _function(equation: Any) -> str | None:
    """The name of a function that is a layer between modules."""
    name = equation.params.get("name", "")
    if isinstance(name, str) and name and hasattr(nn.activation, name):
        return name
    kinds = {"reduce_window_max": "max_pool", "reduce_window_sum": "avg_pool", "slice": "crop"}
    kinds |= dict.fromkeys(("conv_general_dilated", "dot_general"), equation.primitive.name)
    pools = equation.primitive.name in ("reduce_sum", "reduce_max") and {1, 2} <= {*equation.params["axes"]}
    return "global_pool" if pools else kinds.get(equation.primitive.name)


def _multiply_adds(equation: Any) -> int:
    output, operand = equation.outvars[0].aval, equation.invars[-1].aval
    if equation.primitive.name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        return output.size * operand.size // operand.shape[numbers.rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        contracted, _ = equation.params["dimension_numbers"]
        return output.size * math.prod(operand.shape[axis] for axis in contracted[1])
    return 0


def _after(equation: Any, inputs: list, states: list) -> tuple[_Axis, ...] | None:
    """What the output of an operation sees of the image; None if that is unknown."""
    whole = [state for state in states if state and all(axis.field == axis.limit for axis in state)]
    if whole or None in states:
        return whole[0] if whole else None  # Whatever is made of a value that sees all sees all.
    name, params, (first, *_) = equation.primitive.name, equation.params, states
    sizes = equation.outvars[0].aval.shape[1:3]
    if name == "conv_general_dilated" and params["dimension_numbers"].lhs_spec == (0, 3, 1, 2):
        kernel = [equation.invars[1].aval.shape[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
        windows = (kernel, params["window_strides"], params["rhs_dilation"])
        return tuple(map(_Axis.slide, first, sizes, *windows)) if {*params["lhs_dilation"]} == {1} else None
    if name in ("reduce_window_max", "reduce_window_sum"):
        windows = (params[f"window_{each}"][1:3] for each in ("dimensions", "strides", "dilation"))
        return tuple(map(_Axis.slide, first, sizes, *windows))
    if name == "slice" and not params["strides"]:
        return tuple(map(_Axis.slide, first, sizes))
    if name in ("reduce_sum", "reduce_max") and {1, 2} <= {*params["axes"]}:
        return tuple(axis._replace(field=axis.limit) for axis in first)
    stays = name in _IN_PLACE.split() or min(params.get("axes", (0,))) > 2
    if name == "dot_general":
        stays = params["dimension_numbers"] == (((inputs[0].aval.ndim - 1,), (0,)), ((), ()))
    if stays and all(each.aval.shape[1:3] == sizes for each in inputs):
        return tuple(_Axis(*map(max, zip(*axes, strict=True))) for axes in zip(*states, strict=True))
    return None


def _sizes(
    model: nn.Module, variables: dict[str, Any], images: jax.ShapeDtypeStruct
) -> dict[tuple[str, ...], dict[str, int]]:
    """By the path of each module with parameters of its own, how many those are, and how many of them are given."""
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
    sizes = {}
    for (path, leaf), variable in zip(jax.tree_util.tree_leaves_with_path(params), jaxpr.invars, strict=False):
        own = sizes.setdefault(tuple(key.key for key in path[:-1]), {"params": 0, "given": 0})
        own["params"] += leaf.size
        own["given"] += 0 if variable in live else leaf.size
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
