import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import part, refused, smooth, stopped, without_seconds

from mnist_jax import DivergedError, evaluate, fit, fit_seeds, make_config, make_setup
from mnist_jax.recipes.values import network_of

SEEDS = [1, 5]
CONFIG = make_config("reference", epochs=2, batch_size=50, average_decay=0.9, rotation=10.0)
MODEL = network_of(CONFIG).clone(layers=smooth())
MANY = {"seeds": SEEDS, "model": MODEL}


@pytest.fixture(scope="module")
def data(mnist):
    """Two steps an epoch."""
    return part(mnist, 100, 50)


@pytest.fixture(scope="module")
def together(data):
    """The final states and the histories of two seeds at once, each epoch of which is reported."""
    seen = []
    states, histories = fit_seeds(CONFIG, data, **MANY, on_epoch=lambda p: seen.append(p.history[-1]))
    assert [list(epochs) for epochs in zip(*seen, strict=True)] == histories
    return states, histories


def of(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def assert_equal_but_for_rounding(runs, i, state, history):
    """The i-th run is this one: in float32, sums of 50 x 26 x 26 values, none of which is far above one."""
    chex.assert_trees_all_close(of(runs[0], i), state, atol=1e-5)
    for entry, expected in zip(*map(without_seconds, (runs[1][i], history)), strict=True):
        assert entry == pytest.approx(expected, abs=1e-5)


def test_many_seeds_at_once_are_the_seeds_alone(data, together):
    """The same shuffles, distortions and dropout, and so the same weights."""
    for i, seed in enumerate(SEEDS):
        alone = fit(dataclasses.replace(CONFIG, seed=seed), data, model=MODEL)
        assert_equal_but_for_rounding(together, i, *alone)


def test_many_seeds_in_one_program_are_the_steps_one_by_one(optimizing, data, together, monkeypatch):
    """What a GPU or TPU runs against what a CPU runs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    at_once = fit_seeds(CONFIG, data, **MANY)
    for i in range(len(SEEDS)):
        assert_equal_but_for_rounding(at_once, i, of(together[0], i), together[1][i])


def test_seeds_that_stop_and_go_on_are_the_seeds_that_did_not(data, together):
    # Asked after steps 1 and 2, between the epochs, and after step 3.
    progress = stopped(4, fit_seeds, CONFIG, data, **MANY)
    assert progress.state.step.tolist() == [3, 3]
    states, histories = fit_seeds(CONFIG, data, **MANY, progress=progress)
    chex.assert_trees_all_equal(states, together[0])
    assert list(map(without_seconds, histories)) == list(map(without_seconds, together[1]))


def test_the_seed_that_diverges_is_named(data):
    progress = stopped(1, fit_seeds, CONFIG, data, **MANY)
    params = {**progress.state.params}
    params["conv8"] = {"kernel": params["conv8"]["kernel"].at[1].set(jnp.inf)}
    with pytest.raises(DivergedError, match="seed 5: the loss or its gradient is not finite at step 2 of 4"):
        fit_seeds(CONFIG, data, **MANY, progress=progress._replace(state=progress.state._replace(params=params)))


def test_scores_of_many_are_the_scores_of_each(data, together):
    trained = make_setup(CONFIG, data, model=MODEL).trained(together[0])
    scores = evaluate(trained, data.train, 70, many=True)
    for i in range(len(SEEDS)):
        chex.assert_trees_all_close(of(scores, i), evaluate(of(trained, i), data.train), rtol=1e-5)
    refused(r"seeds \[\] cannot be used", fit_seeds, CONFIG, data, seeds=[])
