"""Data sets in files: IDX, folders of pictures, npz."""

import gzip
import hashlib
import math
import struct
import warnings
from pathlib import Path

import numpy as np

from mnist_jax.data.arrays import Dataset
from mnist_jax.data.bundled import reading
from mnist_jax.errors import InputError

FORMATS = ("PNG", "JPEG", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
MAX_PIXELS = 25_000_000  # Of one picture; a small file can unpack to a gigabyte.

_IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_NPZ = ("x_train", "y_train", "x_test", "y_test")


def load_path(path: Path) -> Dataset:
    """Loads a folder of four IDX files, one of train/LABEL/*.png and test/LABEL/*.png, or an npz file.

    IDX files may be packed with gzip, and may have a dot in place of the last dash but one. Pictures are PNG, JPEG or
    BMP of one size, all grey (one channel) or all colored (RGB), without alpha. Their classes are the folders' names,
    in numerical order if all are numbers; their order is a fixed shuffle, so that `hold_out` gets every class. The npz
    file has x_train, y_train, x_test and y_test. The data set is called as the folder, or the file without its suffix.

    Raises InputError, which names the file, for what is missing, damaged, or does not fit.
    """
    if not path.exists():
        raise InputError(f"dataset {str(path)!r} does not exist; name a folder or an npz file")
    named = path if path.name.strip(".") else path.resolve()
    try:
        if not path.is_dir():
            return Dataset.from_arrays(*_npz(path), name=named.stem)
        if any(_find_idx(path, name) for name in _IDX):
            x_train, y_train, x_test, y_test = (_read_idx(path, name) for name in _IDX)
            return Dataset.from_arrays((x_train, y_train), (x_test, y_test), name=named.name)
        return _pictures(path, named.name)
    except InputError as error:
        raise InputError(f"dataset {str(path)!r}: {error}") from error


def _npz(path):
    if not path.is_file():  # A named pipe would be waited for.
        raise InputError("it is no regular file; name a folder or an npz file")
    with reading("it cannot be read: ", f"; give an npz file of {', '.join(_NPZ)}"):
        with np.load(path, allow_pickle=False) as arrays:
            x_train, y_train, x_test, y_test = (arrays[name] for name in _NPZ)
    return (x_train, y_train), (x_test, y_test)


def _find_idx(folder: Path, name: str) -> Path | None:
    names = (name, name.replace("-idx", ".idx"))
    paths = (folder / (name + packed) for packed in ("", ".gz") for name in names)
    return next((path for path in paths if path.is_file()), None)


def _read_idx(folder: Path, name: str) -> np.ndarray:
    """The uint8 array of an IDX file: zero, zero, type 8, rank, then sizes as big-endian uint32, then the bytes."""
    path, rank = _find_idx(folder, name), int(name[-7])
    if path is None:
        raise InputError(f"{name} is missing; add it, or {name}.gz")
    with reading(f"{path.name} cannot be read: ", "; get it again"):
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            head, content = file.read(4 + 4 * rank), file.read()
    if len(head) < 4 + 4 * rank or head[:4] != bytes((0, 0, 8, rank)):
        raise InputError(f"{path.name} begins with {head[:4].hex()}, not with 0000080{rank}; give an IDX file of bytes")
    shape = struct.unpack(f">{rank}I", head[4:])
    if len(content) != math.prod(shape):
        raise InputError(f"{path.name} declares {math.prod(shape)} bytes and has {len(content)}; get it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _pictures(folder, name):
    files = {
        key: [file for file in (folder / key).glob("[!.]*/[!.]*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        for key in ("train", "test")
    }
    for key, found in files.items():
        if not found:
            raise InputError(f"it has neither the four IDX files nor {key}/LABEL/*.png; add one of the two")
    labels = {file.parent.name for file in files["train"]}
    for file in files["test"]:
        if file.parent.name not in labels:
            raise InputError(f"test/{file.parent.name} has pictures, and train/{file.parent.name} none; add some")
    classes = sorted(labels, key=int if all(map(str.isdecimal, labels)) else None)
    first = None
    splits = []
    for found in files.values():
        # Shuffled in a way that depends on the names only.
        found.sort(key=lambda file: hashlib.sha256(f"{file.parent.name}/{file.name}".encode()).digest())
        images = [_read_picture(file) for file in found]
        first = images[0] if first is None else first
        for file, image in zip(found, images, strict=True):
            if image.shape != first.shape:
                raise InputError(
                    f"{file} has shape {list(image.shape)}, another {list(first.shape)}; give all one size and mode"
                )
        splits.append((np.stack(images), np.array([classes.index(file.parent.name) for file in found])))
    return Dataset.from_arrays(*splits, classes=classes, name=name)


def _read_picture(path: Path) -> np.ndarray:
    """uint8 [H, W, 1] of a grey picture, uint8 [H, W, 3] of a colored one."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings(), reading(f"{path} cannot be read: ", "; give an intact PNG, JPEG or BMP file"):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The cap below is the lower one.
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path} has {image.width}x{image.height} pixels; give up to {MAX_PIXELS:,}")
            if image.has_transparency_data or image.mode not in ("1", "L", "P", "RGB", "CMYK", "YCbCr"):
                raise InputError(f"{path} is transparent, or of mode {image.mode}; give 8-bit grey or RGB, flattened")
            image = ImageOps.exif_transpose(image).convert("L" if image.mode in ("1", "L") else "RGB")
    return np.asarray(image).reshape(image.height, image.width, -1)
