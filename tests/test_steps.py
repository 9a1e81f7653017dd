from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OLDER, as_trained, part, refused

from mnist_jax import Setup, Streams, eval_step, init_state, make_config, make_setup, train_step, value_and_grad
from mnist_jax.augment import Distortion
from mnist_jax.losses import CrossEntropy
from mnist_jax.runtime import compiler_options


@pytest.fixture(scope="module")
def setup(mnist):
    """That of `bn_dropout`'s default config, with dropout, without distortion or average."""
    return make_setup(make_config(dropout_rate=0.05, average_decay=0.0), part(mnist, 1000, 10))._replace(augment=None)


@pytest.fixture(scope="module")
def plain(mnist):
    """That of a network of convolutions alone and plain SGD, whose step is its gradient."""
    config = make_config("reference", arch="gap", momentum=0.0, learning_rate=1.0)
    return make_setup(config, mnist)


def fresh(setup):
    return init_state(setup, Streams.from_seed(1).init)


step, gradient_of = (jax.jit(function, static_argnames="setup") for function in (train_step, value_and_grad))


def test_initial_parameters_do_not_depend_on_the_emitters_that_write_the_program(setup):
    """A jaxlib without the older ones begins a training with the same bits."""
    newer = {"xla_backend_optimization_level": 0, **dict.fromkeys(OLDER, True)}
    states = [
        jax.jit(init_state.__wrapped__, static_argnames="setup", compiler_options=options)(setup, jax.random.key(1))
        for options in (compiler_options(True), newer)
    ]
    chex.assert_trees_all_equal(*states)


def test_metrics_are_sums_of_the_closed_form(setup, batch):
    variables, (images, labels) = fresh(setup).variables, batch
    mask = np.arange(32) < 20
    trained = as_trained(setup.model, variables)
    metrics = jax.jit(eval_step)(trained, images, labels, mask)
    logits = jax.jit(partial(setup.model.apply, train=False))(variables, trained.standardize(images))
    logits = np.asarray(logits, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), labels]
    assert metrics.count == 20
    assert metrics.correct == (logits.argmax(1) == labels)[:20].sum()
    assert metrics.loss == pytest.approx(losses[:20].sum(), rel=1e-5)
    assert metrics.mean() == (float(metrics.loss) / 20, int(metrics.correct) / 20)


def test_a_step_draws_from_key_and_step_number_only(setup, batch):
    state = fresh(setup)
    once, _ = step(state, *batch, jax.random.key(0), setup)
    again, _ = step(state, *batch, jax.random.key(0), setup)
    chex.assert_trees_all_equal(once, again)
    for begun, seed in ((state, 1), (state._replace(step=jnp.int32(1)), 0)):
        other, _ = step(begun, *batch, jax.random.key(seed), setup)
        assert jnp.abs(other.params["conv1"]["kernel"] - once.params["conv1"]["kernel"]).max() > 0


def test_augmentation_is_part_of_the_step(plain, batch):
    """In a network without dropout it is all that a key decides, and at strength 0 none at all, to the bit."""
    state, shifts = fresh(plain), plain._replace(augment=Distortion(shift=2.0))

    def kernel(seed, setup, strength=1.0):
        return step(state, *batch, jax.random.key(seed), setup, strength)[0].params["conv1"]["kernel"]

    np.testing.assert_array_equal(kernel(1, plain), kernel(2, plain))
    np.testing.assert_array_equal(kernel(1, shifts), kernel(1, shifts))
    assert jnp.abs(kernel(1, shifts) - kernel(2, shifts)).max() > 0
    assert jnp.abs(kernel(1, shifts) - kernel(1, plain)).max() > 0
    np.testing.assert_array_equal(kernel(1, shifts, 0.0), kernel(1, plain))


class Tiny(nn.Module):
    """Dropout and batch norm in few operations."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.5, deterministic=not train)(nn.BatchNorm(not train)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


TINY = Setup(Tiny(), optax.sgd(1.0), augment=Distortion(shift=2.0))
BARE = TINY._replace(mean=None, deviation=None)


def test_value_and_grad_is_what_a_step_descends(batch):
    """The same distortion and dropout; mean and deviation are those of the setup, or given."""
    for setup, given in ((TINY, ()), (BARE, (np.float32([0.1307]), np.float32([0.3081])))):
        arguments = fresh(TINY), *batch, jax.random.key(3), setup, 0.5, *given
        (value, (losses, logits, collections)), gradients = gradient_of(*arguments)
        after, metrics = step(*arguments)
        expected = jax.tree.map(jnp.subtract, fresh(TINY).params, gradients), collections
        chex.assert_trees_all_close((after.params, after.collections), expected, atol=1e-6)
        assert [value, metrics.loss] == [pytest.approx(losses.mean()), pytest.approx(losses.sum())]
        assert metrics.correct == (logits.argmax(-1) == batch[1]).sum()


@pytest.mark.parametrize("function", [train_step, value_and_grad])
def test_a_step_refuses_what_it_cannot_use(function, batch):
    (images, labels), key, state = batch, jax.random.key(0), fresh(TINY)
    for given in ({}, {"mean": np.ones(1)}, {"deviation": np.ones(1)}):
        refused("mean and deviation", function, state, images, labels, key, BARE, **given)
    for other in (np.eye(10, dtype=np.int32)[labels], labels[:, None], labels[1:]):
        refused("labels", function, state, images, other, key, TINY)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target(plain, batch):
    """Value and gradient are those of the closed form; the losses that are reported have no smoothing."""
    start, (images, labels) = fresh(plain), batch

    def loss(params):
        logits = plain.model.apply({"params": params}, plain.trained(start).standardize(images), train=True)
        targets = 0.9 * jax.nn.one_hot(labels, 10) + 0.1 / 10
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    arguments = start, *batch, jax.random.key(0)
    (value, (losses, *_)), gradients = gradient_of(*arguments, plain._replace(loss=CrossEntropy(0.1)))
    expected = jax.jit(jax.value_and_grad(loss))(start.params)
    chex.assert_trees_all_close((value, gradients), expected, atol=1e-6)
    assert losses.sum() == pytest.approx(step(*arguments, plain)[1].loss)


def test_the_average_is_the_exponential_one_without_its_start(setup, batch):
    setup = setup._replace(average_decay=0.8, optimizer=optax.sgd(0.01))
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
    setup = make_setup(make_config("reference", precision="bfloat16"), mnist)
    state, metrics = step(fresh(setup), *batch, jax.random.key(0), setup)
    assert np.isfinite(metrics.loss)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.collections))} == {jnp.dtype("float32")}
    apply = partial(setup.model.apply, train=False, capture_intermediates=True)
    images = setup.trained(state).standardize(batch[0])
    logits, kept = jax.jit(apply)(state.variables, images)
    assert logits.dtype == jnp.float32
    convolutions = [kept["intermediates"][f"conv{i}"]["__call__"][0] for i in range(1, 9)]
    assert {output.dtype for output in convolutions} == {jnp.dtype("bfloat16")}
    full = jax.jit(partial(setup.model.clone(dtype=jnp.float32).apply, train=False))(state.variables, images)
    np.testing.assert_allclose(logits, full, atol=0.05)
