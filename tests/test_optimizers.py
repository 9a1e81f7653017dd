import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax import InputError, make_config, make_optimizer
from mnist_jax.optimizers import require_plain


def test_reference_optimizer_is_plain_sgd_with_momentum():
    optimizer = make_optimizer(make_config("reference"), 10)
    params, grads = {"w": jnp.float32(1.0)}, {"w": jnp.float32(2.0)}
    state = optimizer.init(params)
    velocity = 0.0
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        velocity = 0.9 * velocity + 2.0
        assert updates["w"] == pytest.approx(-0.01 * velocity)


def rates_of(steps, **settings):
    """The learning rates of plain SGD, peak 0.5, under a schedule of 100 steps."""
    optimizer = make_optimizer(make_config("reference", momentum=0.0, learning_rate=0.5, **settings), 100)
    state, rates = optimizer.init(jnp.float32(0.0)), []
    for _ in range(steps):
        update, state = optimizer.update(jnp.float32(1.0), state)
        rates.append(-float(update))
    return rates


def test_one_cycle_rises_for_a_fifth_and_ends_near_zero():
    rates = rates_of(100, schedule="one_cycle", warmup=0.2)
    assert int(np.argmax(rates)) == 20
    assert max(rates) == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.01
    np.testing.assert_allclose(np.diff(rates[:21]), np.diff(rates[:21])[0], rtol=1e-3)
    np.testing.assert_allclose(np.diff(rates[20:]), np.diff(rates[20:])[0], rtol=1e-3)


def test_cosine_rises_and_falls_to_zero():
    rates = rates_of(101, schedule="cosine", warmup=0.2)
    assert int(np.argmax(rates)) == 20
    assert (rates[0], rates[20], rates[60]) == pytest.approx((0.05, 0.5, 0.25))
    assert rates[100] == pytest.approx(0, abs=1e-6)


def updates_of(config, params, grads, steps=1):
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
    return updates


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_weight_decay_shrinks_kernels_and_spares_batch_norm(optimizer):
    config = make_config(
        "reference", optimizer=optimizer, learning_rate=0.1, weight_decay=0.01, momentum=0.0, average_decay=0.0
    )
    params = {"conv": {"kernel": jnp.full((3, 3, 2, 4), 2.0)}, "bn": {"scale": jnp.full(4, 2.0)}}
    updates = updates_of(config, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(updates["conv"]["kernel"], -0.1 * 0.01 * 2.0, rtol=1e-6)
    np.testing.assert_array_equal(updates["bn"]["scale"], 0)


def test_adamw_takes_the_sign_of_a_first_gradient():
    config = make_config("reference", optimizer="adamw", learning_rate=0.1)
    params = {"kernel": jnp.ones((1, 1, 2, 2))}
    grads = {"kernel": jnp.array([[[[3.0, -2.0], [0.5, -1e-3]]]])}
    np.testing.assert_allclose(updates_of(config, params, grads)["kernel"], -0.1 * jnp.sign(grads["kernel"]), rtol=1e-4)


def test_muon_orthogonalizes_kernels_and_leaves_batch_norm_to_adam():
    config = make_config("reference", optimizer="muon", learning_rate=0.1)
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "bn": {"scale": jnp.ones(4)}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.ndim), leaf.shape), params)
    updates = updates_of(config, params, grads)
    singular = np.linalg.svd(updates["conv"]["kernel"].reshape(18, 4), compute_uv=False)
    # Five Newton-Schulz steps bring every singular value to about one; 0.2 sqrt(18) scales it to the size of Adam's.
    np.testing.assert_allclose(singular / (0.1 * 0.2 * 18**0.5), 1, atol=0.35)
    np.testing.assert_allclose(updates["bn"]["scale"], -0.1 * jnp.sign(grads["bn"]["scale"]), rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "missing"),
    [
        (optax.polyak_sgd(), "'value'"),
        (optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()), "'value'"),
        (optax.adam, "is a function; give an optax.GradientTransformation"),
    ],
)
def test_an_optimizer_that_needs_more_is_refused(optimizer, missing):
    with pytest.raises(InputError, match=missing):
        require_plain(optimizer, {"kernel": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    "optimizer",
    [optax.adam(1e-3), optax.inject_hyperparams(optax.sgd)(0.1), optax.masked(optax.adam(1e-3), {"kernel": True})],
)
def test_an_optimizer_that_may_take_more_is_not(optimizer):
    require_plain(optimizer, {"kernel": jnp.ones((2, 2))})
