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


def test_many_seeds_one_after_the_other_are_the_seeds_alone(data):
    """The same shuffles, distortions and dropout, and so the same bits. Each epoch is reported."""
    seen = {0: [], 1: []}
    states, histories = fit_seeds(CONFIG, data, **MANY, on_epoch=lambda i, metrics: seen[i].append(metrics))
    assert list(seen.values()) == histories
    for i, seed in enumerate(SEEDS):
        state, history = fit(dataclasses.replace(CONFIG, seed=seed), data, model=MODEL)
        chex.assert_trees_all_equal(states[i], state)
        assert without_seconds(histories[i]) == without_seconds(history)


def test_many_seeds_in_one_program_are_the_seeds_one_after_the_other(optimizing, data, monkeypatch):
    """What a GPU or TPU runs: in float32, sums of 50 x 26 x 26 values, none of which is far above one."""
    expected, seen = fit_seeds(CONFIG, data, **MANY), {0: [], 1: []}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    states, histories = fit_seeds(CONFIG, data, **MANY, on_epoch=lambda i, metrics: seen[i].append(metrics))
    assert list(seen.values()) == histories
    chex.assert_trees_all_close(states, expected[0], atol=1e-5)
    for i in range(len(SEEDS)):
        for entry, one in zip(*map(without_seconds, (histories[i], expected[1][i])), strict=True):
            assert entry == pytest.approx(one, abs=1e-5)


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
    refused("2 trainings", setup.trained, stack(states))


@pytest.mark.parametrize("seeds", [[], 3, [1, -1], [1, "a"]])
def test_seeds_that_cannot_be_used_are_refused(data, seeds):
    refused("^seed", fit_seeds, CONFIG, data, seeds=seeds)
