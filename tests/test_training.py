import dataclasses
import itertools
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import initial_state

from mnist_jax import (
    DivergedError,
    InputError,
    Mnist,
    Split,
    evaluate,
    fit,
    fit_seeds,
    make_config,
    make_model,
    make_optimizer,
    standardise,
    train_epoch,
    train_step,
    training,
)
from mnist_jax.augment import Distortion
from mnist_jax.training import Stopped, Streams, epoch_order, steps_per_epoch


def first(split, size):
    return Split(split.images[:size], split.labels[:size])


@pytest.fixture(scope="module")
def small(mnist):
    """1,000 training and 500 test images."""
    return Mnist(first(mnist.train, 1000), first(mnist.test, 500))


@pytest.fixture(scope="module")
def setup():
    """Model, optimiser and a maker of fresh states for the default config of `bn_dropout`, dropout on."""
    config = make_config(dropout_rate=0.05)
    model, optimizer = make_model(config), make_optimizer(config, 100)
    return model, optimizer, lambda: initial_state(model, optimizer, Streams.from_seed(1).init)


@pytest.fixture(scope="module")
def step(setup):
    model, optimizer, _ = setup
    return jax.jit(
        lambda state, images, labels, key: train_step(state, images, labels, key, model=model, optimizer=optimizer)
    )


def test_a_batch_can_be_over_fitted(setup, step, batch):
    state = setup[2]()
    key = jax.random.key(0)
    _, before = step(state, *batch, key)
    for _ in range(60):
        state, metrics = step(state, *batch, key)
    assert state.step == 60
    assert before.mean()[1] < 0.5
    assert metrics.mean()[1] == 1.0
    assert metrics.mean()[0] < 0.1


def test_metrics_are_sums_of_the_closed_form(setup, batch):
    model, _, fresh = setup
    variables = fresh().variables
    images, labels = batch
    mask = np.arange(32) < 20
    metrics = training.eval_step(variables, images, labels, mask, model=model)
    logits = np.asarray(model.apply(variables, standardise(images), train=False), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(32), labels]
    assert metrics.count == 20
    assert metrics.correct == (logits.argmax(1) == labels)[:20].sum()
    assert metrics.loss == pytest.approx(losses[:20].sum(), rel=1e-5)
    assert metrics.mean() == (float(metrics.loss) / 20, int(metrics.correct) / 20)


def test_a_step_draws_from_key_and_step_number_only(setup, step, batch):
    state = setup[2]()
    once, _ = step(state, *batch, jax.random.key(0))
    again, _ = step(state, *batch, jax.random.key(0))
    chex.assert_trees_all_equal(once, again)
    for other in (
        step(state, *batch, jax.random.key(1)),
        step(state._replace(step=jnp.int32(1)), *batch, jax.random.key(0)),
    ):
        assert jnp.abs(other[0].params["conv1"]["kernel"] - once.params["conv1"]["kernel"]).max() > 0


def test_augmentation_is_part_of_the_step(batch):
    """In a network without dropout it is all that a key decides."""
    config = make_config(arch="gap")
    model, optimizer = make_model(config), make_optimizer(config, 100)
    start = initial_state(model, optimizer, jax.random.key(0))

    @partial(jax.jit, static_argnums=1)
    def kernel(key, distortion):
        state, _ = train_step(start, *batch, key, model=model, optimizer=optimizer, distortion=distortion)
        return state.params["conv1"]["kernel"]

    first, second, shifts = jax.random.key(1), jax.random.key(2), Distortion(shift=2.0)
    np.testing.assert_array_equal(kernel(first, None), kernel(second, None))
    np.testing.assert_array_equal(kernel(first, shifts), kernel(first, shifts))
    assert jnp.abs(kernel(first, shifts) - kernel(second, shifts)).max() > 0
    assert jnp.abs(kernel(first, shifts) - kernel(first, None)).max() > 0


def test_the_jitted_step_is_the_plain_step(batch):
    config = make_config("reference", arch="gap")
    model, optimizer = make_model(config), make_optimizer(config, 100)
    step = partial(train_step, model=model, optimizer=optimizer)
    start = initial_state(model, optimizer, jax.random.key(0))
    arguments = start, batch[0][:8], batch[1][:8], jax.random.key(0)
    chex.assert_trees_all_close(step(*arguments), jax.jit(step)(*arguments), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 250, 500, 1000])
