"""Trains the weights that read pictures: `accurate` goes on with training images drawn anew."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from scipy import ndimage

from mnist_jax import (
    Dataset,
    fit,
    hold_out,
    load_dataset,
    load_weights,
    make_config,
    make_setup,
    save_weights,
)
from mnist_jax.cli import run
from mnist_jax.deploy.digits import to_digit
from mnist_jax.runs.weights import PRETRAINED, READER

HELD_OUT = 10_000
SETTINGS = {"epochs": 2, "plain_epochs": 1, "learning_rate": 0.005, "average_decay": 0.99, "label_smoothing": 0.05}


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains `accurate`, goes on twice with training images drawn anew, and writes the mean of all three weights.

    The last 10,000 training images stay held out. Of the others 24,000 stay as they are, and 12,000 each are drawn with
    a pen, made thinner or thicker, and made coarse. All drawings are brought to MNIST's form as pictures are.

    Reference of the mean: Wortsman et al., "Robust fine-tuning of zero-shot models", 2022.

    Example: python scripts/train_reader.py --out reader.safetensors
    """

    weights: Path | None = None
    """Weights to go on with. If not given: train them first, by the recipe `default`."""
    out: Path = PRETRAINED / f"{READER}.safetensors"
    """File to write."""
    seed: int = 1
    """Of the first training and of one set of drawings; the other has the next."""


def main(options: Options) -> None:
    """Trains, draws, goes on, takes the mean, and writes."""
    data = hold_out(load_dataset("mnist"), HELD_OUT)
    config = make_config(arch="accurate", seed=options.seed)
    before = load_weights(options.weights) if options.weights else _train(config, data)
    three = [before.variables]
    for seed in (options.seed, options.seed + 1):
        further = dataclasses.replace(config, seed=seed, **SETTINGS)
        three.append(_train(further, drawn_anew(data, seed), before.variables).variables)
    mean = jax.tree.map(lambda *each: sum(each) / len(each), *three)
    save_weights(options.out, before.replace(variables=mean))


def _train(config, data, variables=None):
    """Trains from the start, or on from variables."""
    setup = make_setup(config, data)
    initial = setup.with_variables(variables) if variables else None
    state, _ = fit(config, data, initial=initial, on_epoch=lambda progress: print(progress.history[-1], flush=True))
    return setup.trained(state)


def drawn_anew(data: Dataset, seed: int) -> Dataset:
    """Replaces the 50,000 training images by 24,000 of them and 36,000 drawings; standardized as before."""
    rng, (images, labels) = np.random.default_rng(seed), data.train
    parts = [(images[24_000:48_000], labels[24_000:48_000])]
    for draw, first in ((_with_pen, 0), (_thick, 12_000), (_coarse, 38_000)):
        some, digits = (each[first : first + 12_000] for each in data.train)
        drawn = [_read(draw(rng, image[..., 0] / 255, label), image) for image, label in zip(some, digits, strict=True)]
        parts.append((np.stack(drawn), digits))
    images, labels = map(np.concatenate, zip(*parts, strict=True))
    made = Dataset.from_arrays((images, labels), data.test)
    return dataclasses.replace(made, mean=data.mean, deviation=data.deviation)


def _read(grey, image):
    """What the network sees of a picture; the image itself where nothing stands out."""
    digit = None if grey is None else to_digit(np.clip(grey, 0, 255))
    return image if digit is None else digit


def _resize(ink, width, height, how=Image.Resampling.BICUBIC):
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), how))


def _distance(mask):
    return np.asarray(ndimage.distance_transform_edt(mask))


def _on_paper(rng, ink):
    """Dark on light, of any contrast, and at times out of focus."""
    if rng.random() < 0.3:
        ink = ndimage.gaussian_filter(ink, rng.uniform(0.3, 0.02 * len(ink)))
    return 255 - ink * rng.uniform(60, 255)


