"""Scores trained weights on test images, or on pictures by people."""

import json
import sys
from pathlib import Path

from mnist_jax.cli.options import EvaluateOptions
from mnist_jax.cli.predict import load_rows
from mnist_jax.cli.program import load_trained
from mnist_jax.data import load_dataset
from mnist_jax.deploy import people, reading
from mnist_jax.errors import InputError
from mnist_jax.runs import directory
from mnist_jax.runs.files import write_text
from mnist_jax.runs.weights import READER
from mnist_jax.scoring import evaluate
from mnist_jax.steps import Trained


def main(options: EvaluateOptions) -> None:
    """Loads, scores and prints."""
    if options.page and not options.pictures:
        raise InputError(f"page {str(options.page)!r} is of the errors of --pictures; name a folder of those too")
    if options.pictures:
        score_pictures(options, options.pictures)
        return
    trained = load_trained(options.run_dir, options.arch)
    if options.run_dir:
        data, remark = directory.load_run_data(options.run_dir, trained, options.dataset, options.data_dir)
        if remark:
            print(f"note: {remark}", file=sys.stderr)
    else:
        data = load_dataset(options.dataset or "mnist", data_dir=options.data_dir)
        directory.require_classes(trained, data)
    metrics = evaluate(trained, data.test)
    loss, accuracy = metrics.mean()
    arch, count = trained.model.arch, int(metrics.count)
    if options.json:
        result = {"arch": arch, "dataset": data.name, "test_loss": loss, "test_accuracy": accuracy, "images": count}
        print(json.dumps(result))
    else:
        print(f"{arch}: test accuracy {accuracy:.2%}, loss {loss:.4f} on {count:,} images of {data.name}")


def score_pictures(options: EvaluateOptions, folder: Path) -> None:
    """Reads every picture, scores the answers, prints and writes the page."""
    name = options.arch or ("" if options.run_dir else READER)
    trained: Trained = load_trained(options.run_dir, name or None)
    pictures = people.find_pictures(folder, trained.classes)
    rows, _ = load_rows(picture.file for picture in pictures)
    answered = reading.read(trained, list(rows.values())) if rows else []
    by_file = dict(zip(rows, answered, strict=True))
    answers = [by_file.get(picture.file) for picture in pictures]
    score = people.score(pictures, answers)
    if options.json:
        print(json.dumps({"weights": name or str(options.run_dir)} | score.as_dict()))
    else:
        for person, (count, right) in score.people.items():
            print(f"{person}: {right} of {count}")
        low, high = score.interval
        print(f"all {score.pictures} by {len(score.people)} people: {score.accuracy:.2%} (95% {low:.2%} to {high:.2%})")
        confusions = ", ".join(f"{label} as {answer} {count}x" for label, answer, count in score.confusions)
        print(f"taken: {confusions}" if confusions else "no confusions")
        print(f"sure (90%) and wrong: {score.sure_and_wrong}; calibration error {score.calibration_error:.2%}")
    if options.page:
        write_text(options.page, people.page(name or str(options.run_dir), pictures, answers, rows, score))