def test_accuracy_does_not_depend_on_the_evaluation_batch_size(setup, small, batch_size):
    model, _, fresh = setup
    variables = fresh().variables
    size = 60 if batch_size == 1 else 500
    metrics = evaluate(model, variables, first(small.test, size), batch_size)
    logits = jax.jit(partial(model.apply, train=False))(variables, standardise(small.test.images[:size]))
    assert metrics.count == size
    assert metrics.correct == (logits.argmax(-1) == small.test.labels[:size]).sum()


def test_an_epoch_is_a_permutation_and_the_remainder_rests():
    key = jax.random.key(3)
    order = epoch_order(key, 1, 1000, 128)
    assert order.shape == (7, 128)
    assert order.dtype == jnp.int32
    assert len(np.unique(order)) == 896
    assert order.min() >= 0
    assert order.max() < 1000
    np.testing.assert_array_equal(order, epoch_order(key, 1, 1000, 128))
    assert (order != epoch_order(key, 2, 1000, 128)).mean() > 0.9
    assert (order != epoch_order(jax.random.key(4), 1, 1000, 128)).mean() > 0.9
    # Over the epochs every example gets its turn.
    seen = np.concatenate([np.asarray(epoch_order(key, epoch, 1000, 128)).ravel() for epoch in range(1, 11)])
    assert len(np.unique(seen)) == 1000


def test_steps_per_epoch():
    assert steps_per_epoch(60_000, 128) == 468
    assert steps_per_epoch(128, 128) == 1
    with pytest.raises(InputError, match="batch size 129 is above the 128 training images"):
        steps_per_epoch(128, 129)


def test_one_program_and_step_by_step_are_the_same_epoch(small, monkeypatch):
    """What a GPU or TPU runs, an epoch in one program, against what a CPU runs.

    By plain SGD: Muon scales whatever is small in a gradient up to full size, and rounding with it.
    """
    config = make_config("reference")
    model, optimizer = make_model(config), make_optimizer(config, 100)

    def fresh():
        return initial_state(model, optimizer, Streams.from_seed(1).init)

    order = epoch_order(jax.random.key(0), 1, 1000, 128)[:3]
    options = {"model": model, "optimizer": optimizer, "distortion": Distortion(10.0, 2.0, 0.1, 0.1)}
    steps, step_metrics = train_epoch(fresh(), small.train, order, jax.random.key(1), **options)
    step_scores = evaluate(model, steps.variables, small.test, 150)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    whole, whole_metrics = train_epoch(fresh(), small.train, order, jax.random.key(1), **options)
    chex.assert_trees_all_close(steps.variables, whole.variables, atol=1e-5)
    assert steps.step == whole.step == 3
    chex.assert_trees_all_close(step_metrics, whole_metrics, rtol=1e-5)
    assert step_metrics.count == 3 * 128
    chex.assert_trees_all_close(evaluate(model, steps.variables, small.test, 150), step_scores, rtol=1e-5)
    assert step_scores.count == 500


def test_on_step_reports_every_step_of_the_epoch(setup, small):
    model, optimizer, fresh = setup
    order = epoch_order(jax.random.key(0), 1, 1000, 128)[:3]
    seen = []
    train_epoch(
        fresh(),
        small.train,
        order,
        jax.random.key(1),
        model=model,
        optimizer=optimizer,
        on_step=lambda i, totals: seen.append((i, int(totals.count))),
    )
    assert seen == [(0, 128), (1, 256), (2, 384)]


def test_fit_is_reproducible_to_the_bit_and_compiles_once(small, monkeypatch):
    config = make_config(arch="gap", epochs=2, batch_size=100)
    traces = []
    monkeypatch.setattr(training, "standardise", lambda images: (traces.append(images.shape), standardise(images))[1])
    epochs = []
    state, history = fit(config, small, on_epoch=lambda progress: epochs.append(progress.history[-1]))
    again, other = fit(config, small)
    chex.assert_trees_all_equal(state, again)
    assert [entry[:-1] for entry in history] == [entry[:-1] for entry in other]
    assert epochs == history
    assert [entry.epoch for entry in history] == [1, 2]
    assert state.step == 20
    # A training and an evaluation step, traced once each, over two epochs of two fits.
    assert sorted(traces) == [(100, 28, 28, 1), (250, 28, 28, 1)]
    different, _ = fit(make_config(arch="gap", epochs=2, batch_size=100, seed=2), small)
    assert jnp.abs(different.params["conv1"]["kernel"] - state.params["conv1"]["kernel"]).max() > 0


