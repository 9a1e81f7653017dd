"""From a grey picture to digits as MNIST has them: the ink, its parts, and each digit in 28x28.

The page to draw on does the same steps in `templates/digits.js`.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_jax.models import IMAGE_SHAPE

_BOX, _SIZE = 20, IMAGE_SHAPE[0]
_FINE = 4 * _BOX  # Long side at which strokes are thickened.
_FAINT = 8  # Grey levels out of 255 by which ink must stand out from the paper.
_THIN = 0.1  # Of a digit's long side: thinner strokes are thickened to it.
_SMALL = 0.04  # Of the main part's area: a smaller part is a speck.
_NEAR = 0.25  # Of the main part's long side: a part farther away is of something else.
_EDGE = 0.2  # What an area at the picture's edge counts.
_TALL = 0.6  # Of the main part's height: what a digit of a row has at least, and its inverse at most.
_OVER = 0.25  # Of the narrower one's width: parts that lie one above the other by more are of one digit.
_TIGHT = 0.05  # Of a row's height: less between two digits leaves it open where one ends.
_WIDE = 1.3  # Of a row's height: a wider digit may be two that touch.


class Row(NamedTuple):
    """The digits of a picture, from left to right.

    Attributes:
      digits: uint8 [28, 28, 1] each.
      uncertain: whether it is open where one ends: two nearly touch, or one is as wide as two.
    """

    digits: tuple[np.ndarray, ...]
    uncertain: bool = False


def to_digit(grey: np.ndarray) -> np.ndarray | None:
    """The one digit of a picture, float [H, W], 0 for black to 255: uint8 [28, 28, 1]; None if nothing stands out.

    What is in MNIST's form already passes unchanged.
    """
    if in_mnist_form(grey):
        return grey.astype(np.uint8)[..., None]
    ink = find_ink(grey)
    return None if ink is None else fit_box(_main_part(ink, _parts(ink)))


def to_row(grey: np.ndarray) -> Row | None:
    """The digits that stand side by side in a picture, as `to_digit` gives them; None if nothing stands out."""
    if in_mnist_form(grey):
        return Row((grey.astype(np.uint8)[..., None],))
    ink = find_ink(grey)
    if ink is None:
        return None
    parts = _parts(ink)
    groups = _groups(ink, parts)
    if len(groups) < 2:
        groups = [_main_part(ink, parts)]
    edges = [np.flatnonzero((group > 0).any(0))[[0, -1]] for group in groups]
    gaps = [right[0] - left[1] - 1 for left, right in itertools.pairwise(edges)]
    tight = bool(gaps) and min(gaps) < _TIGHT * len(_crop(ink))
    return Row(tuple(map(fit_box, groups)), tight or any(map(_wide, groups)))


def _wide(ink):
    height, width = _crop(ink).shape
    return width > _WIDE * height


def in_mnist_form(grey: np.ndarray) -> bool:
    """Whether a picture is 28x28, light on black, in a box of 20x20 whose mass is in the middle."""
    if grey.shape != (_SIZE, _SIZE) or grey.max() < 128 or grey[[0, 0, -1, -1], [0, -1, 0, -1]].any():
        return False
    height, width = (np.ptp(np.flatnonzero(grey.any(axis))) + 1 for axis in (1, 0))
    off = np.abs(np.array(ndimage.center_of_mass(grey)) - _SIZE / 2)
    return max(height, width) in (_BOX - 1, _BOX) and bool((off < 1).all())


def find_ink(grey: np.ndarray) -> np.ndarray | None:
    """Ink, float [H, W] from 0 to 1, of what differs from the paper; None if nothing stands out.

    The paper is a plane through the upper quartiles of the four edges, or the lower where it is dark. Ink is told from
    it by Otsu's threshold: "A threshold selection method from gray-level histograms", 1979.
    """
    paper = np.median(_border(grey))
    apart = grey - paper
    # On grey paper the ink is on the side that differs more.
    light = paper >= 160 or (paper >= 64 and (apart * np.abs(apart)).sum() <= 0)
    level = grey if light else 255 - grey
    # Three quarters up each edge there is paper, even where a digit touches it.
    top, bottom, left, right = (np.percentile(edge, 75) for edge in (level[0], level[-1], level[:, 0], level[:, -1]))
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
    """The threshold, a whole number, that parts values in [0, 255] into two classes of greatest variance between."""
    counts = np.bincount(values.astype(np.int64).ravel(), minlength=256)
    below, sums = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * (below / below[-1]) - sums) ** 2 / (below * above)
    return int(np.nanargmax(np.where(above > 0, between, -1))) + 1


def _parts(ink):
    """Connected parts: labels from 1, and for each its box, slices, and its area; one at the edge counts for less."""
    labeled: Any = ndimage.label(ink > 0, np.ones((3, 3)))
    labels, count = labeled
    boxes = ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel(), ink.ravel(), count + 1)[1:]
    at_edge = [any(side.start == 0 or side.stop == n for side, n in zip(box, ink.shape, strict=True)) for box in boxes]
    return labels, boxes, np.where(at_edge, _EDGE * areas, areas)


def _length(side):
    return side.stop - side.start


def _overlap(side, other):
    """By how many pixels two ranges overlap; negative for the gap between them."""
    return min(side.stop, other.stop) - max(side.start, other.start)


def _near(box, other, gap):
    return all(_overlap(*sides) > -gap for sides in zip(box, other, strict=True))


def _main_part(ink, parts):
    """Ink without specks, print and whatever else is not of the largest connected part or near it."""
    labels, boxes, areas = parts
    main = int(areas.argmax())
    near = _NEAR * max(map(_length, boxes[main]))
    mine = [i for i in range(len(boxes)) if areas[i] >= _SMALL * areas[main] and _near(boxes[i], boxes[main], near)]
    return _only(mine, labels, ink)


def _groups(ink, parts):
    """The ink of each digit of a row: parts as tall as the largest and beside it, each with what lies near it."""
    labels, boxes, areas = parts
    main = int(areas.argmax())
    height, standing = boxes[main][0], []
    for i, (rows, _) in enumerate(boxes):
        alike = _TALL <= _length(rows) / _length(height) <= 1 / _TALL
        beside = _overlap(rows, height) >= 0.5 * min(_length(rows), _length(height))
        if alike and beside and areas[i] >= _SMALL * areas[main]:
            standing.append(i)
    groups: list[tuple[list[int], slice]] = []
    for i in sorted(standing, key=lambda i: boxes[i][1].start):
        columns = boxes[i][1]
        if groups and _overlap(columns, groups[-1][1]) > _OVER * min(_length(columns), _length(groups[-1][1])):
            members, before = groups[-1]
            groups[-1] = [*members, i], slice(before.start, max(before.stop, columns.stop))
        else:
            groups.append(([i], columns))
    for i in {i for i in range(len(boxes)) if areas[i] >= _SMALL * areas[main]} - set(standing):
        members, _ = max(groups, key=lambda group: _overlap(group[1], boxes[i][1]))
        if any(_near(boxes[i], boxes[other], _NEAR * _length(height)) for other in members):
            members.append(i)
    return [_only(members, labels, ink) for members, _ in groups]


def _only(members, labels, ink):
    """The ink of some parts; a look-up is sooner done than `np.isin`."""
    kept = np.zeros(labels.max() + 1)
    kept[np.array(members) + 1] = 1
    return ink * kept[labels]


def fit_box(ink: np.ndarray) -> np.ndarray:
    """Ink, float [H, W] from 0 to 1, scaled to a box of 20x20, its shape kept, and placed by its center of mass.

    Thin strokes are thickened and its dark end is white: uint8 [28, 28, 1], with the mass at pixel (14, 14).

    Reference: LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
    """
    fine = _thicken(_resize(_crop(ink), _FINE))
    small = _resize(_crop(fine), _BOX)
    small = np.clip(small / np.percentile(small[small > 0], 80), 0, 1) * 255
    mass, placed = small.sum(), np.zeros((_SIZE, _SIZE), np.uint8)
    corner = []
    for axis, length in enumerate(small.shape):
        middle = (small.sum(1 - axis) * np.arange(length)).sum() / mass
        # What is symmetric lies at a half, which goes up however its sum is rounded.
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
    """Dilates strokes thinner than a tenth of the long side by a disc, until they are as thick."""
    drawn = np.pad(ink >= 0.5, 1)
    outline = (drawn[1:] != drawn[:-1]).sum() + (drawn[:, 1:] != drawn[:, :-1]).sum()
    thickness = 2 * drawn.sum() / max(1, outline * np.pi / 4)  # Of a long stroke; a slanted outline has more steps.
    radius = (_THIN * max(ink.shape) - thickness) / 2
    if radius <= 0:
        return ink
    whole = int(np.ceil(radius))
    y, x = np.mgrid[-whole : whole + 1, -whole : whole + 1]
    padded = np.pad(ink, whole)
    inner, outer = (ndimage.grey_dilation(padded, footprint=x * x + y * y <= r * r) for r in (whole - 1, whole))
    return inner + (radius - whole + 1) * (outer - inner)
