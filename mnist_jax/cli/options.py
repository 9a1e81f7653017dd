"""The flags of every command, and their help texts."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from mnist_jax.recipes.config import Config

Settings: TypeAlias = Annotated[Config, arg(name="")]  # `flags` shows them in groups.
Paths: TypeAlias = Annotated[tuple[Path, ...], Positional, arg(metavar="PATH ...")]
Names: TypeAlias = Annotated[tuple[tuple[str, ...], ...], UseAppendAction, arg(metavar="STR ...")]


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many trainings run at once, and where."""

    jobs: int | None = None
    """Trainings at the same time; several need the extra cluster. If not given: as cores and memory allow."""
    scheduler: str | None = None
    """HOST:PORT of a Dask scheduler; its workers train, one network each. Needs the extra cluster."""


@dataclasses.dataclass(frozen=True)
class Devices:
    """What trains; the last three are for training in several processes."""

    devices: str | None = None
    """Number of devices that share each batch, or all. If not given: all GPUs or TPU cores, or one CPU."""
    coordinator: str | None = None
    """HOST:PORT of process 0. Not needed on a TPU pod, under Slurm or MPI."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """The number of this process, from 0. Process 0 prints and writes."""


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Trains a network, and says whether the objective is met.

    The objective: 99.4% test accuracy, fewer than 10,000 parameters, fewer than 15 epochs, no fully connected
    layer. Writes to a run directory config.json, metrics.jsonl (a line per epoch), checkpoints, summary.json and
    weights.safetensors; to look at, report.html.

    Ctrl-C or SIGTERM ends the training after the current step, saves it, and prints the command that continues it. A
    second one exits at once.

    Exit status: 0 done, 1 objective not met (with --require-objective), 2 bad input, 3 training diverged, 4 a file
    cannot be read or written, 5 another process lost, or writing there, 70 a bug, 130 interrupted, 143 terminated.

    Example: mnist-jax train --arch bn_dropout
    """

    config: Settings
    devices: OmitArgPrefixes[Devices] = dataclasses.field(default_factory=Devices)
    resume: Path | None = None
    """Continue the run in this directory, with its settings, from its newest intact checkpoint."""
    no_report: bool = False
    """Do not write report.html."""
    require_objective: bool = False
    """Exit with status 1 if the objective is not met."""


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Scores trained weights on test images, or on pictures by people.

    A run is scored on its own data, unless --dataset names other data with the same classes.

    With --pictures, scores pictures of single digits, PERSON/LABEL_*.png: names those that are misread, and says how
    many are right, by person and in all.

    Example: mnist-jax evaluate --arch bn_dropout
    """

    run_dir: Positional[Path | None] = None
    """Directory of a finished run."""
    arch: str | None = None
    """In place of a run: a network whose shipped weights to score. With --pictures, if not given: accurate-held-out."""
    pictures: Path | None = None
    """Score the pictures in this folder instead of test images."""
    json: bool = False
    """Print one JSON object instead of a sentence."""
    dataset: str | None = None
    """Other data than the run's: mnist, another name of TensorFlow Datasets, or a path to a folder or an .npz file."""
    data_dir: Path | None = None
    """Data directory of TensorFlow Datasets. If not given: as the run."""


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Says which digit each picture shows, and how probable it is.

    Takes PNG, JPEG, WebP, GIF, TIFF and BMP files, or a folder of them: a digit, or several side by side, dark on light
    or light on dark. A file that cannot be used is named on standard error, and the others are answered all the same;
    the exit status is then 2.

    Example: mnist-jax predict seven.png digits/
    """

    paths: Paths
    """Files and folders."""
    arch: str | None = None
    """A network whose shipped weights to use. If not given: accurate-held-out."""
    run_dir: Path | None = None
    """Use the weights of this run instead; it never remarks "may not be a digit"."""
    show: bool = False
    """Print the 28x28 pixels that the network sees."""
    json: bool = False
    """Print one JSON object per picture, with the probabilities of all classes."""


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Writes a trained network as a page to draw on, StableHLO or ONNX.

    web: one HTML file to draw a digit on, with the weights inside, which needs neither the internet nor a server;
    several networks answer side by side. stablehlo: a program for CPU, CUDA and TPU from images uint8 [batch, height,
    width, channels] to logits, for jax.export.deserialize; needs the extra export. onnx: the same for ONNX Runtime and
    other readers of ONNX; needs the extra onnx.

    Example: mnist-jax export --format web --arch bn_dropout --out digit.html
    """

    out: Path
    """File to write."""
    run_dir: Positional[Path | None] = None
    """Directory of a finished run."""
    arch: Names = ()
    """In place of a run: shipped weights to export; for web, one or several. If not given: accurate-held-out."""
    format: Literal["web", "stablehlo", "onnx"] = "web"
    """What to write."""


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """Says whether networks differ, or puts finished runs side by side.

    Files, as reproduce and search write them: the difference of the means with its 95% interval, what of its
    uncertainty is seeds and what is test images, the images that differ, and how many seeds tell a difference. Each
    setting in a file is one series. Several are compared with the best, corrected by Holm's method. The page has the
    seeds as dots and a forest plot.

    Run directories: accuracies and parameters, the curves, runs that differ in their seed alone as one with a band, and
    the images that all of them get wrong.

    Example: mnist-jax compare results/series/default-accurate.jsonl results/series/default-bn_dropout.jsonl
    """

    runs: Paths
    """Files of trials, or directories of finished runs."""
    out: Path = Path("compare.html")
    """Page to write."""
    images: Literal["fixed", "sampled"] = "fixed"
    """Of files: what the claim is about, the scored images (fixed) or all that they were drawn from (sampled)."""
    paired: bool = False
    """Of files: pair the trials with the same seed."""
    dataset: str | None = None
    """Other data than the run's: mnist, another name of TensorFlow Datasets, or a path to a folder or an .npz file."""
    data_dir: Path | None = None
    """Data directory of TensorFlow Datasets. If not given: as the run."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Tries combinations of settings on held-out training images.

    Trains on the first 50,000 training images and scores the last 10,000; the test images are never looked at. Each
    finished trial is appended to the log at once; trials in the log are not run again. Prints the combinations, the
    best first, each with its difference from the best and what cannot be told from it.

    Networks may be written as layouts: --vary arch=16-pool-s24p-pool-32,16-s24-pool-32 tries two.

    Example: mnist-jax search --arch gap --vary learning_rate=0.01,0.02 weight_decay=0,0.01 --seeds 2
    """

    UNUSED = ("run_dir", "seed")

    config: Settings
    workers: OmitArgPrefixes[Workers] = dataclasses.field(default_factory=Workers)
    vary: Names = ()
    """Settings with the values to try, as learning_rate=0.01,0.02. Every combination is tried."""
    seeds: int = 1
    """Number of seeds per combination, from 1001 on; the final runs use other seeds."""
    log: Path | None = None
    """File to append to. If not given: results/search/ARCH.jsonl, or layouts.jsonl there for layouts."""


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Trains a recipe over many seeds, and summarizes them.

    Each finished seed is appended to the results file at once, and seeds in the file are not trained again: the same
    command continues an interrupted series, also on other cores or machines.

    Example: mnist-jax reproduce --recipe reference --arch gap --seeds 5
    """

    UNUSED = ("run_dir",)

    config: Settings
    workers: OmitArgPrefixes[Workers] = dataclasses.field(default_factory=Workers)
    seeds: int = 5
    """Number of seeds, from --seed on."""
    out: Path | None = None
    """File to append to. If not given: results/series/RECIPE-ARCH.jsonl, or
    DATA-RECIPE-ARCH.jsonl there for other data. The file has the network, so `=` in a layout is written `r`."""
    together: int | None = None
    """Number of seeds that one program trains. If not given: one on a CPU, all on a GPU or TPU."""
    weights_dir: Path | None = None
    """Directory for each seed's final weights, RECIPE-ARCH-SEED.safetensors."""


COMMANDS: dict[str, type] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictOptions,
    "export": ExportOptions,
    "compare": CompareOptions,
    "search": SearchOptions,
    "reproduce": ReproduceOptions,
}