def after(asked):
    """A `stop` that says yes from the given time on that it is asked."""
    times = itertools.count(1)
    return lambda: next(times) >= asked


@pytest.mark.parametrize(("stops", "steps"), [([3], [3]), ([10], [10]), ([1, 8, 4], [1, 9, 12]), ([19], [18])])
def test_a_run_that_stops_and_goes_on_is_the_run_that_did_not(small, stops, steps):
    """Ten steps an epoch: in mid-epoch, between epochs, several times; between epochs it is asked once more."""
    config = make_config(arch="gap", epochs=2, batch_size=100, average_decay=0.9)
    state, history = fit(config, small)
    progress, stood = None, []
    for asked in stops:
        with pytest.raises(Stopped) as stopped:
            fit(config, small, progress=progress, stop=after(asked))
        (progress,) = stopped.value.args
        stood.append(int(progress.state.step))
    again, other = fit(config, small, progress=progress)
    assert stood == steps
    chex.assert_trees_all_equal(state, again)
    assert [entry[:-1] for entry in history] == [entry[:-1] for entry in other]


def test_fit_refuses_a_batch_above_the_data(small):
    with pytest.raises(InputError, match="batch size 1001 is above the 1000 training images"):
        fit(make_config(batch_size=1001), small)


def test_a_loss_that_is_not_finite_stops_the_fit(small):
    """At 1e6 the first update throws the weights so far that the second step's loss overflows, or the third's."""
    config = make_config("reference", arch="gap", epochs=1, batch_size=100, learning_rate=1e6)
    with pytest.raises(DivergedError, match=r"at step \d+ of 10, in epoch 1; try a learning rate below 1000000.0"):
        fit(config, small)


def test_the_first_bad_step_is_named(setup, small, monkeypatch):
    """In either way of looping, and whatever comes after it."""
    model, optimizer, fresh = setup
    order = epoch_order(jax.random.key(0), 1, 1000, 100)
    options = {"model": model, "optimizer": optimizer}
    state = fresh()
    params = {**state.params, "conv8": {"kernel": state.params["conv8"]["kernel"] * jnp.inf}}
    for backend in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        broken = jax.tree.map(jnp.copy, state._replace(params=params, step=jnp.int32(6)))
        _, totals = train_epoch(broken, small.train, order, jax.random.key(1), first=6, **options)
        assert totals.bad_step == 7
        sound = jax.tree.map(jnp.copy, state)
        _, totals = train_epoch(sound, small.train, order, jax.random.key(1), first=8, **options)
        assert totals.bad_step == 0


def test_reference_optimiser_is_plain_sgd_with_momentum():
    optimizer = make_optimizer(make_config("reference"), 10)
    params, grads = {"w": jnp.float32(1.0)}, {"w": jnp.float32(2.0)}
    state = optimizer.init(params)
    velocity = 0.0
    for _ in range(3):
        updates, state = optimizer.update(grads, state, params)
        velocity = 0.9 * velocity + 2.0
        assert updates["w"] == pytest.approx(-0.01 * velocity)


def test_one_cycle_rises_for_a_fifth_and_ends_near_zero():
    config = make_config(optimizer="sgd", momentum=0.0, nesterov=False, learning_rate=0.5)
    optimizer = make_optimizer(config, 100)
    state = optimizer.init(jnp.float32(0.0))
    rates = []
    for _ in range(100):
        update, state = optimizer.update(jnp.float32(1.0), state)
        rates.append(-float(update))
    assert int(np.argmax(rates)) == 20
    assert max(rates) == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.05)
    assert rates[-1] < 0.01
    np.testing.assert_allclose(np.diff(rates[:21]), np.diff(rates[:21])[0], rtol=1e-3)
    np.testing.assert_allclose(np.diff(rates[20:]), np.diff(rates[20:])[0], rtol=1e-3)


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


def test_muon_orthogonalises_kernels_and_leaves_batch_norm_to_adam():
    config = make_config("reference", optimizer="muon", learning_rate=0.1)
    params = {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}, "bn": {"scale": jnp.ones(4)}}
    grads = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.ndim), leaf.shape), params)
    updates = updates_of(config, params, grads)
    singular = np.linalg.svd(updates["conv"]["kernel"].reshape(18, 4), compute_uv=False)
    # Five Newton-Schulz steps bring every singular value to about one; 0.2 sqrt(18) scales it to the size of Adam's.
    np.testing.assert_allclose(singular / (0.1 * 0.2 * 18**0.5), 1, atol=0.35)
    np.testing.assert_allclose(updates["bn"]["scale"], -0.1 * jnp.sign(grads["bn"]["scale"]), rtol=1e-4)


