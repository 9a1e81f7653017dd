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
from mnist_jax.runtime import environment
from mnist_jax.scoring import evaluate, predict
from mnist_jax.series.records import Trial, placeless
from mnist_jax.summary import layers_of


def run(
    config: Config, seeds: Sequence[int], data: Dataset, stop: Callable[[], bool] = lambda: False
) -> list[tuple[Trial, dict[str, Any]]]:
    """Trains and scores a config with each seed; returns trials and final variables. Stops and raises as `fit`.

    `fit_seeds` trains several seeds in one program.
    """
    start = time.perf_counter()
    if len(seeds) == 1:
        state, history = fit(dataclasses.replace(config, seed=seeds[0]), data, stop=stop)
        histories, variables, together = [history], [jax.device_get(state.variables)], None
    else:
        state, histories = fit_seeds(config, data, seeds=seeds, stop=stop)
        together = len(seeds)
        variables = [jax.tree.map(lambda leaf, i=i: leaf[i], state.variables) for i in range(together)]
    seconds = time.perf_counter() - start
    setup = make_setup(config, data)
    layers = layers_of(setup.model, data.image_shape)
    trials = []
    for seed, history, final in zip(seeds, histories, variables, strict=True):
        trial = Trial(
            config=placeless(config) | {"seed": seed},
            parameters=sum(layer.params for layer in layers),
            multiply_adds=sum(layer.multiply_adds for layer in layers),
            history=tuple(history),
            seconds=seconds,
            environment=environment(),
            together=together,
            dataset=data.name,
            sha256=data.sha256,
            **_scores(setup.with_variables(final), data),
        )
        trials.append((trial, final))
    return trials


def _scores(trained, data):
    loss, accuracy = evaluate(trained, data.train).mean()
    wrong = predict(trained, data.test.images).argmax(-1) != data.test.labels
    return {"train_loss": loss, "train_accuracy": accuracy, "errors": tuple(np.flatnonzero(wrong).tolist())}
