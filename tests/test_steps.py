from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OLDER, refused

from mnist_jax import Setup, Streams, eval_step, init_state, make_config, make_setup, train_step, value_and_grad
from mnist_jax.augment import Distortion
from mnist_jax.losses import CrossEntropy
from mnist_jax.runtime import compiler_options


class Tiny(nn.Module):
    """Dropout and batch norm in few operations."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


class Linear(nn.Module):
    """Nothing random."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(10)(x.reshape(len(x), -1))


TINY, PLAIN = (Setup(model, optax.sgd(1.0)) for model in (Tiny(), Linear()))
SHIFTED = TINY._replace(augment=Distortion(shift=2.0))
BARE = SHIFTED._replace(mean=None, deviation=None)


def fresh(setup):
    return init_state(setup, Streams.from_seed(1).init)


step, gradient_of = (jax.jit(function, static_argnames="setup") for function in (train_step, value_and_grad))


def test_initial_parameters_do_not_depend_on_the_emitters_that_write_the_program(mnist):
    """A jaxlib without the older ones begins a training with the same bits."""
    setup = make_setup(make_config(), mnist)
    newer = {"xla_backend_optimization_level": 0, **dict.fromkeys(OLDER, True)}
    states = [
        jax.jit(init_state.__wrapped__, static_argnames="setup", compiler_options=options)(setup, jax.random.key(1))
        for options in (compiler_options(True), newer)
    ]
    chex.assert_trees_all_equal(*states)


def test_metrics_are_sums_of_the_closed_form(batch):
    (images, labels), mask = batch, np.arange(32) < 20
    trained = TINY.trained(fresh(TINY))
    metrics = jax.jit(eval_step)(trained, images, labels, mask)
    logits = np.asarray(trained.model.apply(trained.variables, trained.standardize(images), train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), labels]
    assert metrics.count == 20
    assert metrics.correct == (logits.argmax(1) == labels)[:20].sum()
    assert metrics.loss == pytest.approx(losses[:20].sum(), rel=1e-5)
    assert metrics.mean() == (float(metrics.loss) / 20, int(metrics.correct) / 20)


def test_a_step_draws_from_key_and_step_number_only(batch):
    """Dropout and distortion; without either a key decides nothing, and at strength 0 no image is distorted."""

    def kernel(setup, seed=0, number=0, strength=1.0):
        state = fresh(setup)._replace(step=jnp.int32(number))
        return np.asarray(step(state, *batch, jax.random.key(seed), setup, strength)[0].params["Dense_0"]["kernel"])

    shifts = PLAIN._replace(augment=Distortion(shift=2.0))
    for setup in (TINY, shifts):
        once = kernel(setup)
        np.testing.assert_array_equal(kernel(setup), once)
        assert (kernel(setup, seed=1) != once).any()
        assert (kernel(setup, number=1) != once).any()
    np.testing.assert_array_equal(kernel(PLAIN, seed=1), kernel(PLAIN))
    np.testing.assert_array_equal(kernel(shifts, strength=0.0), kernel(PLAIN))


def test_value_and_grad_is_what_a_step_descends(batch):
    """The same distortion and dropout; mean and deviation are those of the setup, or arguments."""
    for setup, statistics in ((SHIFTED, ()), (BARE, (np.float32([0.1307]), np.float32([0.3081])))):
        arguments = fresh(TINY), *batch, jax.random.key(3), setup, 0.5, *statistics
        (value, (losses, logits, collections)), gradients = gradient_of(*arguments)
        after, metrics = step(*arguments)
        expected = jax.tree.map(jnp.subtract, fresh(TINY).params, gradients), collections
        chex.assert_trees_all_close((after.params, after.collections), expected, atol=1e-6)
        assert [value, metrics.loss] == [pytest.approx(losses.mean()), pytest.approx(losses.sum())]
        assert metrics.correct == (logits.argmax(-1) == batch[1]).sum()


@pytest.mark.parametrize("function", [train_step, value_and_grad])
def test_a_step_refuses_what_it_cannot_use(function, batch):
    (images, labels), key, state = batch, jax.random.key(0), fresh(TINY)
    for statistics in ({}, {"mean": np.ones(1)}, {"deviation": np.ones(1)}):
        refused("mean and deviation", function, state, images, labels, key, BARE, **statistics)
    for other in (np.eye(10, dtype=np.int32)[labels], labels[:, None], labels[1:]):
        refused("labels", function, state, images, other, key, TINY)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target(batch):
    """Value and gradient are those of the closed form; the losses that are reported have no smoothing."""
    start, (images, labels) = fresh(PLAIN), batch

    def loss(params):
        logits = PLAIN.model.apply({"params": params}, PLAIN.trained(start).standardize(images), train=True)
        targets = 0.9 * jax.nn.one_hot(labels, 10) + 0.1 / 10
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    arguments = start, *batch, jax.random.key(0)
    (value, (losses, *_)), gradients = gradient_of(*arguments, PLAIN._replace(loss=CrossEntropy(0.1)))
    expected = jax.jit(jax.value_and_grad(loss))(start.params)
    chex.assert_trees_all_close((value, gradients), expected, atol=1e-6)
    assert losses.sum() == pytest.approx(step(*arguments, PLAIN)[1].loss)


def test_the_average_is_the_exponential_one_without_its_start(batch):
    setup = TINY._replace(average_decay=0.8, optimizer=optax.sgd(0.01))
    state, seen = fresh(setup), []
    for _ in range(4):
        state, _ = step(state, *batch, jax.random.key(0), setup)
        seen.append({"params": state.params, **state.collections})
    weights = 0.8 ** np.arange(3, -1, -1)
    weights /= weights.sum()
    expected = jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *seen)
    chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert state.variables is state.average
    # After one step it is what that step gave.
    first, _ = step(fresh(setup), *batch, jax.random.key(0), setup)
    chex.assert_trees_all_close(first.average, seen[0], rtol=1e-6)


def test_bfloat16_activations_have_float32_weights_statistics_and_logits(batch, mnist):
    setup = make_setup(make_config("reference", arch="crop6-8-s8p-pool-8", precision="bfloat16"), mnist)
    state, metrics = step(fresh(setup), *batch, jax.random.key(0), setup)
    assert np.isfinite(metrics.loss)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.collections))} == {jnp.dtype("float32")}
    apply = partial(setup.model.apply, train=False, capture_intermediates=True)
    images = setup.trained(state).standardize(batch[0])
    logits, kept = jax.jit(apply)(state.variables, images)
    assert logits.dtype == jnp.float32
    layers = kept["intermediates"].keys() - {"__call__"}
    assert len(layers) == 8
    assert {kept["intermediates"][name]["__call__"][0].dtype for name in layers} == {jnp.dtype("bfloat16")}
    full = jax.jit(partial(setup.model.clone(dtype=jnp.float32).apply, train=False))(state.variables, images)
    np.testing.assert_allclose(logits, full, atol=0.05)
