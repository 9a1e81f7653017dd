"""Finds picture files, and reads digits off them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mnist_jax.data.pictures import open_image, suffixes
from mnist_jax.deploy.digits import Row, to_digit, to_row
from mnist_jax.errors import InputError, require_path

T = TypeVar("T")
_LONGEST = 600  # Pixels of the long side; more takes longer and shows no more of a digit.


def find_images(path: Path) -> list[Path]:
    """Lists a picture, or the pictures in a folder.

    Args:
      path: a file or a folder.

    Returns:
      The file itself, or the picture files of the folder, sorted by name.

    Raises:
      InputError: the folder has no pictures.

    Example:
      >>> [path.name for path in images.find_images(Path("."))]
      ['seven.png']
    """
    path = require_path(path, "image")
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in suffixes() and file.is_file())
    if not files:
        raise InputError(f"folder {str(path)!r} holds no pictures; name another")
    return files


class Picture(NamedTuple):
    """A picture of one digit: its file, the person who drew it, and its class."""

    file: Path
    person: str
    label: str


def find_pictures(folder: Path, classes: Sequence[str]) -> list[Picture]:
    """Finds the pictures `PERSON/LABEL_*.png` of a folder, or `LABEL_*.png` of one person.

    Raises InputError if there are none, or a name does not begin with a class.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes() and file.is_file())
    if not files:
        raise InputError(f"folder {str(folder)!r} holds no pictures; give one with PERSON/LABEL_*.png")
    pictures = [Picture(file, file.parent.name, file.stem.partition("_")[0]) for file in files]
    for picture in pictures:
        if picture.label not in classes:
            remedy = f"name it LABEL_*, where LABEL is one of {', '.join(classes)}"
            raise InputError(f"the name of {str(picture.file)!r} does not say what it shows; {remedy}")
    return pictures


def load_image(path: Path) -> np.ndarray:
    """Loads a picture of one digit, dark on light or light on dark, in MNIST's form.

    Args:
      path: the file.

    Returns:
      uint8 [28, 28, 1], light on black.

    Raises:
      InputError: as `load_grey`, or the picture shows nothing.
      OSError: as `load_grey`.

    Example:
      >>> seven = images.load_image(Path("seven.png"))
      >>> int(mj.predict(mj.load_pretrained("accurate-held-out"), seven[None]).argmax())
      7
    """
    return _not_blank(to_digit(load_grey(path)), path)


def load_row(path: Path) -> Row:
    """Loads a picture of one digit or several side by side.

    Args:
      path: the file.

    Returns:
      The digits from left to right, each in MNIST's form.

    Raises:
      InputError: as `load_image`.
      OSError: as `load_image`.

    Example:
      >>> len(images.load_row(Path("seven.png")).digits)
      1
    """
    return _not_blank(to_row(load_grey(path)), path)


def _not_blank(digits: T | None, path: Path) -> T:
    if digits is None:
        raise InputError(f"image {str(path)!r} shows nothing; give a digit that stands out from its background")
    return digits


def load_grey(path: Path) -> np.ndarray:
    """Loads a picture in grey, as `mnist_jax.data.pictures.open_image` opens it.

    That takes the first frame of several, turns it as its EXIF says, and gives transparent pixels the color of the
    paper.

    Args:
      path: a PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, AVIF or HEIC file of up to 25 million pixels.

    Returns:
      float [H, W], 0 for black to 255, reduced to at most 600 pixels on the long side.

    Raises:
      InputError: the file is not a regular file, damaged, of another format, or too large.
      OSError: the file is missing or cannot be read.

    Example:
      >>> images.load_grey(Path("seven.png")).shape
      (112, 112)
    """
    image = open_image(require_path(path, "image")).convert("L").convert("F")
    return np.asarray(image.reduce(-(-max(image.size) // _LONGEST)), np.float64)