def test_cosine_rises_and_falls_to_zero():
    config = make_config("reference", schedule="cosine", warmup=0.2, momentum=0.0, learning_rate=0.5)
    optimizer = make_optimizer(config, 100)
    state, rates = optimizer.init(jnp.float32(0.0)), []
    for _ in range(101):
        update, state = optimizer.update(jnp.float32(1.0), state)
        rates.append(-float(update))
    assert int(np.argmax(rates)) == 20
    assert (rates[0], rates[20], rates[60]) == pytest.approx((0.05, 0.5, 0.25))
    assert rates[100] == pytest.approx(0, abs=1e-6)


def test_label_smoothing_is_cross_entropy_with_the_smoothed_target(batch):
    """By the gradient: the step of a plain SGD is the gradient of the closed form."""
    config = make_config("reference", arch="gap", momentum=0.0, learning_rate=1.0, dropout_rate=0.0)
    model, optimizer = make_model(config), make_optimizer(config, 100)
    start = initial_state(model, optimizer, jax.random.key(0))
    images, labels = batch

    def loss(params):
        logits = model.apply({"params": params}, standardise(images), train=True)
        targets = 0.9 * jax.nn.one_hot(labels, 10) + 0.1 / 10
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    step = jax.jit(partial(train_step, model=model, optimizer=optimizer), static_argnames="label_smoothing")
    state, metrics = step(start, *batch, jax.random.key(0), label_smoothing=0.1)
    expected = jax.tree.map(lambda p, g: p - g, start.params, jax.jit(jax.grad(loss))(start.params))
    chex.assert_trees_all_close(state.params, expected, atol=1e-6)
    _, plain = step(start, *batch, jax.random.key(0))
    assert metrics.loss == pytest.approx(plain.loss)


def test_the_average_is_the_exponential_one_without_its_start(setup, batch):
    model, optimizer, _ = setup
    state = initial_state(model, optimizer, Streams.from_seed(1).init, average=True)
    step = jax.jit(partial(train_step, model=model, optimizer=optimizer, average_decay=0.8))
    seen = []
    for _ in range(4):
        state, _ = step(state, *batch, jax.random.key(0))
        seen.append({"params": state.params, "batch_stats": state.batch_stats})
    weights = 0.8 ** np.arange(3, -1, -1)
    weights /= weights.sum()
    expected = jax.tree.map(lambda *leaves: sum(w * x for w, x in zip(weights, leaves, strict=True)), *seen)
    chex.assert_trees_all_close(state.average, expected, rtol=1e-5, atol=1e-7)
    assert state.variables is state.average
    # After one step it is what that step gave.
    first, _ = step(initial_state(model, optimizer, Streams.from_seed(1).init, average=True), *batch, jax.random.key(0))
    chex.assert_trees_all_close(first.average, seen[0], rtol=1e-6)


def test_fit_scores_the_average(small):
    config = make_config("reference", arch="gap", epochs=1, batch_size=100, average_decay=0.9)
    state, history = fit(config, small)
    model = make_model(config)
    assert evaluate(model, state.average, small.test).mean() == (history[-1].test_loss, history[-1].test_accuracy)
    raw = evaluate(model, {"params": state.params, "batch_stats": {}}, small.test)
    assert raw.mean() != evaluate(model, state.average, small.test).mean()


def test_first_epochs_at_low_resolution(small, monkeypatch):
    shapes = []
    plain = jax.image.resize
    monkeypatch.setattr(
        jax.image, "resize", lambda x, shape, method: (shapes.append(shape), plain(x, shape, method))[1]
    )
    config = make_config("reference", epochs=2, batch_size=100, low_resolution=20, low_resolution_epochs=1)
    state, history = fit(config, small)
    assert set(shapes) == {(100, 20, 20, 1)}
    assert [entry.epoch for entry in history] == [1, 2]
    chex.assert_tree_all_finite(state.params)


