"""Finds picture files, opens them safely, and converts them to grey."""

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from mnist_jax.deploy.digits import Row, to_digit, to_row
from mnist_jax.errors import InputError, refusing, require_path

T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".avif", ".heic")
MAX_PIXELS = 25_000_000
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
    with refusing(f"folder {str(path)!r} cannot be read (", "); name another"):
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"folder {str(path)!r} holds no {', '.join(SUFFIXES)} file; name another")
    return found


def load_image(path: Path) -> np.ndarray:
    """Loads a picture of one digit, dark on light or light on dark, in MNIST's form.

    Args:
      path: the file.

    Returns:
      uint8 [28, 28, 1], light on black.

    Raises:
      InputError: as `load_grey`, or the picture shows nothing.

    Example:
      >>> seven = images.load_image(Path("seven.png"))
      >>> int(mj.predict(mj.load_pretrained("accurate-held-out"), seven[None]).argmax())
      7
    """
    return _found(path, to_digit(load_grey(path)))


def load_row(path: Path) -> Row:
    """Loads a picture of one digit or several side by side.

    Args:
      path: the file.

    Returns:
      The digits from left to right, each in MNIST's form.

    Raises:
      InputError: as `load_image`.

    Example:
      >>> len(images.load_row(Path("seven.png")).digits)
      1
    """
    return _found(path, to_row(load_grey(path)))


def _found(path: Path, shown: T | None) -> T:
    if shown is None:
        raise InputError(f"image {str(path)!r} shows nothing; give a digit that stands out from its background")
    return shown


def load_grey(path: Path) -> np.ndarray:
    """Loads a picture in grey, the first frame of several, turned as its EXIF says.

    Transparent pixels take the color of the paper. HEIC needs pillow-heif.

    Args:
      path: a PNG, JPEG, WebP, GIF, TIFF, BMP, PPM, AVIF or HEIC file of up to 25 million pixels.

    Returns:
      float [H, W], 0 for black to 255, reduced to at most 600 pixels on the long side.

    Raises:
      InputError: the file is not a regular file, cannot be read, has another format, or is too large.

    Example:
      >>> images.load_grey(Path("seven.png")).shape
      (112, 112)
    """
    path, wanted = require_path(path, "image"), "give a PNG, JPEG, WebP, GIF, TIFF or BMP file"
    if path.exists() and not path.is_file():  # Reading a named pipe would block.
        raise InputError(f"image {str(path)!r} is not a regular file; {wanted}")
    formats = _formats()
    if path.suffix.lower() == ".heic" and "HEIF" not in formats:
        wanted = "pip install pillow-heif"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of large pictures, because MAX_PIXELS is lower, and of odd metadata.
            with Image.open(path, formats=formats) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"image {str(path)!r} has {image.width}x{image.height} pixels; "
                        f"make it smaller, up to {MAX_PIXELS:,} in all"
                    )
                grey = _grey(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {str(path)!r} is too large; make it smaller, up to {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Decoders of damaged files raise errors of any kind.
        reason = getattr(error, "strerror", None) or "it is not an intact picture"
        raise InputError(f"image {str(path)!r} cannot be read: {reason}; {wanted}") from error
    factor = -(-max(grey.shape) // _LONGEST)
    if factor == 1:
        return grey
    reduced = Image.fromarray(grey.astype(np.float32)).reduce(factor)
    return np.asarray(reduced, np.float64)


@functools.cache
def _formats() -> list[str]:
    """The formats that this installation can read."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _grey(image: Image.Image) -> np.ndarray:
    """Converts to grey, float [H, W], 0 for black to 255.

    Transparent pixels take the paper's color. If most of the picture is opaque, that is the median of the opaque
    pixels. Otherwise these are the drawing, and the paper is white for a dark drawing, black for a light one.
    """
    if image.mode.startswith("I"):  # Pillow would clip 16 bits.
        return np.asarray(image, np.float64) / 257
    if image.mode == "F":  # A TIFF of floats in [0, 1] or [0, 255].
        values = np.nan_to_num(np.asarray(image, np.float64))
        return values * 255 if values.max() <= 1 else np.clip(values, 0, 255)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), np.float64)
    image = image.convert("RGBA")
    opacity = np.asarray(image.getchannel("A"), np.float64) / 255
    grey = np.asarray(image.convert("RGB").convert("L"), np.float64)
    opaque = opacity > 0.5
    if opaque.mean() > 0.5:
        paper = np.median(grey[opaque])
    else:
        paper = 255 if (grey * opacity).sum() < 128 * opacity.sum() else 0
    return grey * opacity + (1 - opacity) * paper
