import dataclasses
import re
from functools import partial
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import part, refused, smooth, stopped, without_seconds

from mnist_jax import epoch_order, evaluate, fit, make_config, make_setup, predict, runtime, steps, training
from mnist_jax.recipes.fits import abstract_progress, start
from mnist_jax.recipes.values import network_of
from mnist_jax.training import Epoch, steps_per_epoch, train_epoch

# Ten steps an epoch on `small`. Of the second epoch the images are plain. The network compiles in little time.
CONFIG = make_config(arch="crop6-8-pool-8", epochs=2, plain_epochs=1, batch_size=100, average_decay=0.9)


@pytest.fixture(scope="module")
def small(mnist):
    return part(mnist, 1000, 500)


@pytest.fixture(scope="module")
def whole(small):
    """What CONFIG comes to in one go: the state, the history, how much each epoch distorts, how often it asks."""
    stop = mock.Mock(return_value=False)
    with mock.patch.object(training, "train_epoch", wraps=train_epoch) as spy:
        state, history = fit(CONFIG, small, stop=stop)
    return state, history, [call.args[5] for call in spy.call_args_list], stop.call_count


def test_scores_and_logits_do_not_depend_on_the_evaluation_batch_size(small, whole):
    trained, images = make_setup(CONFIG, small).trained(whole[0]), small.test.images
    logits = jax.jit(partial(trained.model.apply, train=False))(trained.variables, trained.standardize(images))
    right = logits.argmax(-1) == small.test.labels
    for batch_size, size in ((1, 60), (7, 500), (250, 500), (500, 500), (1000, 500)):
        metrics = evaluate(trained, part(small, 1, size).test, batch_size)
        assert (metrics.count, metrics.correct) == (size, right[:size].sum())
        np.testing.assert_allclose(predict(trained, images[:size], batch_size), logits[:size], rtol=1e-4, atol=1e-5)
    expected, spans = predict(trained, images), runtime.compilations()
    traced = len(spans)
    for size in (0, 1, 250, 499):
        np.testing.assert_array_equal(predict(trained, images[:size]), expected[:size])
    assert len(spans) == traced  # One program for any number of images.


def test_the_weights_of_many_trainings_are_refused(small, whole):
    setup, both = make_setup(CONFIG, small), training.stack([whole[0], whole[0]])
    refused("2 trainings", setup.trained, both)
    for function, given in ((evaluate, small.test), (predict, small.test.images)):
        refused("^trained ", function, setup.with_variables(both.variables), given)


def test_an_epoch_is_a_permutation_and_the_remainder_rests(small):
    key, order_of = jax.random.key(3), epoch_order
    order = order_of(key, 1, 1000, 128)
    assert (order.shape, order.dtype, len(np.unique(order))) == ((7, 128), jnp.int32, 896)
    assert 0 <= order.min() < order.max() < 1000
    np.testing.assert_array_equal(order, order_of(key, 1, 1000, 128))
    assert (order != order_of(key, 2, 1000, 128)).mean() > 0.9
    assert (order != order_of(jax.random.key(4), 1, 1000, 128)).mean() > 0.9
    # Over the epochs every example gets its turn.
    seen = np.concatenate([np.asarray(order_of(key, epoch, 1000, 128)).ravel() for epoch in range(1, 11)])
    assert len(np.unique(seen)) == 1000
    assert steps_per_epoch(60_000, 128) == 468
    assert steps_per_epoch(128, 128) == 1
    refused("batch size 129", steps_per_epoch, 128, 129)
    refused("batch size 1001", fit, make_config(batch_size=1001), small)


def test_one_program_and_step_by_step_are_the_same_epoch(optimizing, small):
    """What a GPU or TPU runs, an epoch in one program, against what a CPU runs.

    By plain SGD: Muon scales whatever is small in a gradient up to full size, and rounding with it.
    """
    limits = {"rotation": 10.0, "shift": 2.0, "scale": 0.1, "shear": 0.1}
    config = make_config("reference", arch=CONFIG.arch, learning_rate=1.0, **limits)
    model = network_of(config).clone(layers=smooth())
    setup, order = make_setup(config, small, model=model), epoch_order(jax.random.key(0), 1, 1000, 128)[:3]
    arguments, seen = (small.train, order, jax.random.key(1), setup), []
    fresh, again = (start(config, small, model=model).state for _ in range(2))
    by_step, sums = train_epoch(fresh, *arguments, on_step=lambda i, totals: seen.append((i, int(totals.count))))
    assert seen == [(0, 128), (1, 256), (2, 384)]
    at_once, metrics = train_epoch(again, *arguments, whole=True)
    chex.assert_trees_all_close(by_step.variables, at_once.variables, atol=1e-5)
    assert by_step.step == at_once.step == 3
    chex.assert_trees_all_close(sums, metrics, rtol=1e-5)


