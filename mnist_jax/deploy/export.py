"""Exports of trained networks: StableHLO, ONNX, and a page to draw on that needs only a browser."""

import base64
import dataclasses
import importlib
import importlib.util
import itertools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mnist_jax.data.pictures import MAX_PIXELS
from mnist_jax.deploy.reading import Doubt
from mnist_jax.errors import InputError, refusing
from mnist_jax.layers import FLAX
from mnist_jax.models import IMAGE_SHAPE, Network
from mnist_jax.reports import render
from mnist_jax.runtime import default_types
from mnist_jax.steps import Trained
from mnist_jax.summary import Layer, count_params, layers_of

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
    with refusing(f"{trained} cannot be exported as StableHLO (", "); replace that operation"):
        return bytes(exported(jax.ShapeDtypeStruct(shape, jnp.uint8)).serialize())


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
    predict, name = _predict(trained), f"{trained} cannot be exported as ONNX"
    with refusing(f"{name} (", "); replace that operation, use float32, or export StableHLO"):
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
            session = importlib.import_module("onnxruntime").InferenceSession(content)
            (logits,) = session.run(None, {"images": images})
            expected = np.asarray(jax.jit(predict)(images))
            if not np.allclose(logits, expected, rtol=0, atol=3e-3 * np.abs(expected).max()):
                raise InputError(f"{name}: its logits are others; use no random numbers, or export StableHLO")
    return content


def _predict(trained: Trained) -> Callable[[jax.Array], jax.Array]:
    """The network as a function of uint8 images; raises InputError if it gives no logits."""
    # Exporters can read Flax's layers.
    model = trained.model.clone(layers=FLAX) if isinstance(trained.model, Network) else trained.model

    def apply(images):
        logits: Any = model.apply(trained.variables, trained.standardize(images), train=False)
        return logits.astype(jnp.float32)

    with refusing(f"{trained} cannot be exported (", "); give one that predict can run"):
        images = jax.ShapeDtypeStruct((2, *trained.image_shape), jnp.uint8)
        traced, logits = jax.make_jaxpr(apply, return_shape=True)(images)
    if traced.effects:
        raise InputError(f"{trained} has an effect, which no export can hold; remove jax.debug.print or the like")
    shape = list(logits.shape)
    if shape != [2, len(trained.classes)]:
        raise InputError(f"{trained} gives {shape} for 2 images; return logits [batch, {len(trained.classes)}]")
    return apply


