"""Says which digit a picture shows."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.cli.options import PredictOptions
from mnist_jax.cli.program import load_trained
from mnist_jax.deploy import digits, images, reading
from mnist_jax.errors import InputError
from mnist_jax.runs.weights import READER


def main(options: PredictOptions) -> int:
    """Reads, predicts and prints; returns the exit status."""
    if not options.paths:
        raise InputError("no file is given; name pictures or a folder of them")
    arch = options.arch or (None if options.run_dir else READER)
    trained = load_trained(options.run_dir, arch)
    doubt = reading.load_doubts().get(arch) if arch else None
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
        except (InputError, OSError) as error:
            refused += complain(error)
    for file in files:
        try:
            rows[file] = images.load_row(file)
        except (InputError, OSError) as error:
            refused += complain(error)
    return rows, refused


def complain(error: InputError | OSError) -> int:
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
    drawn = [[2 * shades[value * len(shades) // 256] for value in row] for row in image[..., 0].tolist()]
    return "\n".join(map("".join, drawn))
