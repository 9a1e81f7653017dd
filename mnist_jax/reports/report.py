"""What a person looks at after a run: `report.html`, whole in itself, and the pictures it shows."""

import base64
import dataclasses
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.optimizers import make_schedule
from mnist_jax.recipes.values import total_steps
from mnist_jax.reports import figures, render, themes
from mnist_jax.runs import directory
from mnist_jax.runtime import run_once
from mnist_jax.scoring import predict
from mnist_jax.statistics import calibration, confusion
from mnist_jax.summary import layers_of

REPORT, PICTURES = "report.html", "figures"


def write_report(run_dir: Path, data: Dataset, command: str = "") -> Path:
    """Writes the report of a finished run, and its pictures, light and dark, in the directory `figures` beside it.

    `data` is what the run was trained and scored on; `command`, if given, is shown as what made the run.

    Returns the page. Raises InputError as `directory.load_run`, and OSError if it cannot be written.
    """
    config, trained, scored = directory.load_config(run_dir), directory.load_run(run_dir), data.test
    history = directory.load_epochs(run_dir)
    summary = directory.read_record(run_dir / directory.SUMMARY, directory.Summary)
    steps = total_steps(config, data)
    schedule = make_schedule(config.schedule, config.learning_rate, config.warmup, steps)
    with ThreadPoolExecutor(1) as background:  # Compiling leaves the interpreter free to draw.
        scoring = background.submit(predict, trained, scored.images)
        rates = np.asarray(run_once(jax.vmap(schedule), np.arange(steps)))
        pictures = _pictures_of_training(history, summary.scored_on, trained, rates)
        logits = scoring.result()
    probabilities = np.asarray(run_once(jax.nn.softmax, logits))
    wrong, calibrated = _mistakes(probabilities, scored.labels, data.classes), calibration(probabilities, scored.labels)
    counts = confusion(scored.labels, probabilities.argmax(1), len(trained.classes))
    pictures |= _pictures_of_scores(trained, scored, wrong, counts, calibrated)
    finished = datetime.fromtimestamp((run_dir / directory.SUMMARY).stat().st_mtime).astimezone()
    made = {"date": finished.isoformat(" ", "minutes"), "commit": commit(), "command": command}
    page = render(
        "report.html",
        config=dataclasses.asdict(config),
        history=history,
        summary=summary,
        layers=layers_of(trained.model, trained.image_shape),
        pictures=pictures,
        made=made,
        wrong=wrong,
        calibration=calibrated,
        scored_images=len(scored.labels),
        dataset=data.name,
    )
    with directory.storing(run_dir):
        (run_dir / PICTURES).mkdir(exist_ok=True)
        for name, drawn in pictures.items():
            for theme in ("light", "dark"):
                (run_dir / PICTURES / f"{name}-{theme}.png").write_bytes(base64.b64decode(drawn[theme]))
        (run_dir / REPORT).write_text(page, encoding="utf-8")
    return run_dir / REPORT


def commit() -> str | None:
    """The commit of the package, and whether it was changed since; None outside a git checkout."""
    folder = Path(__file__).parents[1]
    said = []
    for command in (("log", "-1", "--format=%h", "--", "."), ("status", "--porcelain", "--", ".")):
        try:
            run = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        said.append(run.stdout.strip())
    return said[0] + (" and changes" if said[1] else "") if said[0] else None


def picture(
    draw: Callable[[], figures.Figure], alt: str, dark: Literal["darkened", "drawn", "same"] = "darkened"
) -> dict[str, str]:
    """A figure for a page: `light` and `dark` as PNG in base 64, and `alt`, its text for who cannot see it.

    For a dark page it is darkened; or drawn again, if it shows photographs; or the same, if it fills its paper.
    """
    if dark == "darkened":
        both = themes.light_and_dark(draw)
    else:
        light = themes.png(draw, themes.LIGHT)
        both = light, themes.png(draw, themes.DARK) if dark == "drawn" else light
    light, other = (base64.b64encode(each).decode() for each in both)
    return {"alt": alt, "light": light, "dark": other}


def picture_of_digits(images: np.ndarray, captions: Sequence[str], alt: str) -> dict[str, str]:
    """Images [N, H, W, C] with a caption under each, for a page."""
    draw = partial(figures.digits, images, captions)
    return picture(draw, alt, "drawn" if images.shape[-1] == 3 else "darkened")


def _mistakes(probabilities: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """The images that are got wrong, the most confident first."""
    guesses, confidence = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(guesses != labels)
    return [
        {
            "index": i,
            "true": classes[labels[i]],
            "guess": classes[guesses[i]],
            "confidence": float(confidence[i]),
        }
        for i in map(int, wrong[np.argsort(-confidence[wrong], kind="stable")])
    ]


def _pictures_of_training(history, scored_on, trained, rates) -> dict[str, dict[str, str]]:
    """The pictures that need no scores, by name."""
    last = history[-1]
    return {
        "loss": picture(
            partial(figures.losses, history, scored_on),
            f"Loss over {len(history)} epochs, in the last {last.train_loss:.4f}; {scored_on}: {last.test_loss:.4f}.",
        ),
        "accuracy": picture(
            partial(figures.accuracies, history, scored_on, TARGET_ACCURACY),
            f"Training accuracy, in the last epoch {last.train_accuracy:.2%}; {scored_on}: {last.test_accuracy:.2%}.",
        ),
        "learning-rate": picture(
            partial(figures.learning_rates, rates),
            f"Learning rate over {len(rates):,} steps, at most {rates.max():g}, in the last {rates[-1]:.2g}.",
        ),
        "kernels": picture(
            partial(figures.kernels, np.asarray(trained.variables["params"]["conv1"]["kernel"])),
            "The kernels of the first convolution.",
            "same",
        ),
    }


def _pictures_of_scores(trained, scored, wrong, counts, calibrated) -> dict[str, dict[str, str]]:
    """The pictures of what the final weights make of the scored images, by name."""
    images = scored.images[[item["index"] for item in wrong]]
    captions = [f"{item['true']} not {item['guess']} {item['confidence']:.0%}" for item in wrong]
    return {
        "confusion": picture(
            partial(figures.confusion, counts, trained.classes),
            f"Confusion matrix; {len(wrong)} errors off its diagonal.",
        ),
        "calibration": picture(
            partial(figures.reliability, calibrated),
            "Accuracy against confidence, beside the diagonal of a calibrated network.",
        ),
        "errors": picture_of_digits(
            images, captions, "The images that are got wrong; the table under them lists them."
        ),
    }
