"""Pictures in files: found, opened safely, and made grey."""

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from mnist_jax.deploy.digits import Row, to_digit, to_row
from mnist_jax.errors import InputError

T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".pgm", ".ppm", ".avif", ".heic")
MAX_PIXELS = 25_000_000
_LONGEST = 600  # Pixels: more would not tell more of a digit, and takes longer.


def find_images(path: Path) -> list[Path]:
    """The picture itself, or the pictures in a folder by name; raises InputError if the folder has none."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"folder {str(path)!r} holds no {', '.join(SUFFIXES)} file; name another")
    return found


def load_image(path: Path) -> np.ndarray:
    """Makes of a picture of one digit, dark on light or light on dark, what MNIST would have: uint8 [28, 28, 1].

    Raises InputError as `load_grey`, and if it shows nothing.
    """
    return _found(path, to_digit(load_grey(path)))


def load_row(path: Path) -> Row:
    """As `load_image`, for one digit or several side by side."""
    return _found(path, to_row(load_grey(path)))


def _found(path: Path, shown: T | None) -> T:
    if shown is None:
        raise InputError(f"image {str(path)!r} shows nothing; give a digit that stands out from its background")
    return shown


def load_grey(path: Path) -> np.ndarray:
    """The picture as float [H, W], 0 for black to 255, reduced to 600 pixels at most; of several frames the first.

    Turned as its EXIF says. What is transparent takes the color of the paper. HEIC needs pillow-heif.

    Raises InputError if it is no regular file, cannot be read, is of another format, or too large.
    """
    remedy = "give a PNG, JPEG, WebP, GIF, TIFF or BMP file"
    if path.exists() and not path.is_file():  # A named pipe would be waited for.
        raise InputError(f"image {str(path)!r} is no regular file; {remedy}")
    formats = _formats()
    if path.suffix.lower() == ".heic" and "HEIF" not in formats:
        remedy = "pip install pillow-heif"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of large pictures: the cap below is the lower one. Of odd metadata.
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
    except Exception as error:  # Decoders raise whatever a damaged file makes them stumble over.
        reason = getattr(error, "strerror", None) or "it is no intact picture"
        raise InputError(f"image {str(path)!r} cannot be read: {reason}; {remedy}") from error
    factor = -(-max(grey.shape) // _LONGEST)
    return np.asarray(Image.fromarray(grey.astype(np.float32)).reduce(factor), np.float64) if factor > 1 else grey


@functools.cache
def _formats() -> list[str]:
    """The formats that this installation reads."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _grey(image: Image.Image) -> np.ndarray:
    """Float [H, W], 0 for black to 255.

    What is transparent takes the paper's color: the median of the rest where that is most of the picture; else the
    rest is the drawing, and the paper its opposite.
    """
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip.
        return np.asarray(image, np.float64) / 257
    if image.mode == "F":  # Floats, of a TIFF: in [0, 1], or to 255.
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
