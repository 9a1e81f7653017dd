"""From a grey picture to digits in MNIST's form: finds the ink, splits it into digits, fits each into 28x28 pixels.

`templates/digits.js` does the same on the page to draw on.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_jax.models import IMAGE_SHAPE

_BOX, _SIZE = 20, IMAGE_SHAPE[0]
_FINE = 4 * _BOX  # Long side of a digit, in pixels, when its strokes are thickened.
_FAINT = 8  # Ink differs from the paper by at least this many grey levels out of 255.
_THIN = 0.1  # Strokes are thickened to this fraction of the digit's long side.
_SMALL = 0.04  # Specks are smaller than this fraction of the main part's area.
_NEAR = 0.25  # Parts of a digit are at most this fraction of the main part's long side away.
_EDGE = 0.2  # Weight of the area of parts at the picture's edge.
_TALL = 0.6  # Digits of a row are at least this fraction of the main part's height, and at most 1 / _TALL.
_OVER = 0.25  # Parts of one digit overlap horizontally by more than this fraction of the narrower one's width.
_TIGHT = 0.05  # Below this fraction of the row's height, a gap is too narrow to be sure where a digit ends.
_WIDE = 1.3  # A digit wider than this multiple of its height may be two that touch.


class Row(NamedTuple):
    """The digits of a picture, from left to right.

    Attributes:
      digits: uint8 [28, 28, 1] each.
      uncertain: whether the split is uncertain: two digits nearly touch, or one is as wide as two.
    """

    digits: tuple[np.ndarray, ...]
    uncertain: bool = False


def to_digit(grey: np.ndarray) -> np.ndarray | None:
    """Finds the one digit of a picture and converts it to MNIST's form.

    Args:
      grey: float [H, W], 0 for black to 255, dark on light or light on dark.

    Returns:
      uint8 [28, 28, 1], light on black; None if nothing stands out. A picture in MNIST's form is returned unchanged.

    Example:
      >>> page = np.full((90, 60), 255.0)
      >>> page[20:70, 28:33] = 0
      >>> digits.to_digit(page).shape
      (28, 28, 1)
    """
    if in_mnist_form(grey):
        return grey.astype(np.uint8)[..., None]
    ink = find_ink(grey)
    return None if ink is None else fit_box(_main_part(ink, _parts(ink)))


def to_row(grey: np.ndarray) -> Row | None:
    """Finds digits side by side in a picture and converts each to MNIST's form.

    Args:
      grey: as for `to_digit`, float [H, W].

    Returns:
      The digits, each as `to_digit` returns it; None if nothing stands out.

    Example:
      >>> page = np.full((90, 150), 255.0)
      >>> page[20:70, 28:33] = page[20:70, 78:83] = 0
      >>> len(digits.to_row(page).digits)
      2
    """
    if in_mnist_form(grey):
        return Row((grey.astype(np.uint8)[..., None],))
    ink = find_ink(grey)
    if ink is None:
        return None
    parts = _parts(ink)
    groups = _groups(ink, parts)
    if len(groups) < 2:
        groups = [_main_part(ink, parts)]
    columns = [np.flatnonzero((group > 0).any(0)) for group in groups]
    gaps = [right[0] - left[-1] - 1 for left, right in itertools.pairwise(columns)]
    tight = bool(gaps) and min(gaps) < _TIGHT * len(_crop(ink))
    wide = any(width > _WIDE * height for height, width in (_crop(group).shape for group in groups))
    return Row(tuple(map(fit_box, groups)), tight or wide)


def in_mnist_form(grey: np.ndarray) -> bool:
    """Whether a picture is 28x28, light on black, in a box of 20x20, with its center of mass in the middle."""
    if grey.shape != (_SIZE, _SIZE) or grey.max() < 128:
        return False
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    if corners.any():
        return False
    height, width = (np.ptp(np.flatnonzero(grey.any(axis))) + 1 for axis in (1, 0))
    off = np.abs(np.array(ndimage.center_of_mass(grey)) - _SIZE / 2)
    return max(height, width) in (_BOX - 1, _BOX) and bool((off < 1).all())


def find_ink(grey: np.ndarray) -> np.ndarray | None:
    """Separates ink, float [H, W] from 0 to 1, from the paper; None if nothing stands out.

    The paper is a plane through the upper quartiles of the four edges, or the lower ones if it is dark. The threshold
    is that of Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    paper = np.median(_border(grey))
    apart = grey - paper
    # On grey paper the ink is on the side that differs more.
    light = paper >= 160 or (paper >= 64 and (apart * np.abs(apart)).sum() <= 0)
    level = grey if light else 255 - grey
    # The upper quartile of an edge is paper, even where a digit touches the edge.
    edges = level[0], level[-1], level[:, 0], level[:, -1]
    top, bottom, left, right = (np.percentile(edge, 75) for edge in edges)
    height, width = grey.shape
    level = level - (bottom - top) * _ramp(height)[:, None] - (right - left) * _ramp(width)
    difference = np.clip(np.median(_border(level)) - level, 0, 255)
    if difference.max() < _FAINT:
        return None
    threshold = _otsu(difference)
    strong = np.median(difference[difference >= threshold])
    faint = 0.6 * threshold
    return np.clip((difference - faint) / (strong - faint), 0, 1)


def _border(grey):
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _ramp(length):
    return np.linspace(-0.5, 0.5, length) if length > 2 else np.zeros(length)


