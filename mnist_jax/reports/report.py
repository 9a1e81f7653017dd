"""What a person looks at after a run: `report.html`."""

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jax
import matplotlib as mpl
import numpy as np

from mnist_jax.data import Dataset, Split
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.optimizers import make_schedule
from mnist_jax.recipes.values import total_steps
from mnist_jax.reports import figures, render
from mnist_jax.reports.page import Section, picture, small_images
from mnist_jax.runs import directory
from mnist_jax.runs.files import write_text
from mnist_jax.runtime import run_once, sources
from mnist_jax.scoring import predict
from mnist_jax.statistics import calibration, confusion
from mnist_jax.steps import Trained
from mnist_jax.summary import Layer, layers_of
from mnist_jax.training import EpochMetrics

REPORT = "report.html"
WHILE_TRAINING = "Figures of training are those of the steps as they were taken, with distortions and dropout on."


def write_report(run_dir: Path, data: Dataset, command: str = "") -> Path:
    """Writes the report of a finished run.

    `data` is what the run was trained and scored on; `command`, if given, is shown as what made the run.

    Returns the page. Raises InputError as `directory.load_run`, and OSError if it cannot be written.
    """
    config, trained = directory.load_config(run_dir), directory.load_run(run_dir)
    summary = directory.read_record(run_dir / directory.SUMMARY, directory.Summary)
    steps = total_steps(config, data)
    schedule = make_schedule(config.schedule, config.learning_rate, config.warmup, steps)
    rates = np.asarray(run_once(jax.vmap(schedule), np.arange(steps)))
    finished = datetime.fromtimestamp((run_dir / directory.SUMMARY).stat().st_mtime).astimezone()
    images = f"{len(data.test.labels):,} {summary.scored_on} images of {data.name}"
    verdict = {False: "not met", True: "met"}
    lines = [
        f"Objective {verdict[summary.objective_met]}. Epochs: {summary.epoch}. Seed: {config.seed}.",
        f"{finished.isoformat(' ', 'minutes')}, mnist-jax {sources()}, {summary.seconds:.0f} s in all.",
        command,
    ]
    conditions = [(one["name"], one["value"], one["target"], verdict[one["met"]]) for one in summary.objective]
    with figures.style():
        sections = [
            Section(lines=lines, table=[("condition", "value", "asked for", "verdict"), *conditions]),
            _training(directory.load_epochs(run_dir), summary.scored_on, rates),
            _errors(trained, data.test),
            _network(trained),
            Section("Configuration", table=_pairs(dataclasses.asdict(config))),
            Section("Environment", table=_pairs(summary.environment)),
        ]
    title = f"{config.arch}, recipe {config.recipe}: {summary.test_accuracy:.2%} of {images}"
    page = render("report.html", title=title, sections=sections)
    write_text(run_dir / REPORT, page)
    return run_dir / REPORT


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [("name", "value"), *((name, str(value)) for name, value in values.items())]


def _training(history: Sequence[EpochMetrics], scored: str, rates: np.ndarray) -> Section:
    """The curves of a run."""
    series: dict[str, dict[str, np.ndarray]] = {}
    for kind in ("loss", "accuracy"):
        for split, name in (("train", "training"), ("test", scored)):
            values = [[getattr(metrics, f"{split}_{kind}") for metrics in history]]
            series.setdefault(kind, {})[name] = np.array(values)
    last = history[-1]
    losses = f"Loss, in the last epoch {last.train_loss:.4f} in training and {last.test_loss:.4f} on {scored} images."
    accuracies = f"Accuracy, in the last epoch {last.train_accuracy:.2%} and {last.test_accuracy:.2%}."
    pictures = [
        picture(figures.losses(series["loss"]), losses),
        picture(figures.accuracies(series["accuracy"], TARGET_ACCURACY), accuracies),
        picture(figures.learning_rates(rates), f"Learning rate of each step, at most {rates.max():g}."),
    ]
    return Section("Training", [WHILE_TRAINING], pictures=pictures)


def _errors(trained: Trained, scored: Split) -> Section:
    """What the final weights get wrong, the most confident first."""
    probabilities = np.asarray(run_once(jax.nn.softmax, predict(trained, scored.images)))
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != scored.labels)
    wrong = wrong[np.argsort(-confidence[wrong], kind="stable")]
    names = trained.classes
    rows = [(str(i), names[scored.labels[i]], names[guesses[i]], f"{confidence[i]:.1%}") for i in wrong]
    calibrated = calibration(probabilities, scored.labels)
    reliability = (
        "How often the network is right at each confidence. The expected calibration error, "
        f"{calibrated.error:.2%}, is the mean distance between confidence and accuracy."
    )
    line = (
        f"{len(wrong):,} images are wrong. In the table, rows are true classes and columns what the images were taken "
        "for. At most 200 images are shown, the most confident errors first."
    )
    return Section(
        "Errors",
        [line],
        confusion(scored.labels, guesses, len(names)).tolist(),
        names,
        [picture(figures.reliability(calibrated), reliability)],
        small_images(scored.images[wrong], [f"{true} not {guess}, {share}" for _, true, guess, share in rows]),
        [("image", "true", "predicted", "probability"), *rows] if rows else (),
    )


def _network(trained: Trained) -> Section:
    """The layers, and the kernels of the first convolution."""
    layers = layers_of(trained.model, trained.image_shape)
    params, work, fixed = (sum(getattr(layer, name) for layer in layers) for name in Layer._fields[3:6])
    table: list[tuple[str, ...]] = [("layer", "type", "output", "trained", "fixed", "receptive field", "multiply-adds")]
    for layer in (*layers, Layer("in all", "", (), params, work, fixed)):
        shape, field = ("x".join(map(str, sizes or ())) for sizes in (layer.shape, layer.receptive_field))
        counts = [f"{count:,}" if count else "" for count in (layer.params - layer.fixed, layer.fixed)]
        adds = f"{layer.multiply_adds:,}" if layer.multiply_adds else ""
        table.append((layer.name, layer.kind, shape, *counts, field, adds))
    weights = np.asarray(trained.variables["params"]["conv1"]["kernel"])
    kernels = weights.reshape(*weights.shape[:2], -1).transpose(2, 0, 1)
    colors = mpl.colormaps["RdBu_r"](0.5 + 0.5 * kernels / np.abs(kernels).max())[..., :3]
    captions = [f"kernel {i}" for i in range(1, len(kernels) + 1)]
    line = "The kernels of the first convolution: red is positive, blue negative."
    return Section("Network", [line], images=small_images(colors, captions), table=table)
