"""What a network says of pictures: digits, how probable they are, and where there is reason for doubt."""

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

_NEAR = 0.1  # Probability from which a runner-up is named.
_QUANTILE = 0.99  # Of held-out digits, this share is taken for digits.
DOUBT = Path(__file__).parent.parent / "pretrained" / "doubt.json"


class Doubt(NamedTuple):
    """How logits of digits lie, to tell what is none.

    Attributes:
      means: of the logits of each class, float [classes, classes].
      precision: inverse of their covariance within a class, float [classes, classes].
      spread: standard deviation of the largest logit.
      limit: a doubt above it is of no digit.
    """

    means: Any
    precision: Any
    spread: float
    limit: float

    def of(self, logits: Float[np.ndarray, "N classes"]) -> Float[np.ndarray, " N"]:
        """The doubt whether logits are of a digit: the distance to the nearest class, less how large the largest is.

        The distance is that of Lee, Lee, Lee, Shin, "A simple unified framework for detecting out-of-distribution
        samples", 2018; the largest logit is Hendrycks et al., "Scaling out-of-distribution detection", 2022.
        """
        apart = logits[:, None] - np.asarray(self.means)
        squares = np.einsum("nci,ij,ncj->nc", apart, np.asarray(self.precision), apart)
        return np.sqrt(squares.min(-1)) - logits.max(-1) / self.spread


def calibrate(logits: Float[np.ndarray, "N classes"], labels: Int[np.ndarray, " N"]) -> Doubt:
    """The doubt of a network from its logits of held-out images; one in a hundred of these comes above the limit."""
    classes = range(logits.shape[1])
    means = np.stack([logits[labels == label].mean(0) for label in classes])
    precision = np.linalg.inv(np.cov((logits - means[labels]).T) + 1e-3 * np.eye(len(classes)))
    doubt = Doubt(means, precision, float(logits.max(-1).std()), 0.0)
    return doubt._replace(limit=float(np.quantile(doubt.of(logits), _QUANTILE)))


@functools.cache
def load_doubts() -> dict[str, Doubt]:
    """The doubts of the shipped weights by their names; `scripts/calibrate.py` writes them."""
    return {name: Doubt(**values) for name, values in json.loads(DOUBT.read_text(encoding="utf-8")).items()}


class Answer(NamedTuple):
    """What a picture shows.

    Attributes:
      text: the classes from left to right, such as "7" or "427".
      probabilities: of all classes for each digit, float32 [digits, classes].
      remarks: where there is reason for doubt, in words.
    """

    text: str
    probabilities: Float[np.ndarray, "digits classes"]
    remarks: tuple[str, ...] = ()

    @property
    def confidence(self) -> float:
        """The probability that the network gives its answer: the product over the digits, in [0, 1]."""
        return float(self.probabilities.max(-1).prod())


def read(trained: Trained, rows: Sequence[Row], doubt: Doubt | None = None) -> list[Answer]:
    """Reads rows of digits, all in one batch; `doubt` says what is no digit."""
    logits = predict(trained, np.concatenate([np.stack(row.digits) for row in rows]))
    probabilities = softmax(logits, axis=-1)
    strange = np.zeros(len(logits), bool) if doubt is None else doubt.of(logits) > doubt.limit
    ends = np.cumsum([len(row.digits) for row in rows])[:-1]
    each = zip(rows, np.split(probabilities, ends), np.split(strange, ends), strict=True)
    return [answer_of(trained.classes, row, mine, bool(none.any())) for row, mine, none in each]


def answer_of(
    classes: tuple[str, ...], row: Row, probabilities: Float[np.ndarray, "digits classes"], strange: bool
) -> Answer:
    """The answer of a row from the probabilities of its digits; `strange` if one of them is no digit."""
    remarks = []
    for shares in probabilities:
        second, first = np.argsort(shares)[-2:]
        if shares[second] >= _NEAR:
            remarks.append(f"{classes[first]} or {classes[second]} ({shares[second]:.1%})")
    remarks += ["no digit?"] if strange else []
    remarks += ["uncertain where a digit ends"] if row.uncertain else []
    return Answer("".join(classes[shares.argmax()] for shares in probabilities), probabilities, tuple(remarks))
