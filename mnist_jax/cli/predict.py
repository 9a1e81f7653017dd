"""Says which digit a picture shows."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mnist_jax.cli.program import load_trained
from mnist_jax.deploy import digits, images, reading
from mnist_jax.errors import InputError
from mnist_jax.runs.weights import READER


@dataclasses.dataclass(frozen=True)
class Options:
    """Says which digit each picture shows, and how probable it is.

    Takes PNG, JPEG, WebP, GIF, TIFF and BMP files, or a folder of them: a digit, or several side by side, dark on light
    or light on dark. A file that cannot be used is named on standard error, and the others are answered all the same.

    Exit status: 0 all answered, 2 bad input, or a file that could not be used.

    Example: mnist-jax predict seven.png digits/
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files and folders."""
    arch: str = READER
    """Shipped weights to use: a network, or accurate-held-out, whose doubt is calibrated on held-out images."""
    run_dir: Path | None = None
    """Use the weights of this run instead; it never remarks "no digit?"."""
    show: bool = False
    """Print the 28x28 pixels that the network sees."""
    json: bool = False
    """Print one JSON object per picture, with the probabilities of all classes."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> int:
    """Reads, predicts and prints; returns the exit status."""
    if not options.paths:
        raise InputError("no file is given; name pictures or a folder of them")
    trained = load_trained(options.run_dir, None if options.run_dir else options.arch)
    doubt = None if options.run_dir else reading.load_doubts().get(options.arch)
    rows, refused = load_rows(options.paths)
    answers = reading.read(trained, list(rows.values()), doubt) if rows else []
    for (file, row), answer in zip(rows.items(), answers, strict=True):
        if options.json:
            print(json.dumps({"file": str(file)} | _record(answer, trained.classes)))
        else:
            shares = answer.probabilities.max(-1)
            each = "" if len(shares) == 1 else f" ({', '.join(f'{share:.1%}' for share in shares)})"
            print("; ".join([f"{file}: {answer.text}  {answer.confidence:.1%}{each}", *answer.remarks]))
        if options.show:
            print(*map(_drawn, row.digits), sep="\n\n", file=sys.stderr if options.json else sys.stdout)
    return 2 if refused else 0


def load_rows(paths: tuple[Path, ...]) -> tuple[dict[Path, digits.Row], int]:
    """The digits of every picture by its file; prints a line for each that cannot be used, and counts those."""
    files, rows, refused = [], {}, 0
    for path in paths:
        try:
            files += images.find_images(path)
        except InputError as error:
            refused += complain(error)
    for file in files:
        try:
            rows[file] = images.load_row(file)
        except InputError as error:
            refused += complain(error)
    return rows, refused


def complain(error: InputError) -> int:
    """Prints a refusal, and counts it."""
    print(f"error: {error}", file=sys.stderr)
    return 1


def _record(answer: reading.Answer, classes: tuple[str, ...]) -> dict[str, Any]:
    """`probabilities` are those of the digit; of several, those of the least sure, and of all in `digits`."""
    rounded = [[round(float(share), 6) for share in shares] for shares in answer.probabilities]
    record = {
        "digit": int(answer.text) if answer.text.isdecimal() else answer.text,
        "probabilities": min(rounded, key=max),
        "remarks": answer.remarks,
    }
    return record if len(rounded) == 1 else record | {"text": answer.text, "digits": rounded}


def _drawn(image: np.ndarray) -> str:
    """Two characters for each pixel, from blanks for black to @@ for white."""
    shades = " .:-=+*#%@"
    return "\n".join("".join(2 * shades[value * len(shades) // 256] for value in row) for row in image[..., 0].tolist())
