import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import OPTIMIZED, refused

from mnist_jax import make_config, make_optimizer
from mnist_jax.optimizers import with_extra_args


def updates_of(config, params, grads, steps=1):
    """Those of the last of so many steps."""
    params, grads = jax.tree.map(jnp.asarray, (params, grads))
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
    return updates


def test_reference_optimizer_is_plain_sgd_with_momentum():
    for steps, velocity in ((1, 2.0), (2, 3.8), (3, 5.42)):  # Of a gradient of 2, nine tenths of it kept.
        assert updates_of(make_config("reference"), 1.0, 2.0, steps) == pytest.approx(-0.01 * velocity)


def rates_of(steps, **settings):
    """The learning rates of plain SGD, peak 0.5, under a schedule of 100 steps."""
    optimizer = make_optimizer(make_config("reference", momentum=0.0, learning_rate=0.5, **settings), 100)
    state, rates = optimizer.init(jnp.float32(0.0)), []
    for _ in range(steps):
        update, state = optimizer.update(jnp.float32(1.0), state)
        rates.append(-float(update))
    return rates


def test_one_cycle_rises_for_a_fifth_and_ends_near_zero_and_cosine_at_it():
    rates = rates_of(100, schedule="one_cycle", warmup=0.2)
    assert int(np.argmax(rates)) == 20
    assert max(rates) == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.01
    np.testing.assert_allclose(np.diff(rates[:21]), np.diff(rates[:21])[0], rtol=1e-3)
    np.testing.assert_allclose(np.diff(rates[20:]), np.diff(rates[20:])[0], rtol=1e-3)
    rates = rates_of(101, schedule="cosine", warmup=0.2)
    assert int(np.argmax(rates)) == 20
    assert (rates[0], rates[20], rates[60]) == pytest.approx((0.05, 0.5, 0.25))
    assert rates[100] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_shrinks_kernels_and_spares_batch_norm(optimizer):
    config = make_config("reference", optimizer=optimizer, learning_rate=0.1, weight_decay=0.01, momentum=0.0)
    params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 2.0)}, "bn": {"scale": jnp.full(4, 2.0)}}
    updates = updates_of(config, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * 0.01 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bn"]["scale"], 0)


def test_muon_orthogonalizes_kernels_and_leaves_batch_norm_to_adam_which_takes_the_sign_of_a_first_gradient():
    muon, adamw = (make_config("reference", optimizer=name, learning_rate=0.1) for name in ("muon", "adamw"))
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "bn": {"scale": jnp.ones(4)}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.ndim), leaf.shape), params)
    updates = updates_of(muon, params, grads)
    singular = np.linalg.svd(updates["conv"]["kernel"].reshape(18, 4), compute_uv=False)
    # Five Newton-Schulz steps bring every singular value to about one; 0.2 sqrt(18) scales it to the size of Adam's.
    np.testing.assert_allclose(singular / (0.1 * 0.2 * 18**0.5), 1, atol=0.35)
    np.testing.assert_allclose(updates["bn"]["scale"], -0.1 * jnp.sign(grads["bn"]["scale"]), rtol=1e-4)
    signs = jax.tree.map(lambda grad: -0.1 * jnp.sign(grad), grads)
    chex.assert_trees_all_close(updates_of(adamw, params, grads), signs, rtol=1e-4)


def test_muon_in_a_loop_is_optaxs_to_the_bit():
    params = {"conv": {"kernel": jnp.ones((3, 3, 4, 6))}, "wide": {"kernel": jnp.ones((1, 1, 4, 10))}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape), params)
    ours = make_optimizer(make_config("reference", optimizer="muon", learning_rate=0.1, schedule="constant"), 100)
    of_kernels = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3), params)
    options = {"beta": 0.9, "adam_b2": 0.999, "consistent_rms": 0.2, "muon_weight_dimension_numbers": of_kernels}
    theirs = optax.contrib.muon(optax.constant_schedule(0.1), nesterov=False, **options)
    optimized = partial(jax.jit, compiler_options=OPTIMIZED)
    results = [optimized(muon.update)(grads, muon.init(params), params) for muon in (ours, theirs)]
    chex.assert_trees_all_equal(*(jax.tree.leaves(result) for result in results))
    text = jax.jit(ours.update).lower(grads, ours.init(params), params).as_text()
    assert text.count("stablehlo.while") == 2  # One for each kernel; optax's own has none.


def test_equal_settings_give_one_optimizer():
    config = make_config("fast")
    assert make_optimizer(config, 100) is make_optimizer(dataclasses.replace(config, seed=2, rotation=1.0), 100)
    assert make_optimizer(config, 100) is not make_optimizer(config, 101)


ADAM, PARAMS = optax.adam(1e-3), {"kernel": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize(
    ("optimizer", "needed"),
    [
        (optax.masked(ADAM, {"kernel": True}), ()),
        (optax.MultiSteps(ADAM, 2).gradient_transformation(), ()),
        (optax.polyak_sgd(), ("value",)),
        (optax.chain(ADAM, optax.contrib.reduce_on_plateau()), ("value",)),
        (optax.lbfgs(), ("value", "grad", "value_fn")),
        (optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True), ("grad_fn",)),
    ],
)
def test_an_optimizer_gets_the_extra_arguments_that_it_needs(optimizer, needed):
    gradient = jax.value_and_grad(loss := lambda params: jnp.sum(params["kernel"] ** 4))
    params = jax.tree.map(jnp.asarray, PARAMS)
    value, grads = gradient(params)
    extra = {"value": value, "grad": grads, "value_fn": loss, "grad_fn": lambda params, _: gradient(params)[1]}
    arguments = grads, optimizer.init(params), params
    expected = optimizer.update(*arguments, **{name: extra[name] for name in needed})
    chex.assert_trees_all_equal(with_extra_args(optimizer, params).update(*arguments, **extra), expected)


def test_what_is_no_optimizer_or_needs_more_is_refused():
    def update(updates, state, params=None, *, temperature):
        raise AssertionError(temperature)

    refused("'temperature'", with_extra_args, optax.GradientTransformationExtraArgs(ADAM.init, update), PARAMS)
    refused("^optimizer is a function", with_extra_args, optax.adam, PARAMS)