def test_fit_is_reproducible_to_the_bit_and_compiles_once(optimizing, small, monkeypatch):
    """Over epochs, one distorted, seeds, and other statistics of the data: two steps, of training and scoring."""
    config, traces, epochs = dataclasses.replace(CONFIG, eval_batch_size=125), [], []

    def traced(plain):
        return lambda images, *about: traces.append(images.shape) or plain(images, *about)

    for name in ("standardize", "standardize_pixels"):
        monkeypatch.setattr(steps, name, traced(getattr(steps, name)))
    state, history = fit(config, small, on_epoch=lambda progress: epochs.append(progress.history[-1]))
    again, other = fit(config, small)
    chex.assert_trees_all_equal(state, again)
    assert without_seconds(history) == without_seconds(other)
    assert epochs == history
    assert ([entry.epoch for entry in history], state.step) == ([1, 2], 20)
    assert sorted(traces) == [(100, 28, 28, 1), (125, 28, 28, 1)]
    different, _ = fit(dataclasses.replace(config, seed=2), dataclasses.replace(small, mean=(0.2,), deviation=(0.4,)))
    assert jnp.abs(different.params["conv1"]["kernel"] - state.params["conv1"]["kernel"]).max() > 0
    assert len(traces) == 2


@pytest.mark.parametrize(("stops", "stood"), [([10], [10]), ([1, 8, 4], [1, 9, 13])])
def test_a_run_that_stops_and_goes_on_is_the_run_that_did_not(small, whole, stops, stood):
    """In mid-epoch, between epochs, several times; it is asked once after each step."""
    progress, steps_taken = None, []
    for asked in stops:
        progress = stopped(asked, fit, CONFIG, small, progress=progress)
        steps_taken.append(int(progress.state.step))
    state, history = fit(CONFIG, small, progress=progress)
    assert (steps_taken, whole[3]) == (stood, 20)
    chex.assert_trees_all_equal(state, whole[0])
    assert without_seconds(history) == without_seconds(whole[1])


def test_the_first_bad_step_is_named(optimizing, small):
    """In either way of looping, and whatever comes after it."""
    config = make_config("reference", arch=CONFIG.arch, batch_size=100)
    setup, state = make_setup(config, small), start(config, small).state
    arguments = small.train, epoch_order(jax.random.key(0), 1, 1000, 100), jax.random.key(1), setup
    params = {**state.params, "conv3": {"kernel": state.params["conv3"]["kernel"] * jnp.inf}}
    for at_once in (False, True):
        broken = jax.tree.map(jnp.copy, state._replace(params=params, step=jnp.int32(6)))
        _, totals = train_epoch(broken, *arguments, first=6, whole=at_once)
        assert totals.bad_step == 7
        _, totals = train_epoch(jax.tree.map(jnp.copy, state), *arguments, first=8, whole=at_once)
        assert totals.bad_step == 0


def test_fit_scores_the_average_and_its_last_epochs_see_the_images_as_they_are(small, whole):
    (state, history, strengths, _), setup = whole, make_setup(CONFIG, small)
    assert strengths == [1.0, 0.0]
    assert make_setup(make_config(epochs=2, plain_epochs=2), small).augment is None
    scores = evaluate(setup.trained(state), small.test).mean()
    assert scores == (history[-1].test_loss, history[-1].test_accuracy)
    assert evaluate(setup.trained(state._replace(average=None)), small.test).mean() != scores


def test_the_program_of_an_epoch_for_a_tpu(small):
    """No callbacks to the host, nothing in 64 bits, and of gathers only those that take a batch, or distort it."""
    setup, progress = make_setup(CONFIG, small), abstract_progress(CONFIG, small)
    order, channel = jax.ShapeDtypeStruct((7, 128), jnp.int32), jnp.ones(1)
    epoch = Epoch(small.train, order, jax.random.key(0), jnp.float32(1), channel, channel, None)
    traced = training.program(False, True).trace(0, *progress[:2], epoch, setup, steps.train_step, None)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "callback" not in text
    assert "f64" not in text
    attributes = r"dense<[^>]*> : tensor<[\dx]+xi64>"  # Paddings and such.
    assert not re.search(r"tensor<(\d+x)*i64>", re.sub(attributes, "", text))
    # Indices, images and labels of the batch, the logit of each label; where it is distorted, a pixel's neighbours.
    assert text.count('"stablehlo.gather"') <= 9


def test_real_mnist_in_a_few_hundred_steps(optimizing, mnist):
    """The whole path: 97% of the test images after 234 steps."""
    config = make_config("fast", arch="swift", epochs=1, plain_epochs=0, average_decay=0.9)
    state, history = fit(config, part(mnist, 30_000, 10_000))
    assert state.step == 234
    assert history[-1].test_accuracy >= 0.97
    chex.assert_tree_all_finite(state.params)