def _otsu(values):
    """The integer threshold that maximizes the variance between two classes of values in [0, 255]."""
    counts = np.bincount(values.astype(np.int64).ravel(), minlength=256)
    below, sums = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * (below / below[-1]) - sums) ** 2 / (below * above)
    return int(np.nanargmax(np.where(above > 0, between, -1))) + 1


def _parts(ink):
    """Connected parts: their labels from 1, their boxes int [parts, 2, 2], and areas, reduced at the picture's edge.

    A box has its rows, from start to stop, and its columns.
    """
    labeled: Any = ndimage.label(ink > 0, np.ones((3, 3)))
    labels, count = labeled
    boxes = np.array([[(side.start, side.stop) for side in box] for box in ndimage.find_objects(labels)])
    areas = np.bincount(labels.ravel(), ink.ravel(), count + 1)[1:]
    at_edge = (boxes[..., 0] == 0).any(1) | (boxes[..., 1] == ink.shape).any(1)
    return labels, boxes, np.where(at_edge, _EDGE * areas, areas)


def _overlap(boxes, other):
    """The overlap in pixels of ranges [..., 2]; negative for a gap."""
    return np.minimum(boxes[..., 1], other[..., 1]) - np.maximum(boxes[..., 0], other[..., 0])


def _main_part(ink, parts):
    """The ink of the largest connected part and of parts near it, without specks."""
    labels, boxes, areas = parts
    main = areas.argmax()
    gap = _NEAR * np.ptp(boxes[main], axis=1).max()
    near = (_overlap(boxes, boxes[main]) > -gap).all(1)
    return _only(near & (areas >= _SMALL * areas[main]), labels, ink)


def _groups(ink, parts):
    """The ink of each digit of a row: parts beside the largest and similarly tall, each with the parts near it."""
    labels, boxes, areas = parts
    main = areas.argmax()
    heights = np.ptp(boxes[:, 0], axis=1)
    ratios = heights / heights[main]
    large = areas >= _SMALL * areas[main]
    beside = _overlap(boxes[:, 0], boxes[main, 0]) >= 0.5 * np.minimum(heights, heights[main])
    standing = large & beside & (ratios >= _TALL) & (ratios <= 1 / _TALL)
    groups, spans = [], []  # The parts of each digit, and its columns.
    for i in sorted(np.flatnonzero(standing), key=lambda i: boxes[i, 1, 0]):
        columns = boxes[i, 1]
        if groups and _overlap(columns, spans[-1]) > _OVER * min(np.ptp(columns), np.ptp(spans[-1])):
            groups[-1].append(i)
            spans[-1] = np.maximum(spans[-1], [0, columns[1]])
        else:
            groups.append([i])
            spans.append(columns)
    for i in np.flatnonzero(large & ~standing):
        members = groups[np.argmax([_overlap(boxes[i, 1], span) for span in spans])]
        if (_overlap(boxes[members], boxes[i]) > -_NEAR * heights[main]).all(1).any():
            members.append(i)
    return [_only(members, labels, ink) for members in groups]


def _only(members, labels, ink):
    """The ink of some parts; a look-up is faster than `np.isin`."""
    kept = np.zeros(labels.max() + 1)
    kept[1:][members] = 1
    return ink * kept[labels]


def fit_box(ink: np.ndarray) -> np.ndarray:
    """Scales ink, float [H, W] from 0 to 1, into a box of 20x20 and centers it: uint8 [28, 28, 1].

    The aspect ratio stays, thin strokes are thickened, the strongest ink becomes 255, and the center of mass lies at
    pixel (14, 14).

    Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    fine = _thicken(_resize(_crop(ink), _FINE))
    small = _resize(_crop(fine), _BOX)
    small = np.clip(small / np.percentile(small[small > 0], 80), 0, 1) * 255
    mass, placed = small.sum(), np.zeros((_SIZE, _SIZE), np.uint8)
    corner = []
    for axis, length in enumerate(small.shape):
        middle = (small.sum(1 - axis) * np.arange(length)).sum() / mass
        # A symmetric digit lies at a half, which must round up whatever the rounding of its sum.
        corner.append(int(np.clip(np.floor(_SIZE / 2 - middle + 0.500001), 0, _SIZE - length)))
    down, right = corner
    placed[down : down + small.shape[0], right : right + small.shape[1]] = np.floor(small + 0.5)
    return placed[..., None]


def _crop(ink):
    rows, columns = (np.flatnonzero((ink > 0).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resize(ink, long_side):
    scale = long_side / max(ink.shape)
    size = [max(1, int(length * scale + 0.5)) for length in reversed(ink.shape)]
    resized = Image.fromarray(ink.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64)


def _thicken(ink):
    """Dilates strokes thinner than a tenth of the long side, by a disc, to that thickness."""
    drawn = np.pad(ink >= 0.5, 1)
    across = (drawn[1:] != drawn[:-1]).sum()
    along = (drawn[:, 1:] != drawn[:, :-1]).sum()
    outline = across + along
    thickness = 2 * drawn.sum() / max(1, outline * np.pi / 4)  # For long strokes; pi / 4 corrects slanted outlines.
    radius = (_THIN * max(ink.shape) - thickness) / 2
    if radius <= 0:
        return ink
    whole = int(np.ceil(radius))
    y, x = np.mgrid[-whole : whole + 1, -whole : whole + 1]
    padded = np.pad(ink, whole)
    distance = x * x + y * y
    inner, outer = (ndimage.grey_dilation(padded, footprint=distance <= r * r) for r in (whole - 1, whole))
    return inner + (radius - whole + 1) * (outer - inner)
