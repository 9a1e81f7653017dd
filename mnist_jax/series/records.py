"""Files of trials, one per line, each read as it was written."""

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.data import Dataset
from mnist_jax.errors import InputError
from mnist_jax.recipes.config import ARCH_RECIPES, PLACES, RECIPES, Config
from mnist_jax.runs import locks
from mnist_jax.runs.directory import VERSION, require_known, without_retired
from mnist_jax.training import EpochMetrics


class Trial(NamedTuple):
    """One config trained to the end; fields that a file lacks have their default.

    Attributes:
      config: the settings by name, as written; today's `Config` may have others. Those of `PLACES` are left out.
      multiply_adds: multiply-adds of the convolutions for one image.
      history: one entry per epoch; empty if the training diverged.
      train_loss: loss of the final weights on the training images, without distortion or dropout; `train_accuracy` too.
      errors: indices of the scored images that the final weights get wrong.
      seconds: seconds to train and score every epoch; for all seeds of the program, if there are several.
      together: number of seeds in the program, if there are several.
      diverged: the message, if the training diverged.
      attempt: settings of code that was not kept.
      dataset: name of the data; `sha256` is its hash. Early trials have neither, and were on MNIST.
      version: version of the format; 0 in trials that have none.
    """

    config: dict[str, Any]
    parameters: int | None = None
    multiply_adds: int | None = None
    history: tuple[EpochMetrics, ...] = ()
    train_loss: float = nan
    train_accuracy: float = nan
    errors: tuple[int, ...] = ()
    seconds: float = 0.0
    environment: dict[str, Any] | None = None
    together: int | None = None
    diverged: str | None = None
    attempt: dict[str, Any] | None = None
    dataset: str = "mnist"
    sha256: str | None = None
    version: int = VERSION


def last_epoch(trials: Iterable[Trial]) -> list[float]:
    """Test accuracy of each trial after its last epoch."""
    return [trial.history[-1].test_accuracy for trial in trials]


def best_epoch(trials: Iterable[Trial]) -> list[float]:
    """Test accuracy of each trial after its best epoch, which the test set chooses; the notebooks quote it."""
    return [max(epoch.test_accuracy for epoch in trial.history) for trial in trials]


def read_trials(path: Path) -> list[Trial]:
    """Reads the trials of a file, none if it does not exist; skips an incomplete last line.

    Another line that was cut off is skipped too, and so is a trial that an earlier line has; a warning names them.

    Raises OSError if the file cannot be read, InputError if a line is not a trial, or newer than this package.
    """
    trials: list[Trial] = []
    lines_of: dict[Any, int] = {}
    lines = _whole(path.read_bytes()).splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            _warn(path, number, "was cut off and is left out; remove it")
            continue
        try:
            trial = _trial(**require_known(path, {"version": 0, **record}))
            attempt = json.dumps(trial.attempt, sort_keys=True)
            key = settings(trial.config), attempt, trial.dataset, trial.sha256
        except TypeError as error:
            raise InputError(f"results {str(path)!r} cannot be read ({error}); repair or remove the line") from error
        if (first := lines_of.setdefault(key, number)) < number:
            _warn(path, number, f"has the trial of line {first} again and is left out; remove it")
        else:
            trials.append(trial)
    return trials


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Locks a file of results against other processes that write it.

    Raises BusyError if another process does, OSError if the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locks.hold(path.parent, f".{path.name}", f"results {str(path)!r}"):
        yield


def prepare_trials(path: Path) -> None:
    """Makes the file if it is missing, and cuts off an incomplete last line; raises OSError if not writable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        text = file.read()
        whole = _whole(text)
        if whole != text:
            file.truncate(min(len(text), len(whole)))
            file.write(whole[len(text) :])


def append_trials(path: Path, *trials: Trial) -> None:
    """Adds all trials or none to a file that `prepare_trials` made; raises OSError if it cannot be written."""
    text = "".join(json.dumps(_written(trial)) + "\n" for trial in trials)
    size = path.stat().st_size
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        error.filename = str(path)  # Writing does not name it.
        error.add_note("what was there is intact, and the same command goes on")
        raise


def settings(config: Mapping[str, Any], **changes: Any) -> frozenset[tuple[str, Any]]:
    """The settings of a trial, for comparison, without those of `PLACES`.

    Settings newer than the trial have its recipe's values. Settings that were removed count if they had an effect.
    """
    recipe, arch = config.get("recipe", "default"), config.get("arch", "bn_dropout")
    today = {field.name: field.default for field in dataclasses.fields(Config)}
    today |= RECIPES.get(recipe, {}) | ARCH_RECIPES.get((recipe, arch), {})
    return frozenset(placeless({**today, **without_retired(config), **changes}).items())


def placeless(config: Config | Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those of `PLACES`: a record names its data by name and hash."""
    named = dataclasses.asdict(config) if isinstance(config, Config) else config
    return {name: value for name, value in named.items() if name not in PLACES}


def is_of(trial: Trial, data: Dataset) -> bool:
    """Whether a trial is of this data, by name and hash; early trials have no hash."""
    return trial.dataset == data.name and trial.sha256 in (None, data.sha256)


def _warn(path: Path, number: int, what: str) -> None:
    warnings.warn(f"results {str(path)!r}: line {number} {what}", stacklevel=3)


def _whole(text: bytes) -> bytes:
    """The whole lines, without a last one that has no newline and is not JSON: its writer was killed."""
    last = text.rpartition(b"\n")[2]
    try:
        json.loads(last)
    except ValueError:
        return text.removesuffix(last)
    return text + b"\n"


def _trial(history: Any = (), errors: Any = (), **line: Any) -> Trial:
    return Trial(history=tuple(EpochMetrics(**epoch) for epoch in history), errors=tuple(errors), **line)


def _written(trial: Trial) -> dict[str, Any]:
    """The line of a trial; fields with their default are left out."""
    history, defaults = [metrics._asdict() for metrics in trial.history], trial._field_defaults
    fields = {name: value for name, value in trial._asdict().items() if value is not defaults.get(name)}
    return {"version": trial.version, **fields} | ({"history": history} if history else {})
