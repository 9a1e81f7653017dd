"""A trial: one config trained to the end and scored."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mnist_jax.data import Dataset
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.fits import fit, fit_seeds
from mnist_jax.recipes.values import make_setup
from mnist_jax.runtime import backend, environment
from mnist_jax.scoring import evaluate, predict
from mnist_jax.series.records import Trial, placeless
from mnist_jax.summary import layers_of


def run(
    config: Config, seeds: Sequence[int], data: Dataset, stop: Callable[[], bool] = lambda: False
) -> list[tuple[Trial, dict[str, Any]]]:
    """Trains and scores a config with each seed; returns trials and final variables. Stops and raises as `fit`."""
    start = time.perf_counter()
    if len(seeds) == 1:
        state, history = fit(dataclasses.replace(config, seed=seeds[0]), data, stop=stop)
        states, histories = [state], [history]
    else:
        states, histories = fit_seeds(config, data, seeds=seeds, stop=stop)
    together = len(seeds) if len(seeds) > 1 and backend() != "cpu" else None
    seconds = (time.perf_counter() - start) / (1 if together else len(seeds))
    setup = make_setup(config, data)
    layers = layers_of(setup.model, data.image_shape)
    trials = []
    for seed, history, state in zip(seeds, histories, states, strict=True):
        final = jax.device_get(state.variables)
        trained = setup.with_variables(final)
        train_loss, train_accuracy = evaluate(trained, data.train).mean()
        wrong = predict(trained, data.test.images).argmax(-1) != data.test.labels
        trial = Trial(
            config=placeless(config) | {"seed": seed},
            parameters=sum(layer.params for layer in layers),
            multiply_adds=sum(layer.multiply_adds for layer in layers),
            history=tuple(history),
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            errors=tuple(np.flatnonzero(wrong).tolist()),
            seconds=seconds,
            environment=environment(),
            together=together,
            dataset=data.name,
            sha256=data.sha256,
        )
        trials.append((trial, final))
    return trials
