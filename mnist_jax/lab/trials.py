"""A trial: one config trained to the end and scored."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mnist_jax.data import Mnist
from mnist_jax.lab.records import Trial
from mnist_jax.models import layers_of
from mnist_jax.recipes import Config, make_model
from mnist_jax.runtime import environment
from mnist_jax.seeds import fit_seeds
from mnist_jax.training import evaluate, fit, predict


def run(config: Config, data: Mnist, stop: Callable[[], bool] = lambda: False) -> tuple[Trial, dict[str, Any]]:
    """Trains and scores one config; gives the trial and the final variables. Stops and raises as `fit`."""
    start = time.perf_counter()
    state, history = fit(config, data, stop=stop)
    seconds = time.perf_counter() - start
    return _trial(config, data, history, state.variables, seconds), jax.device_get(state.variables)


def run_seeds(
    config: Config, seeds: Sequence[int], data: Mnist, stop: Callable[[], bool] = lambda: False
) -> list[tuple[Trial, dict[str, Any]]]:
    """As `run` for each seed, with all seeds trained in one program by `fit_seeds`."""
    start = time.perf_counter()
    state, histories = fit_seeds(config, seeds, data, stop=stop)
    seconds = time.perf_counter() - start
    trials = []
    for i, (seed, history) in enumerate(zip(seeds, histories, strict=True)):
        variables = jax.tree.map(lambda leaf, i=i: leaf[i], state.variables)
        trial = _trial(dataclasses.replace(config, seed=seed), data, history, variables, seconds)
        trials.append((trial._replace(together=len(histories)), variables))
    return trials


def _trial(config, data, history, variables, seconds):
    model = make_model(config)
    train_loss, train_accuracy = evaluate(model, variables, data.train).mean()
    predictions = predict(model, variables, data.test.images).argmax(-1)
    layers = layers_of(model)
    return Trial(
        config=dataclasses.asdict(config),
        parameters=sum(layer.params for layer in layers),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        history=tuple(history),
        train_loss=train_loss,
        train_accuracy=train_accuracy,
        errors=tuple(np.flatnonzero(predictions != data.test.labels).tolist()),
        seconds=seconds,
        environment=environment(),
    )
