"""What a person looks at after a run: `report.html`, whole in itself, and the pictures it shows."""

import base64
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.reports import figures, render
from mnist_jax.runs import directory
from mnist_jax.scoring import predict
from mnist_jax.statistics import calibration, confusion
from mnist_jax.summary import layers_of

REPORT, PICTURES = "report.html", "figures"


def write_report(run_dir: Path, data: Dataset) -> Path:
    """Writes the report of a finished run, and its pictures, light and dark, in the directory `figures` beside it.

    `data` is what the run was trained and scored on.

    Returns the page. Raises InputError as `directory.load_run`, and StorageError if it cannot be written.
    """
    config, trained, scored = directory.load_config(run_dir), directory.load_run(run_dir), data.test
    history = directory.load_epochs(run_dir)
    summary = directory.read_record(run_dir / directory.SUMMARY, directory.Summary)
    probabilities = np.asarray(jax.jit(jax.nn.softmax)(predict(trained, scored.images)))
    wrong, calibrated = _mistakes(probabilities, scored.labels, data.classes), calibration(probabilities, scored.labels)
    counts = confusion(scored.labels, probabilities.argmax(1), len(trained.classes))
    pictures = _pictures(history, summary.scored_on, trained, scored, wrong, counts, calibrated)
    page = render(
        "report.html",
        config=dataclasses.asdict(config),
        history=history,
        summary=summary,
        layers=layers_of(trained.model, trained.image_shape),
        pictures=pictures,
        wrong=wrong,
        calibration=calibrated,
        scored_images=len(scored.labels),
        dataset=data.name,
    )
    with directory.storing(run_dir):
        (run_dir / PICTURES).mkdir(exist_ok=True)
        for name, picture in pictures.items():
            for theme in ("light", "dark"):
                (run_dir / PICTURES / f"{name}-{theme}.png").write_bytes(base64.b64decode(picture[theme]))
        (run_dir / REPORT).write_text(page, encoding="utf-8")
    return run_dir / REPORT


def picture(draw: Callable[[], figures.Figure], alt: str, themed: bool = True) -> dict[str, str]:
    """A figure for a page: `light` and `dark` as PNG in base 64, and `alt`, its text for who cannot see it.

    One that fills its paper from edge to edge looks the same in any theme, and is drawn once.
    """
    light = figures.png(draw, figures.LIGHT)
    dark = figures.png(draw, figures.DARK) if themed else light
    return {"alt": alt, "light": base64.b64encode(light).decode(), "dark": base64.b64encode(dark).decode()}


def _mistakes(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The images that are got wrong, the most confident first."""
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != labels)
    return [
        {"index": i, "true": classes[labels[i]], "guess": classes[guesses[i]], "confidence": float(confidence[i])}
        for i in map(int, wrong[np.argsort(-confidence[wrong], kind="stable")])
    ]


def _pictures(history, scored_on, trained, scored, wrong, counts, calibrated) -> dict[str, dict[str, str]]:
    """Every picture by name."""
    last, images = history[-1], scored.images[[item["index"] for item in wrong]]
    captions = [f"{item['true']} not {item['guess']} {item['confidence']:.0%}" for item in wrong]
    return {
        "loss": picture(
            partial(figures.losses, history, scored_on),
            f"Loss over {len(history)} epochs, in the last {last.train_loss:.4f}; {scored_on}: {last.test_loss:.4f}.",
        ),
        "accuracy": picture(
            partial(figures.accuracies, history, scored_on, TARGET_ACCURACY),
            f"Training accuracy, in the last epoch {last.train_accuracy:.2%}; {scored_on}: {last.test_accuracy:.2%}.",
        ),
        "confusion": picture(
            partial(figures.confusion, counts, trained.classes),
            f"Confusion matrix; {len(wrong)} errors off its diagonal.",
        ),
        "calibration": picture(
            partial(figures.reliability, calibrated),
            "Accuracy against confidence, beside the diagonal of a calibrated network.",
        ),
        "kernels": picture(
            partial(figures.kernels, np.asarray(trained.variables["params"]["conv1"]["kernel"])),
            "The kernels of the first convolution.",
            themed=False,
        ),
        "errors": picture(
            partial(figures.digits, images, captions),
            "The images that are got wrong; the table under them lists them.",
            themed=False,
        ),
    }
