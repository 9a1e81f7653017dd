"""Files that are there whole or not at all: text, and arrays by name with a hash, as safetensors."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mnist_jax.errors import InputError

FORMAT = 2  # In 1 the hash was of the arrays alone.
TEMPORARY = f"*.{8 * '[0-9a-f]'}.tmp"  # What a killed `replace_file` leaves.


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file beside `path` and renames it, so that a reader sees the old file or the whole new one.

    What a link leads to is replaced, not the link; a device or pipe is written to. Raises OSError, with its file, if it
    cannot be written; the old file stays.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = path.resolve()
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")  # Others may write the same file.
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # Else a loss of power may leave the new name and not the content.
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a file by a text, as `replace_file`."""
    replace_file(path, text.encode())


def write_arrays(path: Path, arrays: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Replaces a file by arrays, what is to be known about them as JSON values, and the hash of both.

    Raises OSError, with its file, if it cannot be written.
    """
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    about = {"format": FORMAT, **about}
    about["sha256"] = _sha256(arrays, about)
    # One entry, because safetensors writes several in random order, and equal arrays should give equal files.
    replace_file(path, save(arrays, {"mnist_jax": json.dumps(about)}))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of `write_arrays`: the arrays, and what is known about them.

    Raises OSError if it cannot be read, ValueError if it is damaged or no such file, and InputError if it is of a newer
    version.
    """
    path.open("rb").close()  # Its error names the file; that of safetensors does not.
    try:
        with safe_open(path, framework="numpy") as file:
            about = dict(json.loads((file.metadata() or {}).get("mnist_jax", "{}")))
            names = file.keys()
            arrays = {name: file.get_tensor(name) for name in names}
    except (TypeError, SafetensorError) as error:
        raise ValueError(str(error)) from error
    version = about.get("format", 0)
    if version > FORMAT:
        raise InputError(f"{str(path)!r} has format {version}, newer than {FORMAT}; update mnist_jax")
    digest = _sha256(arrays, about)
    if digest != about.get("sha256"):
        raise ValueError(f"its SHA-256 is {digest}, not {about.get('sha256')}")
    return arrays, about


def by_name(tree: Any) -> dict[str, Any]:
    """Leaves by name, as `params/conv1/kernel` and `params/w/0`, in the order of the tree.

    Where keys with "/" would give two the same name, keys are in brackets.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return {
        name if names.count(name) == 1 else jax.tree_util.keystr(path): leaf
        for name, (path, leaf) in zip(names, leaves, strict=True)
    }


def misfit(arrays: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The first array with another type or shape than expected, or not expected at all; empty if all fit."""
    for name in sorted(arrays.keys() | expected.keys()):
        wanted, actual = (_described(one.get(name)) for one in (expected, arrays))
        if wanted != actual:
            return f"{name} expected {wanted}, found {actual}"
    return ""


def _described(array: Any) -> str:
    return "nothing" if array is None else f"{array.dtype} {tuple(array.shape)}"


def _sha256(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> str:
    """SHA-256 of what is known, and of names, types, shapes and contents, in the order of the names."""
    digest = hashlib.sha256()
    if about.get("format", 1) > 1:
        known = {name: about[name] for name in about if name != "sha256"}
        digest.update(json.dumps(known, sort_keys=True).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
