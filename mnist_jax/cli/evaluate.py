"""Scores trained weights on test images, or on pictures by people."""

import json
import sys
from pathlib import Path

from mnist_jax.cli.options import EvaluateOptions
from mnist_jax.cli.predict import load_rows
from mnist_jax.cli.program import load_trained
from mnist_jax.data import load_dataset
from mnist_jax.deploy import images, reading
from mnist_jax.runs import directory
from mnist_jax.runs.weights import READER
from mnist_jax.scoring import evaluate
from mnist_jax.steps import Trained


def main(options: EvaluateOptions) -> None:
    """Loads, scores and prints."""
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
    """Reads every picture; prints those that are misread, and how many are right, by person and in all."""
    name = options.arch or ("" if options.run_dir else READER)
    trained: Trained = load_trained(options.run_dir, name or None)
    pictures = images.find_pictures(folder, trained.classes)
    rows, _ = load_rows(tuple(picture.file for picture in pictures))
    read = reading.read(trained, list(rows.values())) if rows else []
    answers = dict(zip(rows, read, strict=True))
    counts = {picture.person: [0, 0] for picture in pictures}
    for file, person, label in pictures:
        answer = answers.get(file)
        counts[person][0] += 1
        counts[person][1] += bool(answer and answer.text == label)
        if answer and answer.text != label and not options.json:
            print("; ".join([f"{file}: {answer.text}  {answer.confidence:.1%}", *answer.remarks]))
    right = sum(count for _, count in counts.values())
    if options.json:
        result = {"weights": name or str(options.run_dir), "pictures": len(pictures), "right": right, "people": counts}
        print(json.dumps(result))
        return
    for person, (count, correct) in counts.items():
        print(f"{person}: {correct} of {count}")
    print(f"all {len(pictures)} by {len(counts)} people: {right / len(pictures):.2%}")
