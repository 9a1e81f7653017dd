"""Exports of trained networks: StableHLO, ONNX, and a page to draw on that needs only a browser."""

import base64
import importlib
import importlib.util
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mnist_jax.deploy.images import MAX_PIXELS
from mnist_jax.deploy.reading import Doubt
from mnist_jax.errors import InputError, refusing, shown
from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, Network
from mnist_jax.reports import render
from mnist_jax.runtime import default_types
from mnist_jax.steps import Trained
from mnist_jax.summary import count_params

PLATFORMS = ("cpu", "cuda", "tpu")


@default_types()
def to_stablehlo(trained: Trained) -> bytes:
    """Exports a network as a StableHLO program for CPU, CUDA and TPU, with its weights.

    The program maps images uint8 [batch, H, W, C], of any batch size, to logits float32 [batch, classes].

    Args:
      trained: the network, a `Trained`.

    Returns:
      The serialized program; `jax.export.deserialize(data).call(images)` runs it.

    Raises:
      InputError: the network gives no logits, or has an operation that no such program can hold.

    Example:
      >>> program = jax.export.deserialize(export.to_stablehlo(trained))
      >>> program.call(data.test.images[:4]).shape
      (4, 3)
    """
    shape = export.symbolic_shape("batch, " + ", ".join(map(str, trained.image_shape)))
    exported = export.export(jax.jit(_predict(trained)), platforms=PLATFORMS)
    with refusing(f"{trained} cannot be exported as StableHLO: ", "; replace that operation"):
        program = exported(jax.ShapeDtypeStruct(shape, jnp.uint8))
    return bytes(program.serialize())


@default_types()
def to_onnx(trained: Trained) -> bytes:
    """Exports a network as an ONNX model with its weights, by jax2onnx, which the extra `onnx` installs.

    The model maps `images` uint8 [batch, H, W, C] to `logits` float32 [batch, classes]. ONNX Runtime, if it is
    installed, must compute the same logits as JAX.

    Args:
      trained: the network, a `Trained`.

    Returns:
      The serialized model.

    Raises:
      ImportError: jax2onnx is not installed.
      InputError: the network gives no logits, or has an operation that jax2onnx or ONNX Runtime lacks.

    Example:
      >>> model = export.to_onnx(trained)
    """
    jax2onnx = importlib.import_module("jax2onnx")
    predict, name = _predict(trained), f"{trained} cannot be exported as ONNX: "
    with refusing(name, "; replace that operation, or export StableHLO"):
        converted = jax2onnx.to_onnx(
            predict,
            [jax.ShapeDtypeStruct(("batch", *trained.image_shape), jnp.uint8)],
            model_name="mnist_jax",
            opset=21,
            input_names=["images"],
            output_names=["logits"],
        )
        content = converted.SerializeToString()
    if importlib.util.find_spec("onnxruntime"):
        images = np.random.default_rng(0).integers(0, 256, (2, *trained.image_shape), np.uint8)
        with refusing(name, "; use float32 and operations of ONNX Runtime, or export StableHLO"):
            (found,) = importlib.import_module("onnxruntime").InferenceSession(content).run(None, {"images": images})
        expected = np.asarray(jax.jit(predict)(images))
        if not np.allclose(found, expected, rtol=0, atol=3e-3 * np.abs(expected).max()):
            raise InputError(f"{name}ONNX Runtime computes other logits; use no random numbers, or export StableHLO")
    return content


def _plain(trained: Trained) -> Any:
    """The network in Flax's layers, which exporters can read, if it is one of the package."""
    return trained.model.clone(layers=FLAX) if isinstance(trained.model, Network) else trained.model


