"""Measures how pictures are read: a folder by people, rows, small digits, and what may not be a digit."""

import dataclasses
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mnist_jax import ARCHS, evaluate, load_dataset, load_pretrained, predict
from mnist_jax.cli import run
from mnist_jax.data import Split
from mnist_jax.deploy import images, reading
from mnist_jax.deploy.digits import Row, to_digit, to_row
from mnist_jax.errors import InputError
from mnist_jax.runs.weights import READER
from mnist_jax.runtime import environment
from mnist_jax.statistics import calibration
from mnist_jax.steps import Trained

COUNT, SEED = 500, 24


@dataclasses.dataclass(frozen=True)
class Options:
    """Measures how every shipped network reads pictures, and writes it as JSON; it needs scikit-learn.

    Small digits are scikit-learn's 1,797 of 8x8, as pictures of 96x96. No digits are 500 each of letters, noise, shapes
    and Fashion-MNIST's test images.

    Example: python scripts/measure_pictures.py --pictures digits --fashion fashion-mnist --out pictures.json
    """

    pictures: Path
    """Folder of PERSON/LABEL_*.png."""
    fashion: Path
    """Fashion-MNIST: a folder of its IDX files."""
    out: Path
    """File to write."""


def main(options: Options) -> None:
    """Reads all pictures once, lets every network answer, and writes."""
    test, rng = load_dataset("mnist").test, np.random.default_rng(SEED)
    pictures = images.find_pictures(options.pictures, tuple("0123456789"))
    kinds = [picture.person.rstrip("0123456789") for picture in pictures]
    begun = time.perf_counter()
    rows = [_row(picture.file) for picture in pictures]
    seconds = time.perf_counter() - begun
    read = [row for row in rows if row]
    digits = np.stack([row.digits[0] for row in read])
    numbers = [generated_row(rng, test.images, test.labels) for _ in range(100)]
    number_rows = [to_row(grey.astype(float)) for grey, _ in numbers]
    others = {kind: _digits([make(rng) for _ in range(COUNT)]) for kind, make in KINDS.items()}
    others["fashion"] = _digits(list(load_dataset(str(options.fashion)).test.images[:COUNT, :, :, 0]))
    files = np.stack([to_digit(_through_png(image)) for image in test.images[..., 0]])
    small, labels = _small_digits()
    results: dict[str, Any] = {}
    for name in (*ARCHS, READER):
        trained, doubt = load_pretrained(name), reading.load_doubts()[name]
        iterator = iter(reading.read(trained, read, doubt))
        answers = [next(iterator) if row else None for row in rows]
        right = [a is not None and a.text == p.label for a, p in zip(answers, pictures, strict=True)]
        texts = [answer.text for answer in reading.read(trained, number_rows, doubt)]
        inside = doubt.of(predict(trained, digits))
        outside = {kind: doubt.of(predict(trained, strange)) for kind, strange in others.items()}
        results[name] = {
            "people": score(pictures, answers),
            "kinds": {
                kind: {"count": kinds.count(kind), "accuracy": float(np.mean(np.array(right)[np.equal(kinds, kind)]))}
                for kind in sorted(set(kinds))
            },
            "test_accuracy": _accuracy(trained, test),
            "test_accuracy_of_files": _accuracy(trained, Split(files, test.labels)),
            "small_digits": _accuracy(trained, Split(small, labels)),
            "rows_read": sum(text == wanted for text, (_, wanted) in zip(texts, numbers, strict=True)),
            "auroc": {kind: _auroc(inside, scores) for kind, scores in outside.items()}
            | {"all": _auroc(inside, np.concatenate(list(outside.values())))},
            "digits_called_none": float((inside > doubt.limit).mean()),
            "others_called_none": float(np.mean([scores > doubt.limit for scores in outside.values()])),
        }
        print(name, json.dumps(results[name]), flush=True)
    record = {
        "networks": results,
        "seed": SEED,
        "pictures_a_second": len(pictures) / seconds,
        "environment": environment(("pillow", "scipy", "scikit-learn")),
        "version": 1,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def score(pictures: Sequence[images.Picture], answers: Sequence[reading.Answer | None]) -> dict[str, Any]:
    """Scores answers, in the order of the pictures; None stands for no answer, which is wrong.

    The 95% interval of the accuracy resamples people, because pictures of one person are alike. `confusions` are class,
    wrong answer and count; `sure_and_wrong` counts wrong answers with a probability of 0.9 or more.
    """
    texts = [answer.text if answer else "-" for answer in answers]
    labels = [picture.label for picture in pictures]
    right = np.array(texts) == labels
    confidence = np.array([answer.confidence if answer else 0.0 for answer in answers])
    _, person = np.unique([picture.person for picture in pictures], return_inverse=True)
    counts, rights = np.bincount(person), np.bincount(person, right)
    drawn = np.random.default_rng(0).integers(len(counts), size=(10_000, len(counts)))
    wrong = Counter(pair for pair in zip(labels, texts, strict=True) if pair[0] != pair[1])
    return {
        "pictures": len(pictures),
        "accuracy": float(right.mean()),
        "interval": np.percentile(rights[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5]).tolist(),
        "people": len(counts),
        "confusions": [(*pair, count) for pair, count in wrong.most_common()],
        "sure_and_wrong": int(((confidence >= 0.9) & ~right).sum()),
        "calibration_error": calibration(confidence[:, None], np.where(right, 0, 1), bins=10).error,
    }


def _row(path: Path) -> Row | None:
    try:
        return images.load_row(path)
    except (InputError, OSError) as error:
        print(f"note: {error}", file=sys.stderr)
        return None


def _digits(greys):
    return np.stack([digit for grey in greys if (digit := to_digit(grey.astype(float))) is not None])


def _through_png(image):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return np.asarray(Image.open(file), np.float64)


def _small_digits():
    from sklearn.datasets import load_digits  # Only this needs it.

    digits = load_digits()
    large = [
        Image.fromarray(np.uint8(255 - np.round(image * 255 / 16))).resize((96, 96), Image.Resampling.BICUBIC)
        for image in digits.images
    ]
    return _digits(list(map(np.asarray, large))), digits.target


def _accuracy(trained: Trained, split: Split) -> float:
    return evaluate(trained, split).mean()[1]


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score([0] * len(inside) + [1] * len(outside), [*inside, *outside]))


