"""Data sets in files: IDX, folders of pictures, npz."""

import gzip
import hashlib
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mnist_jax.data.arrays import Dataset
from mnist_jax.data.pictures import open_image, suffixes
from mnist_jax.errors import InputError, refusing, require_path

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NPZ = ("x_train", "y_train", "x_test", "y_test")


def load_path(path: Path) -> Dataset:
    """Loads a folder of four IDX files, a folder of train/LABEL/* and test/LABEL/* pictures, or an npz file.

    IDX files may be compressed with gzip, and their names may have `.idx` in place of `-idx`. Pictures are opened by
    `open_image`, and have one size and are all grey (one channel) or all RGB. Their classes are the names of the
    folders, in numerical order if all are numbers. They are shuffled in a fixed order, so that `hold_out` gets every
    class. Warns of files that are left out. The npz file has x_train, y_train, x_test and y_test. The name of the
    folder, or of the file without suffix, is the name of the data set.

    Raises InputError, naming the file, if one is missing, damaged, or does not fit.
    """
    path = require_path(path, "dataset")
    if not path.exists():
        raise InputError(f"dataset {str(path)!r} does not exist; name a folder or an npz file")
    classes = None
    if not path.is_dir():
        arrays = read_npz(path, _NPZ, f"give an npz file of {', '.join(_NPZ)}")
    elif any(_find_idx(path, name) for name in _IDX):
        arrays = [_read_idx(path, name) for name in _IDX]
    else:
        classes, arrays = _read_pictures(path)
    full = path if path.name.strip(".") else path.resolve()
    name = full.name if path.is_dir() else full.stem
    try:
        x_train, y_train, x_test, y_test = arrays
        return Dataset.from_arrays((x_train, y_train), (x_test, y_test), classes=classes, name=name)
    except InputError as error:
        raise InputError(f"dataset {str(path)!r}: {error}") from error


def read_npz(path: Path, names: Sequence[str], remedy: str) -> list[np.ndarray]:
    """Reads these arrays of an npz file; raises InputError, with the remedy, if the file is missing or damaged."""
    if not path.is_file():  # Reading a named pipe would block.
        raise InputError(f"{str(path)!r} is missing, or not a regular file; {remedy}")
    with (
        path.open("rb") as file,
        refusing(f"{str(path)!r} cannot be read (", f"); {remedy}"),
        np.load(file, allow_pickle=False) as arrays,
    ):
        return [arrays[name] for name in names]


def _find_idx(folder: Path, name: str) -> Path | None:
    names = name, name.replace("-idx", ".idx")
    paths = (folder / (name + packed) for packed in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """The uint8 array of an IDX file: zero, zero, type 8, rank; the sizes as big-endian uint32; the bytes."""
    path, rank = _find_idx(folder, name), int(name[-7])
    if path is None:
        raise InputError(f"{str(folder / name)!r} is missing; add it, or {name}.gz")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file, refusing(f"{str(path)!r} cannot be read (", "); download it again"):
        magic, *shape = struct.unpack(f">{1 + rank}I", file.read(4 + 4 * rank))
        if magic != 0x800 + rank:
            raise ValueError(f"it begins with {magic:08x}, where an IDX file of bytes has {0x800 + rank:08x}")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _read_pictures(folder: Path) -> tuple[list[str], list[np.ndarray]]:
    """The classes; the images and labels to train on, and those to score."""
    files, left_out = {}, []
    for split in ("train", "test"):
        entries = [path for path in folder.glob(f"{split}/[!.]*") if path.is_file()]
        entries += folder.glob(f"{split}/[!.]*/[!.]*")
        pictures = {path for path in entries if path.parent.name != split and path.suffix.lower() in suffixes()}
        if not pictures:
            what = f"neither the four IDX files nor {split}/LABEL/*.png"
            raise InputError(f"dataset {str(folder)!r} has {what}; add either")
        files[split] = sorted(pictures, key=_shuffled)
        left_out += sorted(set(entries) - pictures)
    if left_out:
        what = f"{len(left_out)} left out, which are no pictures of a class, such as {str(left_out[0])!r}"
        warnings.warn(f"dataset {str(folder)!r}: files {what}", stacklevel=4)
    labels = {split: [path.parent.name for path in paths] for split, paths in files.items()}
    if only_test := set(labels["test"]) - set(labels["train"]):
        name = min(only_test)
        raise InputError(f"dataset {str(folder)!r}: test/{name} has pictures and train/{name} none; add some")
    numbers = all(map(str.isdecimal, labels["train"]))
    classes = sorted(set(labels["train"]), key=int if numbers else None)
    arrays, shape = [], None
    for split, paths in files.items():
        images = [np.atleast_3d(np.asarray(open_image(path))) for path in paths]
        shape = shape or images[0].shape
        for path, image in zip(paths, images, strict=True):
            if image.shape != shape:
                shapes = f"{list(image.shape)}, others {list(shape)}"
                raise InputError(f"image {str(path)!r} has shape {shapes}; give all one size and mode")
        arrays += [np.stack(images), np.array([classes.index(label) for label in labels[split]])]
    return classes, arrays


def _shuffled(path: Path) -> bytes:
    """The hash of a file's name and its folder's: sorting by it mixes the classes, always in the same way."""
    return hashlib.sha256(os.fsencode("/".join(path.parts[-2:]))).digest()
