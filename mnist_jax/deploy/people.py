"""Accuracy on pictures by people: by person, with an interval, confusions and calibration."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from mnist_jax.deploy.digits import Row
from mnist_jax.deploy.images import SUFFIXES, load_grey
from mnist_jax.deploy.reading import Answer
from mnist_jax.errors import InputError
from mnist_jax.reports import render

SURE = 0.9  # An answer with at least this probability counts as sure.
_BINS = 10
_RESAMPLES = 10_000
_SHOWN = 160  # Pixels of a picture's long side on the page.


class Picture(NamedTuple):
    """A picture of one digit: its file, the person who drew it, and its class."""

    file: Path
    person: str
    label: str


class Score(NamedTuple):
    """Scores of answers.

    Attributes:
      pictures: number of pictures; unreadable ones count as wrong.
      accuracy: fraction of right answers.
      interval: 95% interval of the accuracy, by resampling people.
      people: number of pictures and of right answers of each person.
      confusions: class, wrong answer and count, most frequent first; "-" for no answer.
      sure_and_wrong: wrong answers with a probability of 0.9 or more.
      calibration_error: expected calibration error, in ten bins of confidence.
    """

    pictures: int
    accuracy: float
    interval: tuple[float, float]
    people: dict[str, tuple[int, int]]
    confusions: list[tuple[str, str, int]]
    sure_and_wrong: int
    calibration_error: float

    def as_dict(self) -> dict[str, Any]:
        """The fields for JSON, with the number of people instead of their scores."""
        values = self._asdict()
        return values | {"people": len(values["people"])}


def find_pictures(folder: Path, classes: Sequence[str]) -> list[Picture]:
    """Finds the pictures `PERSON/LABEL_*.png` of a folder, or `LABEL_*.png` of one person.

    Raises InputError if there are none, or a name does not begin with a class.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"folder {str(folder)!r} holds no pictures; give one with PERSON/LABEL_*.png")
    found = [Picture(file, file.parent.name, file.stem.partition("_")[0]) for file in files]
    for picture in found:
        if picture.label not in classes:
            remedy = f"name it LABEL_*, where LABEL is one of {', '.join(classes)}"
            raise InputError(f"the name of {str(picture.file)!r} does not say what it shows; {remedy}")
    return found


def score(pictures: Sequence[Picture], answers: Sequence[Answer | None]) -> Score:
    """Scores answers, given in the order of the pictures; None stands for no answer.

    The interval resamples people, because pictures of one person are alike. The calibration error is that of Guo,
    Pleiss, Sun, Weinberger, "On calibration of modern neural networks", 2017.
    """
    said = [answer.text if answer else "-" for answer in answers]
    confidence = np.array([answer.confidence if answer else 0.0 for answer in answers])
    right = np.array([text == picture.label for text, picture in zip(said, pictures, strict=True)])
    names, person = np.unique([picture.person for picture in pictures], return_inverse=True)
    counts, rights = np.bincount(person), np.bincount(person, right)
    drawn = np.random.default_rng(0).integers(len(names), size=(_RESAMPLES, len(names)))
    low, high = np.percentile(rights[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    wrong = Counter(
        (picture.label, text) for picture, text in zip(pictures, said, strict=True) if text != picture.label
    )
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    gaps = [abs((right[bins == i] - confidence[bins == i]).sum()) for i in range(_BINS)]
    by_person = zip(names, counts, rights, strict=True)
    return Score(
        len(pictures),
        float(right.mean()),
        (float(low), float(high)),
        {str(name): (int(count), int(correct)) for name, count, correct in by_person},
        [(*pair, count) for pair, count in wrong.most_common()],
        int(((confidence >= SURE) & ~right).sum()),
        sum(gaps) / len(pictures),
    )


def page(
    title: str,
    pictures: Sequence[Picture],
    answers: Sequence[Answer | None],
    rows: Mapping[Path, Row],
    score: Score,
) -> str:
    """Renders a page with the score and the errors, each picture beside the digits the network got."""
    errors = []
    for picture, answer in zip(pictures, answers, strict=True):
        if answer and answer.text == picture.label:
            continue
        seen = [_data_url(digit[..., 0]) for digit in rows[picture.file].digits] if picture.file in rows else []
        try:
            shown = _data_url(load_grey(picture.file).astype(np.uint8))
        except InputError:
            shown = ""
        errors.append({"picture": picture, "answer": answer, "shown": shown, "seen": seen})
    return render("pictures.html", title=title, score=score, errors=errors)


def _data_url(grey: np.ndarray) -> str:
    image, said = Image.fromarray(grey), io.BytesIO()
    image.thumbnail((_SHOWN, _SHOWN))
    image.save(said, "PNG")
    return "data:image/png;base64," + base64.b64encode(said.getvalue()).decode()
