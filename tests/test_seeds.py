import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest
from conftest import part, refused, stopped, without_seconds

from mnist_jax import DivergedError, evaluate, fit, fit_seeds, make_config, make_setup

SEEDS = [1, 5]
CONFIG = make_config("reference", arch="gap", epochs=2, batch_size=50, average_decay=0.9, rotation=10.0)


@pytest.fixture(scope="module")
def data(mnist):
    """Two steps an epoch."""
    return part(mnist, 100, 50)


@pytest.fixture(scope="module")
def together(data):
    """The final states and the histories of two seeds at once, each epoch of which is reported."""
    seen = []
    states, histories = fit_seeds(CONFIG, data, seeds=SEEDS, on_epoch=lambda p: seen.append(p.history[-1]))
    assert [list(epochs) for epochs in zip(*seen, strict=True)] == histories
    return states, histories


def of(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def test_many_seeds_at_once_are_the_seeds_alone(data):
    """The same shuffles, distortions and dropout: over the first steps, the same weights."""
    config = make_config("reference", epochs=1, batch_size=50, average_decay=0.9, rotation=10.0)
    states, histories = fit_seeds(config, data, seeds=SEEDS)
    for i, seed in enumerate(SEEDS):
        alone, history = fit(dataclasses.replace(config, seed=seed), data)
        chex.assert_trees_all_close(of(states, i), alone, atol=1e-5)
        assert histories[i][0][:-1] == pytest.approx(history[0][:-1], abs=1e-5)


def test_many_seeds_in_one_program_are_the_steps_one_by_one(optimizing, data, together, monkeypatch):
    """What a GPU or TPU runs against what a CPU runs."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    states, histories = fit_seeds(CONFIG, data, seeds=SEEDS)
    chex.assert_trees_all_close(states, together[0], atol=1e-5)
    for one, other in zip(histories, together[1], strict=True):
        assert [pytest.approx(entry, abs=1e-5) for entry in without_seconds(other)] == without_seconds(one)


def test_seeds_that_stop_and_go_on_are_the_seeds_that_did_not(data, together):
    # Asked after steps 1 and 2, between the epochs, and after step 3.
    progress = stopped(4, fit_seeds, CONFIG, data, seeds=SEEDS)
    assert progress.state.step.tolist() == [3, 3]
    states, histories = fit_seeds(CONFIG, data, seeds=SEEDS, progress=progress)
    chex.assert_trees_all_equal(states, together[0])
    assert list(map(without_seconds, histories)) == list(map(without_seconds, together[1]))


def test_the_seed_that_diverges_is_named(data):
    progress = stopped(1, fit_seeds, CONFIG, data, seeds=SEEDS)
    params = {**progress.state.params}
    params["conv8"] = {"kernel": params["conv8"]["kernel"].at[1].set(jnp.inf)}
    with pytest.raises(DivergedError, match="seed 5: the loss or its gradient is not finite at step 2 of 4"):
        fit_seeds(CONFIG, data, seeds=SEEDS, progress=progress._replace(state=progress.state._replace(params=params)))


def test_scores_of_many_are_the_scores_of_each(data, together):
    trained = make_setup(CONFIG, data).trained(together[0])
    scores = evaluate(trained, data.train, 70, many=True)
    for i in range(len(SEEDS)):
        chex.assert_trees_all_close(of(scores, i), evaluate(of(trained, i), data.train), rtol=1e-5)
    refused(r"seeds \[\] cannot be used", fit_seeds, CONFIG, data, seeds=[])