def _predict(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    """The network as a function of uint8 images; raises InputError if it gives no logits."""
    plain = _plain(trained)

    def apply(images):
        return plain.apply(trained.variables, trained.standardize(images), train=False)

    before = f"{trained} cannot be exported: "
    with refusing(before, "; give one that predict can run"):
        images = jax.ShapeDtypeStruct((2, *trained.image_shape), jnp.uint8)
        traced, found = jax.make_jaxpr(apply, return_shape=True)(images)
    if getattr(found, "shape", None) != (2, len(trained.classes)):
        raise InputError(f"{before}it gives {shown(found)} for 2 images; return logits [batch, {len(trained.classes)}]")
    if effects := ", ".join(type(effect).__name__ for effect in traced.effects):
        raise InputError(f"{before}it has an effect ({effects}); remove jax.debug.print or the like")
    return lambda images: apply(images).astype(jnp.float32)


class Op(NamedTuple):
    """One operation on the activations [height, width, channels] of an image.

    - `conv`: kernel [height, width, in, out], with padding and the layer's name.
    - `depthwise`: kernel [height, width, channels], with padding and the layer's name.
    - `affine`: a factor and a summand for each channel, float [2, channels].
    - `relu`; `pool`, 2x2; `crop`, of `padding` pixels on each side; `sum` over the image.
    """

    kind: str
    weights: np.ndarray | None = None
    padding: int = 0
    name: str = ""


@default_types()
def operations(trained: Trained) -> list[Op]:
    """Reads a network's operations on a standardized image off its trace, in order.

    Values that do not depend on the image, such as the scales of a batch norm, are computed here. Raises InputError if
    the network has an operation without an `Op`, or is not a chain of them.
    """
    _predict(trained)
    plain = _plain(trained)
    image = jax.ShapeDtypeStruct((1, *trained.image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda x: plain.apply(trained.variables, x, train=False))(image)
    found: list[Op] = []
    (logits,) = _follow(traced.jaxpr, traced.consts, [_Activations(0, trained.image_shape)], found)
    if not isinstance(logits, _Activations) or logits.steps != len(found):
        raise _refusal("logits that are not the last activations")
    return _merge(found)


class _Activations(NamedTuple):
    """What the first `steps` operations make of an image, [height, width, channels]."""

    steps: int
    shape: tuple[int, ...]


# Functions that are called, and not repeated as by a scan.
_CALLS = ("jit", "pjit", "closed_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call")
# Operations that leave activations as they are, if only axes of length 1 come and go and they stay floats.
_SAME = ("squeeze", "reshape", "convert_element_type", "broadcast_in_dim", "copy")
# What an error names of an operation.
_SETTINGS = ("window_dimensions", "window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count")
_SETTINGS += ("axes", "start_indices", "limit_indices", "strides", "new_dtype")
_IMAGES = ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))  # The axes of images and kernels, as Flax has them.