class Op(NamedTuple):
    """What the page computes of activations [height, width, channels].

    - `conv`: kernel [height, width, in, out], with padding and the layer's name.
    - `depthwise`: kernel [height, width, channels], with padding and the layer's name.
    - `affine`: a factor and a summand for each channel, float [2, channels].
    - `relu`; `pool`, 2x2; `crop`, of `padding` pixels on each side; `mean` over the image.
    """

    kind: str
    weights: np.ndarray = np.zeros(0)
    padding: int = 0
    name: str = ""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Computes it for activations float [height, width, channels]."""
        if self.kind in ("conv", "depthwise"):
            x = np.pad(x, ((self.padding,) * 2, (self.padding,) * 2, (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(x, self.weights.shape[:2], axis=(0, 1))
            sums = {"conv": "yxiab,abio->yxo", "depthwise": "yxiab,abi->yxi"}
            return np.einsum(sums[self.kind], windows, self.weights, optimize=True)
        if self.kind == "affine":
            return x * self.weights[0] + self.weights[1]
        if self.kind == "pool":
            height, width = (length // 2 for length in x.shape[:2])
            return x[: 2 * height, : 2 * width].reshape(height, 2, width, 2, -1).max((1, 3))
        if self.kind == "crop":
            return x[self.padding : -self.padding, self.padding : -self.padding]
        return np.maximum(x, 0) if self.kind == "relu" else x.mean((0, 1), keepdims=True)


def operations(trained: Trained) -> list[Op]:
    """Lists what the page computes of a standardized image, by the network's layers.

    Raises InputError if the page lacks a layer, or if the layers in their order do not give the network's logits.
    """
    if isinstance(trained.model, Network):
        model = trained.model.clone(dtype=jnp.float32)  # As the page computes.
        trained = dataclasses.replace(trained, model=model)
    image = np.random.default_rng(0).integers(0, 256, trained.image_shape, np.uint8)
    expected = np.asarray(jax.jit(_predict(trained))(image[None]))[0]
    x, ops = np.asarray(trained.standardize(image)), []
    for layer in layers_of(trained.model, trained.image_shape):
        what = f"{layer.kind} {layer.name} with output {list(layer.shape)}"
        refusal = InputError(f"the page cannot compute {what}; leave that out, or export StableHLO")
        try:
            for op in _operations_of(layer, trained.variables, x.shape):
                x = op.apply(x)
                ops.append(op)
        except (LookupError, ValueError) as error:
            raise refusal from error
        if x.size != math.prod(layer.shape):
            raise refusal
    if x.size != expected.size or not np.allclose(x.ravel(), expected, rtol=0, atol=1e-3 * np.abs(expected).max()):
        raise InputError(f"the page cannot compute {trained}, which is more than its layers; export StableHLO")
    return ops


def _operations_of(layer: Layer, variables: dict[str, Any], shape: tuple[int, ...]) -> list[Op]:
    """The operations of a layer on activations of this shape; a KeyError for a layer of another kind."""
    weights: dict[str, np.ndarray] = {}
    for tree in variables.values():
        for name in layer.name.split("/"):
            tree = tree.get(name, {})
        weights |= {name: np.asarray(value) for name, value in tree.items()}
    if layer.kind == "Conv":
        kernel = weights["kernel"]
        padding = max(0, layer.shape[0] - shape[0] + kernel.shape[0] - 1) // 2
        depthwise = kernel.shape[2] < shape[2]
        conv = Op("depthwise", kernel[:, :, 0], padding) if depthwise else Op("conv", kernel, padding)
        bias = [Op("affine", np.stack([np.ones(layer.shape[2]), weights["bias"]]))] if "bias" in weights else []
        return [conv._replace(name=layer.name), *bias]
    if layer.kind == "BatchNorm":
        factor = weights.get("scale", 1.0) / np.sqrt(weights["var"] + 1e-5)
        return [Op("affine", np.stack([factor, weights.get("bias", 0.0) - factor * weights["mean"]]))]
    if layer.kind == "Dropout":
        return []
    if layer.kind == "crop":
        return [Op("crop", padding=(shape[0] - layer.shape[0]) // 2)]
    return [Op({"relu": "relu", "max_pool": "pool", "global_pool": "mean"}[layer.kind])]


def to_page(networks: Sequence[Trained], image: np.ndarray, doubts: Sequence[Doubt | None] = ()) -> str:
    """Renders a page on which one draws a digit and sees what networks make of it. It needs only a browser.

    Args:
      networks: networks of one data set of 28x28 images with one channel.
      image: uint8 [28, 28, 1], shown before the first stroke.
      doubts: statistics of each network's logits, or None.

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
            "steps": [
                op._asdict() | {"shape": op.weights.shape, "weights": _encoded(op.weights.astype("<f4"))}
                for op in operations(trained)
            ],
            "doubt": doubt and doubt._asdict(),
        }
        for trained, doubt in itertools.zip_longest(networks, doubts)
    ]
    return render(
        "draw.html",
        names=", ".join(map(_name, networks)),
        networks=json.dumps(described, separators=(",", ":")),
        image=_encoded(image),
        mean=first.numbers()["mean"][0],
        std=first.numbers()["deviation"][0],
        classes=first.classes,
        max_pixels=MAX_PIXELS,
    )


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _name(trained: Trained) -> str:
    return getattr(trained.model, "arch", "") or type(trained.model).__name__
