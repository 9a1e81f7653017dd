"""Says which digit a picture shows."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

from mnist_jax.cli.program import load_trained
from mnist_jax.deploy import images
from mnist_jax.errors import InputError
from mnist_jax.scoring import predict


@dataclasses.dataclass(frozen=True)
class Options:
    """Says which digit each picture shows, and how probable it is.

    Takes PNG and JPEG files, or a folder of them: one digit each, dark on light or light on dark. A file that cannot be
    used is named on standard error, and the others are answered all the same.

    Exit status: 0 all answered, 2 bad input, or a file that could not be used.

    Example: mnist-jax predict seven.png digits/
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files and folders."""
    arch: str = "bn_dropout"
    """The network whose shipped weights to use."""
    run_dir: Path | None = None
    """In their place, the weights of a run."""
    json: bool = False
    """Print one JSON object per picture, with the probabilities of all classes."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> int:
    """Reads, predicts and prints; returns the exit status."""
    if not options.paths:
        raise InputError("no file is given; name pictures or a folder of them")
    trained = load_trained(options.run_dir, None if options.run_dir else options.arch)
    read, refused = {}, 0
    for path in options.paths:
        try:
            files = images.find_images(path)
        except InputError as error:
            refused += complain(error)
            continue
        for file in files:
            try:
                read[file] = images.load_image(file)
            except InputError as error:
                refused += complain(error)
    if read:
        logits = predict(trained, np.stack(list(read.values())))
        for file, probabilities in zip(read, np.asarray(jax.nn.softmax(logits)), strict=True):
            place = int(probabilities.argmax())
            answer = trained.classes[place]
            if options.json:
                digit = int(answer) if answer.isdecimal() else answer
                rounded = [round(float(p), 6) for p in probabilities]
                print(json.dumps({"file": str(file), "digit": digit, "probabilities": rounded}))
            else:
                print(f"{file}: {answer}  {probabilities[place]:.1%}")
    return 2 if refused else 0


def complain(error: InputError) -> int:
    """Prints a refusal, and counts it."""
    print(f"error: {error}", file=sys.stderr)
    return 1