def _thick(rng, image, label):
    """Larger, and mostly with thinner or thicker strokes."""
    side = int(rng.integers(70, 121))
    ink = np.clip(np.pad(_resize(image, side, side), side // 8), 0, 1)
    if rng.random() < 0.6:
        mask = ink > 0.5
        depth = _distance(mask) - _distance(~mask)
        by = rng.uniform(-min(0.4 * depth.max(), 0.04 * side), 0.05 * side)
        ink = np.clip((depth + by) / 1.5 + 0.5, 0, 1)
    return _on_paper(rng, ink)


def _coarse(rng, image, label):
    """In 7 to 14 pixels, mostly in 8 as scikit-learn's digits are: each counts the ink of 4x4."""
    pixels = 8 if rng.random() < 0.6 else int(rng.integers(7, 15))
    rows, columns = (np.flatnonzero((image > 0.3).any(axis)) for axis in (1, 0))
    box = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    (height, width), side = box.shape, 4 * pixels
    scale = side / max(box.shape) * rng.uniform(0.88, 1.0)
    stretch = rng.uniform(0.9, 1.25) if height > width else 1.0
    width, height = (max(1, min(side, round(each * scale))) for each in (width * stretch, height))
    square = np.zeros((side, side))
    y, x = (side - height) // 2, (side - width) // 2
    ink = _resize(box, width, height, Image.Resampling.BILINEAR) > rng.uniform(0.12, 0.5)
    square[y : y + height, x : x + width] = ink
    counts = square.reshape(pixels, 4, pixels, 4).mean((1, 3))
    small = Image.fromarray(np.uint8(255 - np.round(255 * counts)))
    return np.asarray(small.resize((12 * pixels, 12 * pixels), Image.Resampling.BICUBIC), np.float64)


def _with_pen(rng, image, label):
    """The middle of the strokes, drawn with a pen of 2 to 18% of the long side, and with what hands add."""
    strokes = np.pad(thin(_resize(image, 84, 84) > 0.4), 20)
    rows, columns = np.nonzero(strokes)
    if not len(rows):
        return None
    length = max(np.ptp(rows), np.ptp(columns)) + 1
    _add(rng, strokes, rows, columns, label)
    width = rng.uniform(0.02, 0.18) * length
    away = _distance(~strokes)
    ink = np.clip(max(width / 2 + 0.5, 1.5) - away, 0, 1)
    if rng.random() < 0.08:  # A speck nearby, of about the size that `to_digit` removes.
        radius = np.sqrt(ink.sum() * rng.uniform(0.04, 0.09) / np.pi)
        places = np.argwhere((away > width / 2 + radius + 2) & (away < width / 2 + 0.2 * length))
        if len(places):
            y, x = np.indices(ink.shape) - rng.choice(places)[:, None, None]
            ink = np.maximum(ink, np.clip(radius + 0.5 - np.hypot(y, x), 0, 1))
    return _on_paper(rng, ink)


def _add(rng, strokes, rows, columns, label):
    """A flag or a foot to a one, a bar to a seven, all by chance, in place."""
    top, bottom, chance, height = rows.argmin(), rows.argmax(), rng.random(), np.ptp(rows) + 1
    if label == 1 and chance < 0.55:
        angle, long = rng.uniform(0.08, 0.42) * np.pi, rng.uniform(0.12, 0.4) * height
        _line(strokes, rows[top], columns[top], long * np.sin(angle), -long * np.cos(angle))
    if label == 1 and 0.35 < chance < 0.8:
        for side in (-1, 1):
            _line(strokes, rows[bottom], columns[bottom], 0, side * rng.uniform(0.1, 0.35) * height)
    if label == 7 and chance < 0.35:
        row = int(rows.min() + rng.uniform(0.4, 0.65) * height)
        column, slant = columns[rows == row].mean(), rng.uniform(-0.15, 0.15)
        for side in (-1, 1):
            long = side * rng.uniform(0.12, 0.3) * height
            _line(strokes, row, column, -slant * long, long)


def _line(strokes, row, column, down, right):
    along = np.linspace(0, 1, len(strokes))
    at = (np.clip(np.round(begin + along * by), 1, len(strokes) - 2) for begin, by in ((row, down), (column, right)))
    strokes[tuple(each.astype(int) for each in at)] = True


def thin(mask: np.ndarray) -> np.ndarray:
    """Lines one pixel wide in the middle of strokes, bool [H, W].

    Reference: Zhang and Suen, "A fast parallel algorithm for thinning digital patterns", 1984.
    """
    mask, changed = mask.astype(np.uint8), True
    while changed:
        changed = False
        for lower_right in (True, False):
            p = np.pad(mask, 1)
            n, s, w, e = p[:-2, 1:-1], p[2:, 1:-1], p[1:-1, :-2], p[1:-1, 2:]
            ring = [n, p[:-2, 2:], e, p[2:, 2:], s, p[2:, :-2], w, p[:-2, :-2]]
            count = sum(ring)
            starts = sum((1 - a) & b for a, b in zip(ring, [*ring[1:], ring[0]], strict=True))
            first, second = (n & e & s, e & s & w) if lower_right else (n & e & w, n & s & w)
            gone = (mask == 1) & (count >= 2) & (count <= 6) & (starts == 1) & (first == 0) & (second == 0)
            mask[gone], changed = 0, changed or gone.any()
    return mask.astype(bool)


if __name__ == "__main__":
    run(main, Options)