def _follow(jaxpr: Any, consts: Any, inputs: list, found: list[Op]) -> list:
    """Computes known values and appends operations for the others, which are `_Activations`."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        values, name = [read(atom) for atom in equation.invars], equation.primitive.name
        if name in _CALLS:
            inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
            closed = hasattr(inner, "consts")
            results = _follow(inner.jaxpr if closed else inner, inner.consts if closed else [], values, found)
        elif any(isinstance(value, _Activations) for value in values):
            results = [_append(equation, values, found)]
        else:
            results = equation.primitive.bind(*values, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _append(equation: Any, values: list, found: list[Op]) -> _Activations:
    """Appends the operation of an equation on activations, unless it leaves them as they are."""
    places = [i for i, value in enumerate(values) if isinstance(value, _Activations)]
    name, activations = equation.primitive.name, values[places[0]]
    source, out = equation.invars[places[0]].aval, equation.outvars[0].aval
    if len(places) > 1 or activations.steps < len(found):
        name += " of a branch"
    elif op := _translate(equation, values, activations.shape, source.shape, out.shape):
        found.append(op)
        shape = activations.shape
        if op.kind in ("conv", "depthwise", "pool", "crop"):
            shape = out.shape[1:]
        return _Activations(len(found), (1, 1, shape[2]) if op.kind == "sum" else shape)
    elif name in _SAME and jnp.issubdtype(out.dtype, jnp.floating) and _lengths(source) == _lengths(out):
        return activations
    settings = [f"{key}={equation.params[key]}" for key in _SETTINGS if key in equation.params]
    raise _refusal(" ".join(filter(None, (str(equation.source_info.name_stack), name, *settings))))


def _lengths(array: Any) -> list[int]:
    return [length for length in array.shape if length > 1]


def _refusal(what: str) -> InputError:
    return InputError(f"the page cannot compute {what}; leave that out, or export StableHLO")


def _translate(
    equation: Any, values: list, shape: tuple[int, ...], source: tuple[int, ...], out: tuple[int, ...]
) -> Op | None:
    """The operation on activations of a shape, which the equation takes as `source` to `out`; None without an `Op`."""
    params, name, whole = equation.params, equation.primitive.name, source == (1, *shape)
    other: Any = next((np.asarray(value) for value in values if not isinstance(value, _Activations)), None)
    first = isinstance(values[0], _Activations)
    if name == "conv_general_dilated" and whole and first:
        (padding, *others), groups = {*np.ravel(params["padding"]).tolist()}, params["feature_group_count"]
        steps = {*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"]}
        if steps != {1} or others or padding < 0 or params["dimension_numbers"] != _IMAGES:
            return None
        layer = str(equation.source_info.name_stack).rpartition("/")[2]
        if groups == 1:
            return Op("conv", other, padding, layer)
        return Op("depthwise", other[:, :, 0], padding, layer) if groups == shape[2] == out[3] else None
    if name == "max" and out == source and not other.any():
        return Op("relu")
    if name in ("mul", "add") or (name in ("div", "sub") and first):
        by_channel = other.size == 1 or other.size == other.shape[-1] == source[-1] == shape[2]
        if out != source or not by_channel:
            return None
        channels = np.broadcast_to(other.reshape(-1), shape[2])
        one, zero = np.ones_like(channels), np.zeros_like(channels)
        if name in ("mul", "div"):
            return Op("affine", np.stack([channels if name == "mul" else one / channels, zero]))
        return Op("affine", np.stack([one, channels if name == "add" else -channels]))
    if name == "reduce_window_max" and whole:
        windows = params["window_dimensions"], params["window_strides"]
        dilated = {*params["base_dilation"], *params["window_dilation"]} != {1}
        return None if windows != ((1, 2, 2, 1),) * 2 or dilated or np.any(params["padding"]) else Op("pool")
    if name == "slice" and whole:
        size = params["start_indices"][1]
        limits = (1, shape[0] - size, shape[1] - size, shape[2])
        inside = params["start_indices"] == (0, size, size, 0) and params["limit_indices"] == limits
        return Op("crop", padding=size) if inside and not params["strides"] else None
    return Op("sum") if name == "reduce_sum" and whole and params["axes"] == (1, 2) else None


def _merge(ops: list[Op]) -> list[Op]:
    """Merges neighboring affine operations."""
    merged: list[Op] = []
    for op in ops:
        match [*merged[-1:], op]:
            case [Op("affine", np.ndarray() as first), Op("affine", np.ndarray() as second)]:
                factor, summand = first[0] * second[0], first[1] * second[0] + second[1]
                merged[-1] = Op("affine", np.stack([factor, summand]))
            case _:
                merged.append(op)
    return merged


def to_page(networks: Sequence[Trained], image: np.ndarray, doubts: Sequence[Doubt | None] = ()) -> str:
    """Renders a page on which one draws a digit and sees what networks make of it. It needs only a browser.

    Args:
      networks: networks of one data set of 28x28 images with one channel.
      image: uint8 [28, 28, 1], shown before the first stroke.
      doubts: doubt of each network, or None.

    Returns:
      HTML, with the weights inside.

    Raises:
      InputError: a network has other images or an operation that the page lacks, or they are of several data sets.

    Example:
      >>> html = export.to_page([mj.load_pretrained("gap")], mj.load_dataset("mnist").test.images[0])
      >>> "gap" in html
      True
    """
    first = networks[0]
    for other in networks:
        same = other.numbers() == first.numbers() and other.classes == first.classes
        if other.image_shape != IMAGE_SHAPE or not same:
            raise InputError(f"{other} cannot be on the page; give networks of one data set of 28x28x1 images")
    described = [
        {
            "arch": _name(trained),
            "parameters": count_params(trained.variables.get("params", {})),
            "steps": [op._asdict() | _encoded(op.weights) for op in operations(trained)],
            "doubt": doubt and doubt._asdict(),
        }
        for trained, doubt in itertools.zip_longest(networks, doubts)
    ]
    return render(
        "draw.html",
        names=", ".join(map(_name, networks)),
        networks=json.dumps(described, separators=(",", ":")),
        image=base64.b64encode(image.tobytes()).decode(),
        mean=first.numbers()["mean"][0],
        std=first.numbers()["deviation"][0],
        classes=first.classes,
        max_pixels=MAX_PIXELS,
    )


def _encoded(weights: np.ndarray | None) -> dict[str, Any]:
    """The shape, and the float32 weights in base64."""
    if weights is None:
        return {"shape": (), "weights": ""}
    return {"shape": weights.shape, "weights": base64.b64encode(weights.astype("<f4").tobytes()).decode()}


def _name(trained: Trained) -> str:
    return getattr(trained.model, "arch", "") or type(trained.model).__name__
