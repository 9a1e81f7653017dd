"""Pictures of digits as MNIST has them: white on black, in a box of 20x20, centred by mass in 28x28."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mnist_jax.errors import InputError
from mnist_jax.models import IMAGE_SHAPE

FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_PIXELS = 25_000_000

_BOX, _SIZE = 20, IMAGE_SHAPE[0]
_FAINT = 32  # Grey levels out of 255 by which ink must stand out from its background.


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

    Raises InputError if it is no regular file, cannot be read, is no PNG or JPEG, is animated, too large, or shows
    nothing.

    Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    if path.exists() and not path.is_file():  # A named pipe would be waited for.
        raise InputError(f"image {str(path)!r} is no regular file; give a PNG or JPEG file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # The cap below is the lower one.
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise InputError(
                        f"image {str(path)!r} has {image.width}x{image.height} pixels; "
                        f"make it smaller, up to {MAX_PIXELS:,} in all"
                    )
                if getattr(image, "n_frames", 1) > 1:
                    raise InputError(f"image {str(path)!r} is animated; give one picture")
                grey = _grey(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError(f"image {str(path)!r} is too large; make it smaller, up to {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no intact PNG or JPEG"
        raise InputError(f"image {str(path)!r} cannot be read: {reason}; give a PNG or JPEG file") from error
    ink = _ink(grey)
    if ink is None:
        raise InputError(f"image {str(path)!r} shows nothing; give a digit that stands out from its background")
    return centre(ink)


def centre(ink: np.ndarray) -> np.ndarray:
    """Scales ink, float [H, W] from 0 for background to 255, to a box of 20x20, its shape kept.

    Its center of mass is then pixel (14, 14) of what is given, uint8 [28, 28, 1].
    """
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = _BOX / max(ink.shape)
    size = [max(1, round(length * scale)) for length in reversed(ink.shape)]
    small = np.asarray(
        Image.fromarray(ink.astype(np.float32)).resize(
            size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        )
    )
    mass = small.sum()
    placed = np.zeros((_SIZE, _SIZE), np.uint8)
    corner = []
    for axis, length in enumerate(small.shape):
        middle = (small.sum(1 - axis) * np.arange(length)).sum() / mass
        corner.append(int(np.clip(round(_SIZE / 2 - middle), 0, _SIZE - length)))
    down, right = corner
    placed[down : down + small.shape[0], right : right + small.shape[1]] = np.clip(small, 0, 255).round()
    return placed[..., None]


def _grey(image: Image.Image) -> np.ndarray:
    """Float [H, W], 0 for black to 255; what is transparent becomes the opposite of what is drawn."""
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip.
        return np.asarray(image, np.float64) / 257
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opacity = np.asarray(image.getchannel("A"), np.float64) / 255
        grey = np.asarray(image.convert("RGB").convert("L"), np.float64)
        drawn = (grey * opacity).sum() / max(opacity.sum(), 1e-9)
        return grey * opacity + (1 - opacity) * (255 if drawn < 128 else 0)
    return np.asarray(image.convert("L"), np.float64)


def _ink(grey: np.ndarray) -> np.ndarray | None:
    """Float [H, W], 0 for background to 255 for the strongest ink; None if nothing stands out."""
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    background = np.median(border)
    difference = grey - background if background < 128 else background - grey
    strongest = difference.max()
    if strongest < _FAINT:
        return None
    ink = difference / strongest * 255
    return np.where(ink < _FAINT, 0, ink)
