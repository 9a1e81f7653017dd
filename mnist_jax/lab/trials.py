"""A trial: one config trained to the end, kept as one line of a JSON-lines file in `results/`."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.data import Mnist
from mnist_jax.errors import InputError
from mnist_jax.models import layers_of
from mnist_jax.recipes import Config, make_config, make_model
from mnist_jax.runtime import environment
from mnist_jax.seeds import fit_seeds
from mnist_jax.training import evaluate, fit, predict


def run(config: Config, data: Mnist, stop: Callable[[], bool] = lambda: False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trains and scores one config; stops and raises as `fit`.

    Returns:
      The trial and the final variables. The trial has `config`; `parameters`; `multiply_adds` of the convolutions for
      one image; `history`, one entry per epoch; `train_loss` and `train_accuracy` of the final weights on the training
      images as they are, without distortion or dropout; `errors`, the indices of the scored images that the final
      weights get wrong; `seconds` of training with a score after every epoch; `environment`.
    """
    start = time.perf_counter()
    state, history = fit(config, data, stop=stop)
    seconds = time.perf_counter() - start
    return _trial(config, data, history, state.variables, seconds), jax.device_get(state.variables)


def run_seeds(
    config: Config, seeds: Sequence[int], data: Mnist, stop: Callable[[], bool] = lambda: False
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What `run` gives for each seed, trained all at once by `fit_seeds`, which may raise its errors.

    `seconds` are those of all of them, and `together` says how many they were.
    """
    start = time.perf_counter()
    state, histories = fit_seeds(config, seeds, data, stop=stop)
    seconds = time.perf_counter() - start
    trials = []
    for i, (seed, history) in enumerate(zip(seeds, histories, strict=True)):
        variables = jax.tree.map(lambda leaf, i=i: leaf[i], state.variables)
        trial = _trial(dataclasses.replace(config, seed=seed), data, history, variables, seconds)
        trials.append((trial | {"together": len(histories)}, variables))
    return trials


def _trial(config, data, history, variables, seconds):
    model = make_model(config)
    train_loss, train_accuracy = evaluate(model, variables, data.train).mean()
    predictions = predict(model, variables, data.test.images).argmax(-1)
    layers = layers_of(model)
    return {
        "config": dataclasses.asdict(config),
        "parameters": sum(layer.params for layer in layers),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
        "history": [metrics._asdict() for metrics in history],
        "train_loss": train_loss,
        "train_accuracy": train_accuracy,
        "errors": np.flatnonzero(predictions != data.test.labels).tolist(),
        "seconds": seconds,
        "environment": environment(),
    }


def append(path: Path, *finished: dict[str, Any]) -> None:
    """Adds finished trials to a file, if any; raises InputError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(trial) + "\n" for trial in finished)
    except OSError as error:
        raise InputError(f"results {str(path)!r} cannot be written ({error.strerror}); name another file") from error


def read(path: Path) -> list[dict[str, Any]]:
    """The finished trials of a file, none where there is none; raises InputError for a line that is not JSON."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InputError(f"results {str(path)!r} cannot be read ({error}); mend or remove the line") from error


def config_of(trial: dict[str, Any]) -> Config:
    """The config a trial was run with; a setting that is newer than the trial has the value of its recipe."""
    return make_config(**trial["config"])
