"""A run on disk: its settings, its results, and a lock for its one writer.

RUN_DIR/config.json          every setting
RUN_DIR/dataset.json         name and hash of the data
RUN_DIR/metrics.jsonl        one line per finished epoch
RUN_DIR/checkpoints/         see `checkpoints.py`
RUN_DIR/summary.json         the result, the objective's verdict, the environment
RUN_DIR/weights.safetensors  parameters and batch statistics after the last epoch
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from mnist_jax.data import Dataset, load_dataset
from mnist_jax.errors import InputError, require_path
from mnist_jax.recipes.config import Config, make_config
from mnist_jax.runs import locks
from mnist_jax.runs.files import TEMPORARY, write_text
from mnist_jax.runs.weights import load_weights
from mnist_jax.steps import Trained
from mnist_jax.training import EpochMetrics

CONFIG, DATASET, METRICS, SUMMARY = "config.json", "dataset.json", "metrics.jsonl", "summary.json"
WEIGHTS = "weights.safetensors"

VERSION = 1  # Of summaries, and of the results in `series/records.py`.
T = TypeVar("T", bound=Any)


class Summary(NamedTuple):
    """The result of a run: `summary.json`."""

    epoch: int  # Number of epochs; the next four are the metrics of the last one.
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    scored_on: str  # "test" or "held-out".
    objective: list[dict[str, Any]]  # The exercise's conditions: name, value, target and whether it is met.
    objective_met: bool
    environment: dict[str, Any]
    seconds: float  # Of the whole process; the next has its parts.
    seconds_of: Mapping[str, float] = MappingProxyType({})
    version: int = VERSION  # 0 in summaries that have none.


class DatasetRecord(NamedTuple):
    """Name and hash of a run's data: `dataset.json`. Early runs have none, and were trained on MNIST."""

    name: str = "mnist"
    sha256: str | None = None
    version: int = VERSION


def read_record(path: Path, kind: type[T]) -> T:
    """Reads a named tuple from a JSON file; fields that the file lacks have their default.

    Raises InputError if it cannot be read, or its version is newer than this package.
    """
    try:
        record = require_known(path, {"version": 0, **json.loads(path.read_text(encoding="utf-8"))})
        return kind(**{name: record[name] for name in kind._fields if name in record})
    except (OSError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); repair or remove it") from error


