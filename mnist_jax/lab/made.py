"""Generated pictures to test networks on: letters, noise, shapes, and rows of test digits."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "cmr10",
    "cmss10",
    "cmtt10",
)
LETTERS = sorted(set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz") - set("BbDGgIiJjlOoQqSsZz"))

_SIDE = 100


def letter(rng: np.random.Generator) -> np.ndarray:
    """A letter unlike any digit, in one of matplotlib's fonts: grey uint8 [H, W]."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{rng.choice(FONTS)}.ttf"
    image = Image.new("L", (_SIDE, _SIDE), 255)
    font = ImageFont.truetype(str(path), 60)
    ImageDraw.Draw(image).text((_SIDE / 2, _SIDE / 2), str(rng.choice(LETTERS)), font=font, fill=0, anchor="mm")
    return np.asarray(image)


def noise(rng: np.random.Generator) -> np.ndarray:
    """Uniform noise in blocks of 1 to 8 pixels: grey uint8 [H, W]."""
    block = int(rng.integers(1, 9))
    return np.kron(rng.integers(0, 256, (96 // block,) * 2), np.ones((block, block))).astype(np.uint8)


def shape(rng: np.random.Generator) -> np.ndarray:
    """A flat line, a cross, a frame or a star: grey uint8 [H, W]."""
    image = Image.new("L", (_SIDE, _SIDE), 255)
    draw, width = ImageDraw.Draw(image), int(rng.integers(3, 12))
    left, top = (int(value) for value in rng.integers(10, 40, 2))
    right, bottom = (int(value) for value in rng.integers(60, 90, 2))
    kind = rng.choice(["line", "cross", "frame", "star"])
    if kind == "line":
        draw.line([left, top, right, top + int(rng.integers(-10, 11))], fill=0, width=width)
    elif kind == "cross":
        draw.line([left, top, right, bottom], fill=0, width=width)
        draw.line([left, bottom, right, top], fill=0, width=width)
    elif kind == "frame":
        draw.rectangle([left, top, right, bottom], outline=0, width=width)
    else:
        angles = rng.uniform(0, np.pi) + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2, 35, 14)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + _SIDE / 2
        draw.polygon(list(map(tuple, points.tolist())), outline=0, fill=0 if rng.random() < 0.5 else None)
    return np.asarray(image)


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {"letters": letter, "noise": noise, "shapes": shape}


def row(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, str]:
    """Two to five digits side by side, 2 to 10 pixels apart, dark on light: grey uint8 [H, W], and its text."""
    chosen = rng.integers(len(images), size=int(rng.integers(2, 6)))
    parts = []
    for image in images[chosen, :, :, 0]:
        columns = np.flatnonzero(image.any(0))
        parts += [np.zeros((28, int(rng.integers(2, 11))), np.uint8), image[:, columns[0] : columns[-1] + 1]]
    return 255 - np.pad(np.concatenate(parts, 1), ((6, 6), (8, 10))), "".join(str(labels[i]) for i in chosen)
