"""Trained networks as safetensors files, and those shipped in the package."""

import hashlib
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mnist_jax.data.bundled import MEAN, STD
from mnist_jax.errors import InputError, StorageError, reason, remedy, require, require_path
from mnist_jax.models import ARCHS, IMAGE_SHAPE, Network, make_model
from mnist_jax.steps import Trained
from mnist_jax.summary import abstract_variables

FORMAT = 2  # 1 had the network's name and the weights only: they are of MNIST.
PRETRAINED = Path(__file__).parents[1] / "pretrained"
READER = "accurate-held-out"  # Reads pictures: doubt is calibrated on images that these weights have not seen.

TEMPORARY = f"*.{8 * '[0-9a-f]'}.tmp"  # What a killed `replace_file` leaves.

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
      InputError: `trained` is no `Trained`, or has the weights of several trainings.
      StorageError: the file cannot be written.
      InputError: no file can have this path.

    Example:
      >>> mj.save_weights("letters.safetensors", trained)
    """
    require(trained, Trained, "trained", "give a Trained, as setup.trained(state)")
    tensors = {name: np.asarray(value) for name, value in _named(trained.variables).items()}
    for name, one in _named(_described(trained.model, trained.image_shape)).items():
        if name in tensors and tensors[name].ndim > one.ndim and tensors[name].shape[1:] == one.shape:
            raise InputError(f"{name} has the weights of {len(tensors[name])} trainings; give those of one")
    about = {
        "format": FORMAT,
        "arch": _arch(trained.model),
        **trained.numbers(),
        "classes": list(trained.classes),
        "image_shape": list(trained.image_shape),
        "dtype": str(jnp.dtype(trained.model.dtype if isinstance(trained.model, Network) else jnp.float32)),
    }
    about["sha256"] = _sha256(tensors, about)
    # One entry, because safetensors writes several in random order, and equal weights should give equal files.
    metadata = {"mnist_jax": json.dumps(about)}
    path = require_path(path, "weights")
    try:
        replace_file(path, lambda temporary: save_file(tensors, temporary, metadata))
    except (OSError, SafetensorError) as error:
        what = f"({reason(error)}); {remedy(error, 'name another file')}"
        raise StorageError(f"weights {str(path)!r} cannot be written {what}") from error


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
        with safe_open(path, framework="numpy") as file:
            about = dict(json.loads((file.metadata() or {}).get("mnist_jax", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        what = remedy(error, "name a finished run")
        raise InputError(f"weights {str(path)!r} cannot be read ({error}); {what}") from error
    if about.get("format") not in (1, FORMAT):
        raise InputError(
            f"weights {str(path)!r} have format {about.get('format')}; expected 1 or {FORMAT}, as save_weights writes"
        )
    found, wanted = _sha256(tensors, about), about.get("sha256")
    about = _MNIST | about
    if model is None:
        if not about["arch"]:
            raise InputError(f"weights {str(path)!r} are of an own module; give it: load_weights(path, model=...)")
        model = make_model(about["arch"], num_classes=len(about["classes"]), dtype=jnp.dtype(about["dtype"]))
    arch = _arch(model)
    if arch != about["arch"]:
        raise InputError(f"weights {str(path)!r} are of network {about['arch']!r}; expected {arch!r}")
    image_shape = tuple(about["image_shape"])
    described = _described(model, image_shape)
    # A collection that training drops, such as a sown one, is not in the file.
    kept = {
        name: each
        for name, each in described.items()
        if name in ("params", "batch_stats") or _named({name: each}).keys() & tensors.keys()
    }
    expected = _named(kept)
    for name in sorted(expected.keys() | tensors.keys()):
        want, is_there = _describe(expected.get(name)), _describe(tensors.get(name))
        if want != is_there:
            raise InputError(
                f"weights {str(path)!r}: {name} expected {want}, found {is_there}; they are not of "
                f"{arch or type(model).__name__!r}"
            )
    if found != wanted:
        raise InputError(
            f"weights {str(path)!r} are damaged: expected SHA-256 {wanted}, found {found}; "
            "download them again, or train again"
        )
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"weights {str(path)!r}: {name} is not finite everywhere; train again")
    # `jnp.asarray` would compile a program for each shape.
    variables = jax.device_put(jax.tree.unflatten(jax.tree.structure(kept), [tensors[name] for name in expected]))
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


def _described(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Shapes and types of a network's variables, without the boxes of sharded ones, as in a `TrainState`."""
    return meta.unbox(abstract_variables(model, image_shape))


def _named(variables: Any) -> dict[str, Any]:
    """Arrays by name, in the order of the tree. Where keys with "/" would give two the same, keys are in brackets."""
    flat = jax.tree_util.tree_leaves_with_path(variables)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    return {
        name if names.count(name) == 1 else jax.tree_util.keystr(path): leaf
        for name, (path, leaf) in zip(names, flat, strict=True)
    }


def _sha256(tensors: dict[str, np.ndarray], about: dict[str, Any]) -> str:
    """SHA-256 of names, types, shapes and contents, in the order of the names, and of the metadata."""
    digest = hashlib.sha256()
    if about["format"] > 1:
        described = {name: about[name] for name in about if name != "sha256"}
        digest.update(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _describe(array: Any) -> str:
    return "nothing" if array is None else f"{array.dtype} {tuple(array.shape)}"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` write a file beside `path` and renames it, so that a reader sees the old file or the whole new one.

    The file's mode is that of the umask, even if `write` sets another (safetensors: 0600).
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # Others may write the same file.
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
