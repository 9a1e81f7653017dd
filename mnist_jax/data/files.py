"""Data sets in files: IDX, folders of pictures, npz."""

import gzip
import hashlib
import os
import struct
import warnings
from pathlib import Path

import numpy as np

from mnist_jax.data.arrays import Dataset
from mnist_jax.errors import InputError, refusing, require_path

FORMATS = ("PNG", "JPEG", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
MAX_PIXELS = 25_000_000  # Of one picture; a small file can unpack to a gigabyte.

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NPZ = ("x_train", "y_train", "x_test", "y_test")


def load_path(path: Path) -> Dataset:
    """Loads a folder of four IDX files, a folder of train/LABEL/*.png and test/LABEL/*.png, or an npz file.

    IDX files may be compressed with gzip, and their names may have `.idx` in place of `-idx`. Pictures are PNG, JPEG or
    BMP of one size, all grey (one channel) or all RGB, without alpha. Their classes are the names of the folders, in
    numerical order if all are numbers. They are shuffled in a fixed order, so that `hold_out` gets every class. The npz
    file has x_train, y_train, x_test and y_test. The name of the folder, or of the file without suffix, is the name of
    the data set.

    Raises InputError, naming the file, if one is missing, damaged, or does not fit.
    """
    path, remedy = require_path(path, "dataset"), "name a folder or an npz file"
    with refusing(f"dataset {str(path)!r} cannot be read: ", f"; {remedy}"):
        if not path.exists():
            raise InputError(f"dataset {str(path)!r} does not exist; {remedy}")
        has_idx = path.is_dir() and any(_find_idx(path, name) for name in _IDX)
    named = path if path.name.strip(".") else path.resolve()
    try:
        if not path.is_dir():
            return Dataset.from_arrays(*_npz(path), name=named.stem)
        if has_idx:
            x_train, y_train, x_test, y_test = (_read_idx(path, name) for name in _IDX)
            return Dataset.from_arrays((x_train, y_train), (x_test, y_test), name=named.name)
        return _pictures(path, named.name)
    except InputError as error:
        raise InputError(f"dataset {str(path)!r}: {error}") from error


def _npz(path):
    if not path.is_file():  # Reading a named pipe would block.
        raise InputError("it is not a regular file; name a folder or an npz file")
    remedy = f"; give an npz file of {', '.join(_NPZ)}"
    with refusing("it cannot be read: ", remedy), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        x_train, y_train, x_test, y_test = (arrays[name] for name in _NPZ)
    return (x_train, y_train), (x_test, y_test)


def _find_idx(folder: Path, name: str) -> Path | None:
    names = (name, name.replace("-idx", ".idx"))
    paths = (folder / (name + packed) for packed in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """The uint8 array of an IDX file: zero, zero, type 8, rank; the sizes as big-endian uint32; the bytes."""
    path, rank = _find_idx(folder, name), int(name[-7])
    if path is None:
        raise InputError(f"{name} is missing; add it, or {name}.gz")
    opener = gzip.open if path.suffix == ".gz" else open
    with refusing(f"{path.name} cannot be read: ", "; download it again"), opener(path, "rb") as file:
        magic, *shape = struct.unpack(f">{1 + rank}I", file.read(4 + 4 * rank))
        if magic != 0x800 + rank:
            raise ValueError(f"it begins with {magic:08x}, where an IDX file of bytes has {0x800 + rank:08x}")
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def _shuffled(file):
    """The hash of a file's name and its folder's: sorting by it mixes the classes, always in the same way."""
    name = "/".join(file.parts[-2:])
    return hashlib.sha256(os.fsencode(name)).digest()


def _pictures(folder, name):
    labels, files, splits = {}, {}, []
    for key in ("train", "test"):
        found = (file for file in folder.glob(f"{key}/[!.]*/[!.]*") if file.suffix.lower() in SUFFIXES)
        files[key] = sorted(found, key=_shuffled)
        labels[key] = [file.parent.name for file in files[key]]
        if not labels[key]:
            raise InputError(f"it has neither the four IDX files nor {key}/LABEL/*.png; add either")
    if only_test := set(labels["test"]) - set(labels["train"]):
        raise InputError(f"test/{min(only_test)} has pictures and train/{min(only_test)} none; add some")
    classes = sorted(set(labels["train"]), key=int if all(map(str.isdecimal, labels["train"])) else None)
    first = _read_picture(files["train"][0])
    for key, found in files.items():
        images = np.empty((len(found), *first.shape), np.uint8)
        for i, file in enumerate(found):
            image = _read_picture(file)
            if image.shape != first.shape:
                found = f"{list(image.shape)}, others {list(first.shape)}"
                raise InputError(f"{'/'.join(file.parts[-3:])} has shape {found}; give all one size and mode")
            images[i] = image
        splits.append((images, [classes.index(label) for label in labels[key]]))
    return Dataset.from_arrays(*splits, classes=classes, name=name)


def _read_picture(path: Path) -> np.ndarray:
    """Reads a grey picture as uint8 [H, W, 1], a colored one as uint8 [H, W, 3]."""
    from PIL import Image, ImageOps

    where = "/".join(path.parts[-3:])
    if not path.is_file():  # Reading a named pipe would block.
        raise InputError(f"{where} is not a regular file; give a PNG, JPEG or BMP file")
    with warnings.catch_warnings(), refusing(f"{where} cannot be read: ", "; give an intact PNG, JPEG or BMP file"):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower.
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{where} has {image.width}x{image.height} pixels; give up to {MAX_PIXELS:,}")
            if image.has_transparency_data or image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
                raise InputError(f"{where} is transparent, or of mode {image.mode}; give 8-bit grey or RGB, flattened")
            image = ImageOps.exif_transpose(image).convert("L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(image).reshape(image.height, image.width, -1)
