"""Light and dark: a figure of matplotlib in, PNG out."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mnist_jax.reports import any_backend

with any_backend():
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

LIGHT = {"ink": "#222222", "paper": "#ffffff", "faint": "#dddddd"}
DARK = {"ink": "#e6e6e6", "paper": "#16181c", "faint": "#44474d"}
_DPI, _FAST = 120, {"compress_level": 3}


def png(draw: Callable[[], Figure], theme: dict[str, str], metadata: dict[str, str] | None = None) -> bytes:
    """A figure, drawn in a theme, `LIGHT` or `DARK`, as PNG, with texts that are not shown if any are given."""
    file = io.BytesIO()
    with _in(theme):
        draw().savefig(file, format="png", dpi=_DPI, metadata=metadata, pil_kwargs=_FAST)
    return file.getvalue()


def light_and_dark(draw: Callable[[], Figure]) -> tuple[bytes, bytes]:
    """A figure as two PNGs, drawn once in `LIGHT`; see `darkened`."""
    with _in(LIGHT):
        figure = draw()
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    light, files = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB"), []
    for image in (light, darkened(light)):
        image.save(file := io.BytesIO(), "png", **_FAST)
        files.append(file.getvalue())
    return files[0], files[1]


def darkened(image: Image.Image) -> Image.Image:
    """An RGB picture in `LIGHT` for a dark page: paper and ink become those of `DARK`, hues stay.

    Lightness is inverted, and hues, which that turns around, are turned back by the matrix of `hue-rotate(180deg)`:
    W3C, "Filter effects module level 1".
    """
    paper, ink = np.array(to_rgb(DARK["paper"])), np.array(to_rgb(DARK["ink"]))
    before = np.array(to_rgb(LIGHT["ink"]))
    back = np.array([[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]])
    factors = -back * ((ink - paper) / (1 - before))[:, None]
    offsets = 255 * (paper - factors.sum(1))
    return image.convert("RGB", tuple(np.column_stack([factors, offsets]).ravel()))


def _in(theme: dict[str, str]) -> contextlib.AbstractContextManager[None]:
    """Matplotlib's settings for a theme."""
    ink = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
    parameters: dict[Any, Any] = {
        **dict.fromkeys(ink, theme["ink"]),
        **dict.fromkeys(paper, theme["paper"]),
        "grid.color": theme["faint"],
        **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
        **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
        "font.size": 10,
    }
    return mpl.rc_context(parameters)
