import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import part, refused, smooth, without_seconds

from mnist_jax import DivergedError, evaluate, fit, fit_seeds, make_config, make_setup, scoring, start
from mnist_jax.recipes.values import network_of
from mnist_jax.training import stack

SEEDS = [1, 5]
CONFIG = make_config("reference", epochs=2, batch_size=50, average_decay=0.9, rotation=10.0)
MODEL = network_of(CONFIG).clone(layers=smooth())
MANY = {"seeds": SEEDS, "model": MODEL}


@pytest.fixture(scope="module")
def data(mnist):
    """Two steps an epoch."""
    return part(mnist, 100, 50)


def test_many_seeds_are_the_seeds_alone(data, monkeypatch):
    """To the bit on a CPU; in one program, as a GPU or TPU runs them, but for rounding. Each epoch is reported."""
    alone = [fit(dataclasses.replace(CONFIG, seed=seed), data, model=MODEL) for seed in SEEDS]
    for backend, tolerance in (("cpu", 0), ("gpu", 1e-5)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        seen = []
        states, histories = fit_seeds(CONFIG, data, **MANY, on_epoch=lambda *epoch, seen=seen: seen.append(epoch))
        assert [[metrics for i, metrics in seen if i == seed] for seed in (0, 1)] == histories
        for state, history, (one, expected) in zip(states, histories, alone, strict=True):
            chex.assert_trees_all_close(state, one, rtol=0, atol=tolerance)
            chex.assert_trees_all_close(*map(without_seconds, (history, expected)), rtol=0, atol=tolerance)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_the_seed_that_diverges_is_named(data, backend, monkeypatch):
    progress = [start(dataclasses.replace(CONFIG, seed=seed), data, model=MODEL) for seed in SEEDS]
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), progress[1].state.params)
    progress[1] = progress[1]._replace(state=progress[1].state._replace(params=params))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with pytest.raises(DivergedError, match=r"^seed 5: .* step 1 of 4"):
        fit_seeds(CONFIG, data, **MANY, progress=progress)


def test_scores_of_many_are_the_scores_of_each(data):
    setup = make_setup(CONFIG, data, model=MODEL)
    states = [start(dataclasses.replace(CONFIG, seed=seed), data, model=MODEL).state for seed in SEEDS]
    each = [{"params": state.params, **state.collections} for state in states]
    scores = scoring.score(setup.with_variables(stack(each)), data.train, 70, None, many=True)
    expected = stack([evaluate(setup.with_variables(variables), data.train) for variables in each])
    chex.assert_trees_all_close(scores, expected, rtol=1e-5)


@pytest.mark.parametrize("seeds", [[], 3, [1, -1], [1, "a"]])
def test_seeds_that_cannot_be_used_are_refused(data, seeds):
    refused("^seed", fit_seeds, CONFIG, data, seeds=seeds)