def test_many_seeds_at_once_are_the_seeds_alone(small):
    """The same shuffles, distortions and dropout: over the first steps, the same weights."""
    data = Mnist(first(small.train, 300), first(small.test, 100))
    config = make_config("reference", epochs=1, batch_size=100, average_decay=0.9, rotation=10.0)
    together, histories = fit_seeds(config, [1, 5], data)
    for i, seed in enumerate((1, 5)):
        alone, history = fit(dataclasses.replace(config, seed=seed), data)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, i=i: leaf[i], together), alone, atol=1e-5)
        assert histories[i][0][:-1] == pytest.approx(history[0][:-1], abs=1e-5)
    with pytest.raises(DivergedError, match="seed 1: the loss or its gradient is not finite at step"):
        fit_seeds(dataclasses.replace(config, learning_rate=1e30), [1, 5], data)


def test_many_seeds_in_one_program_are_the_steps_one_by_one(small, monkeypatch):
    """What a GPU or TPU runs against what a CPU runs."""
    data = Mnist(first(small.train, 300), first(small.test, 100))
    config = make_config("reference", arch="gap", epochs=1, batch_size=100, rotation=10.0)
    steps, step_histories = fit_seeds(config, [1, 5], data)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    whole, histories = fit_seeds(config, [1, 5], data)
    chex.assert_trees_all_close(steps, whole, atol=1e-5)
    assert [history[0][:-1] for history in histories] == [
        pytest.approx(history[0][:-1], abs=1e-5) for history in step_histories
    ]


@pytest.mark.parametrize("arch", ["gap", "bn_dropout"])
def test_bfloat16_activations_have_float32_weights_statistics_and_logits(small, arch):
    data = Mnist(first(small.train, 200), first(small.test, 100))
    config = make_config("reference", arch=arch, epochs=1, batch_size=100, precision="bfloat16")
    state, history = fit(config, data)
    assert {leaf.dtype for leaf in jax.tree.leaves((state.params, state.batch_stats))} == {jnp.dtype("float32")}
    model = make_model(config)
    logits, kept = model.apply(state.variables, standardise(data.test.images), train=False, capture_intermediates=True)
    assert logits.dtype == jnp.float32
    convolutions = [kept["intermediates"][f"conv{i}"]["__call__"][0] for i in range(1, 9)]
    assert {output.dtype for output in convolutions} == {jnp.dtype("bfloat16")}
    full = make_model(dataclasses.replace(config, precision="float32"))
    np.testing.assert_allclose(
        logits, full.apply(state.variables, standardise(data.test.images), train=False), atol=0.05
    )
    assert np.isfinite(history[-1].train_loss)


@pytest.mark.parametrize("what", ["step", "epoch", "scoring", "seeds"])
def test_programs_for_a_tpu(small, what):
    """No callbacks to the host, nothing in 64 bits, and of gathers only those that take a batch, or distort it."""
    config = make_config(average_decay=0.9)
    options = training.step_options(config, 10)
    state = training.abstract_progress(config, 1000).state
    order, key = jax.ShapeDtypeStruct((7, 128), jnp.int32), jax.random.key(0)
    totals = training.Metrics.zeros()
    static = (*training._TRAIN[0], "model")

    def seeds(tree):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((4, *leaf.shape), leaf.dtype), tree)

    function, arguments, options = {
        "step": (training._train_at, (0, state, totals, small.train, order, key), options),
        "epoch": (training._train_epoch, (0, state, totals, small.train, order, key), options),
        "scoring": (training._eval_all, (state.variables, small.test, order), {"model": options["model"]}),
        "seeds": (
            training._train_seeds_epoch,
            (seeds(state), seeds(totals), small.train, seeds(order), jax.random.split(key, 4)),
            options,
        ),
    }[what]
    lowered = jax.jit(function, static_argnames=[name for name in static if name in options]).trace(
        *arguments, **options
    )
    text = lowered.lower(lowering_platforms=("tpu",)).as_text()
    assert "callback" not in text
    assert "f64" not in text
    attributes = r"dense<[^>]*> : tensor<[\dx]+xi64>"  # Paddings and such.
    assert not re.search(r"tensor<(\d+x)*i64>", re.sub(attributes, "", text))
    taken = text.count('"stablehlo.gather"')
    # Indices, images and labels of the batch, the logit of each label; where it is distorted, a pixel's neighbours.
    assert taken <= (4 if what == "scoring" else 9), taken


def test_real_mnist_in_a_few_hundred_steps(mnist):
    """The objective's network, the whole path: 97% of the test images after 234 steps."""
    state, history = fit(
        make_config("fast", epochs=1, average_decay=0.9), Mnist(first(mnist.train, 30_000), mnist.test)
    )
    assert state.step == 234
    assert history[-1].test_accuracy >= 0.97
    chex.assert_tree_all_finite(state.params)
