"""Reads pictures with a network: digits, their probabilities, and remarks on what is uncertain."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.special import softmax

from mnist_jax.deploy.digits import Row
from mnist_jax.scoring import predict
from mnist_jax.steps import Trained

_NEAR = 0.1  # A runner-up with at least this probability is named.
_QUANTILE = 0.99  # This share of held-out digits is accepted as digits.
DOUBT = Path(__file__).parent.parent / "pretrained" / "doubt.json"


class Doubt(NamedTuple):
    """Statistics of the logits of digits, to detect pictures of something else.

    Attributes:
      means: mean logits of each class, float [classes, classes].
      precision: inverse of their covariance within a class, float [classes, classes].
      spread: standard deviation of the largest logit.
      limit: above it, a picture may not be a digit.
    """

    means: Any
    precision: Any
    spread: float
    limit: float

    def of(self, logits: Float[np.ndarray, "N classes"]) -> Float[np.ndarray, " N"]:
        """Scores how unlike a digit's logits are: the distance to the nearest class minus the largest logit.

        The distance is that of Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution
        samples", 2018; the largest logit is that of Hendrycks et al., "Scaling out-of-distribution detection", 2022.

        Args:
          logits: float [N, classes].

        Returns:
          float [N].
        """
        apart = logits[:, None] - np.asarray(self.means)
        squares = np.einsum("nci,ij,ncj->nc", apart, np.asarray(self.precision), apart)
        return np.sqrt(squares.min(-1)) - logits.max(-1) / self.spread


def calibrate(logits: Float[np.ndarray, "N classes"], labels: Int[np.ndarray, " N"]) -> Doubt:
    """Calibrates the statistics of a network on held-out images, with the limit above 99% of them.

    Args:
      logits: float [N, classes].
      labels: int [N]; every class occurs.

    Returns:
      The `Doubt`.

    Example:
      >>> labels = rng.integers(0, 3, 300)
      >>> doubt = reading.calibrate(rng.normal(size=(300, 3)) + 9 * np.eye(3)[labels], labels)
      >>> bool(doubt.of(np.zeros((1, 3)))[0] > doubt.limit)
      True
    """
    classes = range(logits.shape[1])
    means = np.stack([logits[labels == label].mean(0) for label in classes])
    covariance = np.cov((logits - means[labels]).T)
    precision = np.linalg.inv(covariance + 1e-3 * np.eye(len(classes)))
    doubt = Doubt(means, precision, float(logits.max(-1).std()), 0.0)
    return doubt._replace(limit=float(np.quantile(doubt.of(logits), _QUANTILE)))


@functools.cache
def load_doubts() -> dict[str, Doubt]:
    """Loads the statistics of the package's weights, written by `scripts/calibrate.py`.

    Returns:
      A `Doubt` by name of the weights.

    Example:
      >>> sorted(reading.load_doubts())
      ['accurate', 'accurate-held-out', 'basic', 'bn_dropout', 'gap', 'lighter', 'small', 'swift']
    """
    return {name: Doubt(**values) for name, values in json.loads(DOUBT.read_text(encoding="utf-8")).items()}


class Answer(NamedTuple):
    """The answer to a picture.

    Attributes:
      text: the classes from left to right, such as "7" or "427".
      probabilities: probability of each class for each digit, float32 [digits, classes].
      remarks: what is uncertain, in words.
    """

    text: str
    probabilities: Float[np.ndarray, "digits classes"]
    remarks: tuple[str, ...] = ()

    @property
    def confidence(self) -> float:
        """The probability of the whole answer, the product over its digits, in [0, 1]."""
        return float(self.probabilities.max(-1).prod())


def read(trained: Trained, rows: Sequence[Row], doubt: Doubt | None = None) -> list[Answer]:
    """Reads rows of digits, all in one batch.

    Args:
      trained: the network, a `Trained`.
      rows: one or more, as `to_row` or `load_row` return them.
      doubt: tells pictures that may not be a digit, from `load_doubts`; None for no such remarks.

    Returns:
      One `Answer` per row.

    Example:
      >>> reader, doubt = mj.load_pretrained("accurate-held-out"), reading.load_doubts()["accurate-held-out"]
      >>> (answer,) = reading.read(reader, [images.load_row(Path("seven.png"))], doubt)
      >>> answer.text, answer.remarks
      ('7', ())
    """
    logits = predict(trained, np.concatenate([np.stack(row.digits) for row in rows]))
    probabilities = softmax(logits, axis=-1)
    strange = np.zeros(len(logits), bool) if doubt is None else doubt.of(logits) > doubt.limit
    answers, start = [], 0
    for row in rows:
        end = start + len(row.digits)
        answers.append(_answer(trained.classes, row, probabilities[start:end], strange[start:end]))
        start = end
    return answers


def _answer(classes: tuple[str, ...], row: Row, probabilities: np.ndarray, strange: np.ndarray) -> Answer:
    """The answer to a row, from the probabilities of its digits, and whether each may not be a digit."""
    remarks = []
    for shares in probabilities:
        second, first = np.argsort(shares)[-2:]
        if shares[second] >= _NEAR:
            remarks.append(f"{classes[first]} or {classes[second]} ({shares[second]:.1%})")
    if strange.any():
        remarks.append("may not be a digit")
    if row.uncertain:
        remarks.append("digits may be split wrongly")
    return Answer("".join(classes[label] for label in probabilities.argmax(-1)), probabilities, tuple(remarks))