def require_known(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Raises InputError if the version of a record is newer than this package."""
    if record["version"] > VERSION:
        raise InputError(f"{str(path)!r} has format {record['version']}, newer than {VERSION}; update mnist_jax")
    return record


def create_run(run_dir: Path, config: Config) -> None:
    """Makes a run directory with its config; raises InputError if it holds a run, OSError if it cannot be written."""
    if (run_dir / CONFIG).exists():
        raise InputError(f"run dir {str(run_dir)!r} already holds a run; resume it, or name another")
    run_dir.mkdir(parents=True, exist_ok=True)
    save_json(run_dir, CONFIG, dataclasses.asdict(config))


def load_config(run_dir: Path) -> Config:
    """Reads the config of a run; raises InputError if `run_dir` holds no run, or its config cannot be used."""
    path = require_path(run_dir, "run dir") / CONFIG
    try:
        return config_of(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{str(run_dir)!r} holds no run ({path.name}: {error.strerror}); name a run dir") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"config {str(path)!r} cannot be used ({error}); repair it") from error


def config_of(settings: dict[str, Any]) -> Config:
    """Reads the config of a run of any version; raises InputError if it uses a setting that was removed."""
    return make_config(**without_retired(dict(settings)))


def without_retired(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as written, without those that were removed and had no effect."""
    retired = () if settings.get("low_resolution_epochs") else ("low_resolution", "low_resolution_epochs")
    return {name: value for name, value in settings.items() if name not in retired}


def require_same_data(run_dir: Path, data: Dataset, remedy: str = "give the run its own data") -> None:
    """Raises InputError, with a remedy, if a run was begun with other data. Runs without a record were on MNIST."""
    name, digest, _ = _dataset_record(run_dir)
    if (data.sha256 != digest) if digest else (data.name != name):
        raise InputError(
            f"data set {data.name!r} (SHA-256 {data.sha256[:12]}) is not that of the run in {str(run_dir)!r}, {name!r} "
            f"({digest[:12] if digest else 'as shipped'}); {remedy}"
        )


def load_run_data(
    run_dir: Path,
    trained: Trained,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    source: str | None = None,
) -> tuple[Dataset, str | None]:
    """Loads the run's whole data set, or the named one and a line that says so.

    Raises InputError if the data cannot be loaded, has the run's name but another hash, or has other classes.
    """
    config = load_config(run_dir)
    if dataset is None:
        data = load_dataset(config.dataset, data_dir=data_dir or config.data_dir, source=source or config.data_source)
    else:
        data = load_dataset(dataset, data_dir=data_dir, source=source or "bundled")
    name = _dataset_record(run_dir).name
    if dataset is None or data.name == name:
        require_same_data(run_dir, data)
        return data, None
    require_classes(trained, data)
    return data, f"the run in {run_dir} was trained on {name}; it is scored on {data.name}"


def require_classes(trained: Trained, data: Dataset) -> None:
    """Raises InputError if data has other classes or another image shape than a network was trained on."""
    here, there = (f"{one.image_shape} of classes {', '.join(one.classes)}" for one in (data, trained))
    if here != there:
        what = f"data set {data.name!r} has images {here}, but the network was trained on {there}"
        raise InputError(f"{what}; name other data")


def _dataset_record(run_dir: Path) -> DatasetRecord:
    path = run_dir / DATASET
    return read_record(path, DatasetRecord) if path.exists() else DatasetRecord()


@contextlib.contextmanager
def lock(run_dir: Path, new: bool = False) -> Iterator[None]:
    """Locks a run against other writers, a new one in a directory that it makes.

    Raises BusyError if another process holds the lock, InputError if no directory can have this name, OSError if it
    cannot be written.
    """
    if new:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except ValueError as error:
            raise InputError(f"run dir {str(run_dir)!r} cannot be used ({error}); name another") from error
    with locks.hold(run_dir, "", f"run dir {str(run_dir)!r}"):
        for left in run_dir.rglob(TEMPORARY):
            left.unlink()
        yield


def save_json(run_dir: Path, name: str, content: Any) -> None:
    """Writes `CONFIG`, `DATASET` or `SUMMARY` of a run; raises OSError if it cannot be written."""
    write_text(run_dir / name, json.dumps(content, indent=2) + "\n")


def save_epochs(run_dir: Path, history: Sequence[EpochMetrics]) -> None:
    """Writes the lines of all finished epochs. Readers always find whole lines, each epoch once.

    Raises OSError if they cannot be written.
    """
    write_text(run_dir / METRICS, "".join(json.dumps(metrics._asdict()) + "\n" for metrics in history))


def load_epochs(run_dir: Path) -> list[EpochMetrics]:
    """Reads the finished epochs of a run; raises InputError if there are none, or a line cannot be read."""
    path = run_dir / METRICS
    try:
        history = [EpochMetrics(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        if not history:
            raise ValueError("it has no epoch")
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); resume the run, which writes it again") from error
    return history


def load_run(run_dir: str | Path) -> Trained:
    """Loads the trained network of a finished run.

    Args:
      run_dir: the run's directory.

    Returns:
      The network, a `Trained`.

    Raises:
      InputError: the directory holds no finished run, or its weights are damaged.

    Example:
      >>> mj.load_run("runs/swift")
      Trained(swift, 9,910 parameters, images 28x28x1, 10 classes)
    """
    run_dir = require_path(run_dir, "run dir")
    load_config(run_dir)
    return load_weights(run_dir / WEIGHTS)