# Generated pictures ---------------------------------------------------------------------------------------------------

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


def generated_letter(rng: np.random.Generator) -> np.ndarray:
    """A letter unlike any digit, in one of matplotlib's fonts: grey uint8 [H, W]."""
    path = Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{rng.choice(FONTS)}.ttf"
    image = Image.new("L", (_SIDE, _SIDE), 255)
    font = ImageFont.truetype(str(path), 60)
    ImageDraw.Draw(image).text((_SIDE / 2, _SIDE / 2), str(rng.choice(LETTERS)), font=font, fill=0, anchor="mm")
    return np.asarray(image)


def generated_noise(rng: np.random.Generator) -> np.ndarray:
    """Uniform noise in blocks of 1 to 8 pixels: grey uint8 [H, W]."""
    block = int(rng.integers(1, 9))
    return np.kron(rng.integers(0, 256, (96 // block,) * 2), np.ones((block, block))).astype(np.uint8)


def generated_shape(rng: np.random.Generator) -> np.ndarray:
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


KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "letters": generated_letter,
    "noise": generated_noise,
    "shapes": generated_shape,
}


def generated_row(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, str]:
    """Two to five digits side by side, 2 to 10 pixels apart, dark on light: grey uint8 [H, W], and its text."""
    chosen = rng.integers(len(images), size=int(rng.integers(2, 6)))
    parts = []
    for image in images[chosen, :, :, 0]:
        columns = np.flatnonzero(image.any(0))
        parts += [np.zeros((28, int(rng.integers(2, 11))), np.uint8), image[:, columns[0] : columns[-1] + 1]]
    return 255 - np.pad(np.concatenate(parts, 1), ((6, 6), (8, 10))), "".join(str(labels[i]) for i in chosen)


if __name__ == "__main__":
    run(main, Options)
