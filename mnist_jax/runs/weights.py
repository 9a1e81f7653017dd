"""Trained networks as safetensors files, and those shipped in the package."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from mnist_jax.data.bundled import MEAN, STD
from mnist_jax.errors import InputError, require, require_path
from mnist_jax.models import ARCHS, IMAGE_SHAPE, Network, make_model
from mnist_jax.runs.files import by_name, misfit, read_arrays, write_arrays
from mnist_jax.steps import Trained
from mnist_jax.summary import abstract_variables

PRETRAINED = Path(__file__).parents[1] / "pretrained"
READER = "accurate-held-out"  # Reads pictures: doubt is calibrated on images that these weights have not seen.

# Files of format 1 had the network's name and the weights only: they are of MNIST.
_MNIST = {
    "mean": [MEAN],
    "deviation": [STD],
    "classes": list("0123456789"),
    "image_shape": list(IMAGE_SHAPE),
    "dtype": "float32",
}


def save_weights(path: str | Path, trained: Trained) -> None:
    """Writes a trained network as safetensors, with a hash.

    Variables have names such as `params/conv1/kernel`, or `params/w/0` in a list. The class of an own module is not
    written: `load_weights` needs the module.

    Args:
      path: the file; an existing one is replaced.
      trained: the network, a `Trained`.

    Raises:
      InputError: `trained` is no `Trained`.
      OSError: the file cannot be written.

    Example:
      >>> mj.save_weights("letters.safetensors", trained)
    """
    require(trained, Trained, "trained", "give a Trained, as setup.trained(state)")
    about = {
        "arch": _arch(trained.model),
        **trained.numbers(),
        "classes": list(trained.classes),
        "image_shape": list(trained.image_shape),
        "dtype": str(jnp.dtype(trained.model.dtype if isinstance(trained.model, Network) else jnp.float32)),
    }
    write_arrays(require_path(path, "weights"), by_name(trained.variables), about)


def load_weights(path: str | Path, *, model: nn.Module | None = None) -> Trained:
    """Reads a file of `save_weights`.

    Args:
      path: the file.
      model: the network, if it is an own module; None to build it from the name or layout in the file.

    Returns:
      The network, a `Trained`.

    Raises:
      InputError: the file is damaged, not of `save_weights`, of another network, or a weight is not finite.

    Example:
      >>> mj.save_weights("letters.safetensors", trained)
      >>> mj.load_weights("letters.safetensors")
      Trained(8-pool, 104 parameters, images 12x12x1, 3 classes)
    """
    path = require_path(path, "weights")
    try:
        arrays, about = read_arrays(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"weights {str(path)!r} cannot be read ({error}); name a finished run, or a file of save_weights"
        ) from error
    about = _MNIST | about
    if model is None:
        if not about.get("arch"):
            raise InputError(f"weights {str(path)!r} are of an own module; give it: load_weights(path, model=...)")
        model = make_model(about["arch"], num_classes=len(about["classes"]), dtype=jnp.dtype(about["dtype"]))
    if about.get("arch") != _arch(model):
        raise InputError(f"weights {str(path)!r} are of network {about.get('arch')!r}; expected {_arch(model)!r}")
    image_shape = tuple(about["image_shape"])
    # A collection that training drops, such as a sown one, is not in the file.
    variables = {
        name: collection
        for name, collection in _abstract(model, image_shape).items()
        if name in ("params", "batch_stats") or by_name({name: collection}).keys() & arrays.keys()
    }
    if difference := misfit(arrays, by_name(variables)):
        network = _arch(model) or type(model).__name__
        raise InputError(f"weights {str(path)!r}: {difference}; they are not of {network!r}")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(f"weights {str(path)!r}: {name} is not finite everywhere; train again")
    leaves = [arrays[name] for name in by_name(variables)]
    variables = jax.device_put(jax.tree.unflatten(jax.tree.structure(variables), leaves))  # `jnp.asarray` compiles.
    mean, deviation = (np.asarray(about[name], np.float32) for name in ("mean", "deviation"))
    return Trained(model, variables, mean, deviation, tuple(about["classes"]), image_shape)


def load_pretrained(name: str) -> Trained:
    """Loads a trained network of the package: the `default` recipe with seed 1, which was fixed beforehand.

    `accurate-held-out` is `accurate` trained without the last 10,000 training images, which calibrate its doubt, and
    then on with images drawn anew, by `scripts/train_reader.py`.

    Args:
      name: a name in `ARCHS`, or "accurate-held-out".

    Returns:
      The network, a `Trained`.

    Raises:
      InputError: the package has no weights of that name, or the file is damaged.

    Example:
      >>> mj.load_pretrained("small")
      Trained(small, 3,936 parameters, images 28x28x1, 10 classes)
    """
    names = (*ARCHS, READER)
    if name not in names:
        raise InputError(f"no weights of {name!r} are shipped; choose from {', '.join(names)}")
    return load_weights(PRETRAINED / f"{name}.safetensors")


def _arch(model: nn.Module) -> str | None:
    """Name or layout of a network of the package; None for an own module."""
    return model.arch or None if isinstance(model, Network) else None


def _abstract(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes and types of a network's variables, without the boxes of sharded ones, as in a `TrainState`."""
    return meta.unbox(abstract_variables(model, image_shape))
