"""Opens pictures, for data sets and for reading digits."""

import functools
import importlib
import importlib.util
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mnist_jax.errors import InputError, refusing

MAX_PIXELS = 25_000_000  # Of one picture; a small file can unpack to a gigabyte.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "HEIF")
_WANTED = f"give an intact PNG, JPEG, WebP, GIF, TIFF or BMP file of up to {MAX_PIXELS:,} pixels"


@functools.cache
def suffixes() -> dict[str, str]:
    """The suffixes of picture files, in lower case, with their formats; HEIC's too, which needs pillow-heif."""
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
    registered = Image.registered_extensions()
    readable = {suffix: name for suffix, name in registered.items() if name in FORMATS and name in Image.OPEN}
    return {".heic": "HEIF", **readable}


def open_image(path: Path) -> Image.Image:
    """Opens a picture as 8-bit grey or RGB: the first frame of several, turned as its EXIF says.

    Palettes become RGB. Values of 16 bits and floats are scaled to 0 to 255. Transparent pixels take the color of the
    paper: if most of the picture is opaque, the median of its opaque pixels; otherwise these are the drawing, and the
    paper is white for a dark drawing, black for a light one.

    Args:
      path: a file of one of `FORMATS` with up to 25 million pixels.

    Returns:
      A picture of mode "L" or "RGB".

    Raises:
      InputError: the file is not a regular file, damaged, of another format, or too large.
      OSError: the file is missing or cannot be read.
    """
    formats = {name for name in suffixes().values() if name in Image.OPEN}
    remedy = "pip install pillow-heif" if path.suffix.lower() == ".heic" and "HEIF" not in formats else _WANTED
    if path.exists() and not path.is_file():  # Reading a named pipe would block.
        raise InputError(f"image {str(path)!r} is not a regular file; {remedy}")
    with (
        path.open("rb") as file,
        refusing(f"image {str(path)!r} cannot be read (", f"); {remedy}"),
        warnings.catch_warnings(action="ignore"),  # Of large pictures, because MAX_PIXELS is lower; of odd metadata.
        Image.open(file, formats=sorted(formats)) as image,
    ):
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels")
        return _eight_bits(ImageOps.exif_transpose(image))


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # Pillow would clip 16 bits, and floats in [0, 1].
        values = np.nan_to_num(np.asarray(image, np.float64))
        if image.mode[0] == "I":
            values = values / 257
        elif values.max() <= 1:
            values = values * 255
        return Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    return (_on_paper(image) if image.has_transparency_data else image).convert(mode)


def _on_paper(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    pixels, opacity = np.asarray(image)[..., :3], np.asarray(image)[..., 3]
    opaque = opacity > 127
    if opaque.mean() > 0.5:
        color = np.median(pixels[opaque], axis=0).astype(int)
    else:
        dark = (np.asarray(image.convert("L")) * (opacity / 255)).sum() < 128 * (opacity / 255).sum()
        color = (255, 255, 255) if dark else (0, 0, 0)
    paper = Image.new("RGBA", image.size, (*map(int, color), 255))
    return Image.alpha_composite(paper, image)
