"""A page that is whole in itself: sections of text, pictures and tables. Names are text, never markup."""

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from mnist_jax.reports import figures

_MOST = 200  # Images in one section.


class Picture(NamedTuple):
    """A picture, as a `data:` address. Where pages are dark, CSS inverts one that is `drawn` in ink on paper."""

    address: str
    caption: str
    text: str  # For who cannot see it.
    drawn: bool = True


class Section(NamedTuple):
    """A part of a page: what it has of these, in this order.

    Attributes:
      title: heading; the first section needs none.
      lines: paragraphs.
      confusion: int [K, K], true classes in rows.
      classes: the names of its rows and columns.
      pictures: figures.
      images: small images, many to a row.
      table: rows of cells, the first of them the names of the columns; a long one is folded.
    """

    title: str = ""
    lines: Sequence[str] = ()
    confusion: Sequence[Sequence[int]] = ()
    classes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    images: Sequence[Picture] = ()
    table: Sequence[Sequence[Any]] = ()


def picture(figure: Figure, caption: str, text: str = "") -> Picture:
    """A figure of matplotlib; by default its caption is the text for who cannot see it."""
    return Picture(_address("svg+xml", figures.svg(figure)), caption, text or caption)


def small_images(images: np.ndarray, captions: Sequence[str]) -> list[Picture]:
    """The first 200 images [N, H, W, C], uint8 or floats from 0 to 1: one channel as ink on paper, three as colors."""
    pixels = images[:_MOST] if images.dtype == np.uint8 else np.rint(255 * images[:_MOST]).astype(np.uint8)
    drawn = pixels.shape[-1] != 3
    pixels = 255 - pixels[..., 0] if drawn else pixels
    pictures = []
    for image, caption in zip(pixels, captions, strict=False):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png")
        pictures.append(Picture(_address("png", file.getvalue()), caption, caption, drawn))
    return pictures


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
