"""Trained weights as a safetensors file, and those shipped in the package."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mnist_jax.errors import InputError
from mnist_jax.models import ARCHS, Network, abstract_variables, create_model

FORMAT = 1
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def save_weights(path: Path, arch: str, variables: dict[str, Any]) -> None:
    """Writes `params` and `batch_stats` as safetensors, named like `params/conv1/kernel`, with a hash of them."""
    flat = flatten_dict({name: variables[name] for name in ("params", "batch_stats")}, sep="/")
    tensors = {name: np.asarray(value) for name, value in flat.items()}
    # One entry: safetensors writes several in an order that changes, and equal weights are to be equal files.
    metadata = {"mnist_jax": json.dumps({"format": FORMAT, "arch": arch, "sha256": _sha256(tensors)})}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_weights(path: Path, arch: str, model: Network) -> dict[str, Any]:
    """Reads what `save_weights` wrote: the variables that `model.apply` takes.

    Raises InputError if it is no weights file, damaged, of another network, or has a weight that is not finite.
    """
    expected = flatten_dict(abstract_variables(model), sep="/")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(json.loads((file.metadata() or {}).get("mnist_jax", "{}")))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise InputError(f"weights {str(path)!r} cannot be read ({error}); name a finished run") from error
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"weights {str(path)!r} have format {metadata.get('format')}; expected {FORMAT}, as a run writes"
        )
    if metadata.get("arch") != arch:
        raise InputError(f"weights {str(path)!r} are of network {metadata.get('arch')!r}; expected {arch!r}")
    for name in sorted(expected.keys() | tensors.keys()):
        want, found = _describe(expected.get(name)), _describe(tensors.get(name))
        if want != found:
            raise InputError(f"weights {str(path)!r}: {name} expected {want}, found {found}; they are not of {arch!r}")
    if (found := _sha256(tensors)) != metadata.get("sha256"):
        raise InputError(
            f"weights {str(path)!r} are damaged: expected SHA-256 {metadata.get('sha256')}, found {found}; "
            "get them again, or train again"
        )
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise InputError(f"weights {str(path)!r}: {name} is not finite everywhere; train again")
    return {"batch_stats": {}, **unflatten_dict({n: jnp.asarray(t) for n, t in tensors.items()}, sep="/")}


def load_pretrained(arch: str) -> tuple[Network, dict[str, Any]]:
    """A network and its trained variables, as shipped: the `default` recipe's seed 1, a seed fixed beforehand.

    `model.apply(variables, standardise(images), train=False)` are the logits. Raises InputError if no weights of `arch`
    are shipped, or the file in the package is damaged.
    """
    if arch not in (shipped := [name for name in ARCHS if (PRETRAINED / f"{name}.safetensors").exists()]):
        raise InputError(f"no weights of arch {arch!r} are shipped; choose from {', '.join(shipped)}")
    model = create_model(arch)
    return model, load_weights(PRETRAINED / f"{arch}.safetensors", arch, model)


def _sha256(tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _describe(array: Any) -> str:
    return "nothing" if array is None else f"{array.dtype} {tuple(array.shape)}"


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Has `write` write beside `path`, and renames: a reader sees the old file or the new one, never a part.

    The file has the mode that the umask gives, whatever mode `write` gives its own (safetensors: 0600).
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode
    write(temporary)
    temporary.chmod(mode)
    temporary.replace(path)
