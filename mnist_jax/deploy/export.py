"""Exports of trained networks: StableHLO, ONNX, and a page to draw on that needs only a browser."""

import base64
import importlib
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
from mnist_jax.errors import InputError
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

    Example:
      >>> program = jax.export.deserialize(export.to_stablehlo(trained))
      >>> program.call(data.test.images[:4]).shape
      (4, 3)
    """
    shape = export.symbolic_shape("batch, " + ", ".join(map(str, trained.image_shape)))
    exported = export.export(jax.jit(_predict(trained)), platforms=PLATFORMS)
    return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


@default_types()
def to_onnx(trained: Trained) -> bytes:
    """Exports a network as an ONNX model with its weights, by jax2onnx, which the extra `onnx` installs.

    The model maps `images` uint8 [batch, H, W, C] to `logits` float32 [batch, classes].

    Args:
      trained: the network, a `Trained`.

    Returns:
      The serialized model.

    Raises:
      ImportError: jax2onnx is not installed.

    Example:
      >>> model = export.to_onnx(trained)
    """
    jax2onnx = importlib.import_module("jax2onnx")
    converted = jax2onnx.to_onnx(
        _predict(trained),
        [jax.ShapeDtypeStruct(("batch", *trained.image_shape), jnp.uint8)],
        model_name="mnist_jax",
        opset=21,
        input_names=["images"],
        output_names=["logits"],
    )
    return converted.SerializeToString()


def _plain(trained: Trained) -> Any:
    """The network in Flax's layers, which exporters can read, if it is one of the package."""
    return trained.model.clone(layers=FLAX) if isinstance(trained.model, Network) else trained.model


def _predict(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    plain = _plain(trained)
    return lambda images: plain.apply(trained.variables, trained.standardize(images), train=False)


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

    Values that do not depend on the image, such as the scales of a batch norm, are computed here. Raises
    NotImplementedError if the network has an operation without an `Op`.
    """
    plain = _plain(trained)
    image = jax.ShapeDtypeStruct((1, *trained.image_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda x: plain.apply(trained.variables, x, train=False))(image)
    found: list[Op] = []
    _follow(traced.jaxpr, traced.consts, [None], found)
    return _merge(found)


def _follow(jaxpr: Any, consts: Any, inputs: list, found: list[Op]) -> list:
    """Computes known values and appends operations for the others; None stands for the activations."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))

    def read(atom):
        return atom.val if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        values, name = [read(atom) for atom in equation.invars], equation.primitive.name
        inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
        if inner is not None:
            closed = hasattr(inner, "consts")
            results = _follow(inner.jaxpr if closed else inner, inner.consts if closed else [], values, found)
        elif all(value is not None for value in values):
            results = equation.primitive.bind(*values, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        else:
            found.extend(_translate(name, values, equation))
            results = [None]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _translate(name: str, values: list, equation: Any) -> list[Op]:
    other: Any = next((np.asarray(value) for value in values if value is not None), None)
    if name == "conv_general_dilated":
        ((padding, *_), *_) = equation.params["padding"]
        layer, kernel = str(equation.source_info.name_stack).rpartition("/")[2], np.asarray(values[1])
        if equation.params["feature_group_count"] > 1:
            return [Op("depthwise", kernel[:, :, 0], int(padding), layer)]
        return [Op("conv", kernel, int(padding), layer)]
    if name == "max" and not other.any():
        return [Op("relu")]
    if name in ("mul", "div", "add", "sub") and values[0] is None:
        channels = np.broadcast_to(other.reshape(-1), equation.outvars[0].aval.shape[-1])
        one, zero = np.ones_like(channels), np.zeros_like(channels)
        if name in ("mul", "div"):
            return [Op("affine", np.stack([channels if name == "mul" else one / channels, zero]))]
        return [Op("affine", np.stack([one, channels if name == "add" else -channels]))]
    if name == "reduce_window_max":
        return [Op("pool")]
    if name == "slice":
        return [Op("crop", padding=equation.params["start_indices"][1])]
    if name == "reduce_sum":
        return [Op("sum")]
    if name in ("squeeze", "reshape", "convert_element_type", "broadcast_in_dim", "copy"):
        return []
    raise NotImplementedError(f"no operation for {name}")


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
      InputError: a network has other images, or they are of several data sets.

    Example:
      >>> html = export.to_page([mj.load_pretrained("gap")], mj.load_dataset("mnist").test.images[0])
      >>> "gap" in html
      True
    """
    first = networks[0]
    for other in networks:
        numbers = zip((other.mean, other.deviation), (first.mean, first.deviation), strict=True)
        same = other.classes == first.classes and all(np.array_equal(*pair) for pair in numbers)
        if other.image_shape != IMAGE_SHAPE or not same:
            raise InputError(f"{other} cannot be on the page; give networks of one data set of 28x28x1 images")
    described = [
        {
            "arch": _name(trained),
            "parameters": count_params(trained.variables["params"]),
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
