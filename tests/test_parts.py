"""Own parts in place of a recipe's: data, network, loss, optimizer, augmentation; watching and stopping a fit."""

import dataclasses
import os
import pickle
import signal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import refused, stopped, without_seconds

import mnist_jax as mj

CONFIG = mj.make_config("reference", arch="4-pool-s4", epochs=2, batch_size=16, average_decay=0.9)  # 4 steps an epoch.


@pytest.fixture(scope="module")
def data():
    """80 images of 9x11 in three colors, of five classes."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 9, 11, 3), np.uint8), np.arange(80) % 5
    return mj.Dataset.from_arrays((images[:64], labels[:64]), (images[64:], labels[64:]), classes=tuple("abcde"))


@pytest.fixture(scope="module")
def whole(data):
    """A fit that nothing stops: the state, the history, and the progress of each epoch."""
    kept = []
    return *mj.fit(CONFIG, data, on_epoch=kept.append), kept


class Normed(nn.Module):
    """Has a parameter with a slash in its name, and one of 16 bits."""

    arch: str = "gap"
    classes: int = 5
    weights: object = None

    @nn.compact
    def __call__(self, x, *, train):
        return nn.WeightNorm(nn.Dense(self.classes, param_dtype=jnp.bfloat16))(x.mean((1, 2)))


class Odd(nn.Module):
    """Counts its calls in training, draws noise from a stream of its own, and sows."""

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("counter", "calls", jnp.zeros, (), jnp.int32)
        largest = self.variable("extremes", "largest", jnp.zeros, ())
        if train:
            x = x + 0.01 * jax.random.normal(self.make_rng("noise"), x.shape)
            if not self.is_initializing():
                calls.value += 1
                largest.value = x.max()
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        self.sow("losses", "size", jnp.square(x).mean())
        return nn.Dense(5)(x.mean((1, 2)))


def test_any_module_with_its_collections_and_streams(data):
    """It repeats to the bit, and stopped and resumed; floats are averaged, counters kept, what is sown is dropped."""
    whole, history = mj.fit(CONFIG, data, model=Odd())
    again, _ = mj.fit(CONFIG, data, model=Odd())
    chex.assert_trees_all_equal(whole, again)
    resumed, rest = mj.fit(CONFIG, data, model=Odd(), progress=stopped(3, mj.fit, CONFIG, data, model=Odd()))
    chex.assert_trees_all_equal(whole, resumed)
    assert without_seconds(rest) == without_seconds(history)
    assert set(whole.collections) == {"counter", "extremes"}
    assert whole.collections["counter"]["calls"] == whole.average["counter"]["calls"] == 8
    assert whole.collections["extremes"]["largest"] != whole.average["extremes"]["largest"]
    states, _ = mj.fit_seeds(CONFIG, data, seeds=[1, 2], model=Odd())
    assert states.collections["counter"]["calls"].tolist() == [8, 8]


@pytest.mark.parametrize("model", [Odd(), Normed()])
def test_own_modules_are_saved_and_loaded(data, tmp_path, model):
    state, _ = mj.fit(CONFIG, data, model=model)
    trained = mj.make_setup(CONFIG, data, model=model).trained(state)
    mj.save_weights(tmp_path / "w", trained)
    found = mj.load_weights(tmp_path / "w", model=model)
    np.testing.assert_array_equal(mj.predict(found, data.test.images), mj.predict(trained, data.test.images))
    assert (found.classes, found.image_shape) == (data.classes, (9, 11, 3))
    refused("are of an own module; give it: load_weights", mj.load_weights, tmp_path / "w")


@pytest.mark.parametrize("arch", mj.ARCHS)
def test_the_networks_take_other_images_and_classes(arch, data):
    labels = np.zeros(2, np.int32)
    other = dataclasses.replace(data, train=mj.Split(np.zeros((2, 31, 29, 3), np.uint8), labels))
    setup = mj.make_setup(mj.make_config(arch=arch, batch_size=2), other)
    variables = jax.eval_shape(lambda: mj.init_state(setup, jax.random.key(0)).variables)
    images = jax.ShapeDtypeStruct((2, 31, 29, 3), jnp.float32)
    assert jax.eval_shape(lambda v, x: setup.model.apply(v, x, train=False), variables, images).shape == (2, 5)
    small = dataclasses.replace(data, train=mj.Split(np.zeros((2, 4, 4, 3), np.uint8), labels))
    config = mj.make_config(arch=arch, batch_size=2)
    refused(f"images of 4x4 are too small for network '{arch}'", mj.make_setup, config, small)


def test_a_loss_may_use_the_network_several_times_and_its_gradient(data):
    """The batch statistics are those of its first call; draws differ from call to call."""
    outputs = {}

    def penalized(apply, images, labels, key):
        slope = jax.grad(lambda images: apply(images).sum())(images)
        logits = apply(2 * images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses + 0.01 * jnp.square(slope).sum((1, 2, 3)), logits

    def twice(apply, images, labels, key):
        first, second = apply(images), apply(images)
        jax.debug.callback(lambda x: outputs.update(differ=float(x)), jnp.abs(first - second).max())
        return optax.softmax_cross_entropy_with_integer_labels(first, labels), first

    key, batch = jax.random.key(0), (data.train.images[:16], data.train.labels[:16])
    plain = mj.make_setup(CONFIG, data)
    state, step = mj.init_state(plain, key), mj.jit(mj.train_step, static_argnames="setup")
    expected, _ = step(state, *batch, key, plain)
    found, metrics = step(state, *batch, key, plain._replace(loss=penalized))
    chex.assert_trees_all_close(found.collections, expected.collections, rtol=1e-5, atol=1e-6)
    assert np.isfinite(metrics.loss)

    config = mj.make_config("reference", arch="bn_dropout", batch_size=2, dropout_rate=0.5)
    large = dataclasses.replace(data, train=mj.Split(np.ones((2, 28, 28, 3), np.uint8), np.zeros(2, np.int32)))
    setup = mj.make_setup(config, large, loss=twice)
    jax.block_until_ready(step(mj.init_state(setup, key), *large.train, key, setup))
    jax.effects_barrier()
    assert outputs["differ"] > 0


def test_a_teacher_is_a_closure_and_what_is_reported_is_what_the_loss_gives(data, whole):
    teacher = whole[0]
    model = mj.make_setup(CONFIG, data).model

    def distill(apply, images, labels, key):
        del key
        logits, wanted = apply(images), model.apply(teacher.variables, images, train=False)
        return optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(wanted)), logits

    _, history = mj.fit(CONFIG, data, loss=distill)
    assert history[-1].train_loss < 0.1 < history[-1].test_loss  # A divergence, and a plain cross-entropy of 5 classes.


def test_the_loss_from_logits_is_the_recipes_own(data, whole):
    """And smoothing by hand is the recipe's smoothing, but for what is reported."""
    cross_entropy = mj.losses.from_logits(optax.softmax_cross_entropy_with_integer_labels)
    own, history = mj.fit(CONFIG, data, loss=cross_entropy)
    chex.assert_trees_all_equal(whole[0], own)
    assert without_seconds(whole[1]) == without_seconds(history)

    def smoothed(logits, labels):
        return optax.softmax_cross_entropy(logits, optax.smooth_labels(jax.nn.one_hot(labels, 5), 0.2))

    recipe, plainly = mj.fit(dataclasses.replace(CONFIG, label_smoothing=0.2), data)
    by_hand, reported = mj.fit(CONFIG, data, loss=mj.losses.from_logits(smoothed))
    chex.assert_trees_all_close(recipe.params, by_hand.params, atol=1e-5)
    assert plainly[0].train_loss < reported[0].train_loss


def test_an_own_augmentation_acts_in_every_epoch(data):
    seen = []

    def blank(key, images):
        seen.append((images.dtype, images.shape))
        return jnp.zeros_like(images)

    config = dataclasses.replace(CONFIG, rotation=5.0, plain_epochs=1)
    _, history = mj.fit(config, data, augment=blank)
    assert set(seen) == {(jnp.dtype("float32"), (16, 9, 11, 3))}
    # On blank images alone nothing but the classes' shares can be learned.
    assert all(entry.train_loss > 1.5 for entry in history)


def test_any_optimizer_with_many_seeds(data):
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, nesterov=True))
    states, _ = mj.fit_seeds(CONFIG, data, seeds=[1, 2], optimizer=optimizer)
    alone, _ = mj.fit(dataclasses.replace(CONFIG, seed=2), data, optimizer=optimizer)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], states.params), alone.params, atol=1e-5)


def test_parts_and_settings_that_do_not_fit_are_refused_by_name(data):
    smooth, plain, ten = dataclasses.replace(CONFIG, label_smoothing=0.1), mj.losses.CrossEntropy(), Normed(classes=10)
    refused("label smoothing 0.1 .* choose label_smoothing=0", mj.fit, smooth, data, loss=plain)
    refused(r"model gives \(2, 10\) for 2 images, and the data has 5 classes", mj.fit, CONFIG, data, model=ten)
    refused("model is a str; give a Flax module", mj.make_setup, CONFIG, data, model="gap")
    refused("model cannot be hashed", mj.fit, CONFIG, data, model=Normed(weights=np.zeros(3)))
    refused("optimizer needs 'value'", mj.fit, CONFIG, data, optimizer=optax.polyak_sgd())
    refused(r"losses \(\) .* return losses \(16,\)", mj.fit, CONFIG, data, loss=lambda a, x, y, k: (a(x).sum(), a(x)))
    refused("data is a tuple; make a Dataset", mj.fit, CONFIG, (data.train, data.test))
    small = mj.load_pretrained("small")
    refused("images have shape 9x11x3; the network takes 28x28x1", mj.predict, small, data.test.images)
    refused(r"augment gives shape \(8, 9, 11, 3\)", mj.fit, CONFIG, data, augment=lambda key, images: images[:8])
    refused("optimizer cannot take a step", mj.fit, CONFIG, data, optimizer=optax.lookahead(optax.sgd(0.1), 5, 0.5))

    def checkpointed(apply, images, labels, key):
        logits = jax.checkpoint(apply)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels), logits

    refused("the loss calls apply under jax.jit, vmap, checkpoint", mj.fit, CONFIG, data, loss=checkpointed)

    trained = mj.make_setup(CONFIG, data).trained(mj.start(CONFIG, data).state)
    assert mj.predict(trained, data.test.images[:0]).shape == (0, 5)
    refused("there are no images to score", mj.evaluate, trained, mj.Split(*(part[:0] for part in data.test)))
    other = dataclasses.replace(CONFIG, batch_size=8)
    refused(r"configs differ in batch size \(16, 8\)", mj.fit_many, [CONFIG, other], data)
    refused(r"configs \[\]", mj.fit_many, [], data)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_many_settings_are_the_settings_alone(data, optimizer, monkeypatch):
    """One after the other, and in one program, as on a GPU; in the order of the configs."""
    base = dataclasses.replace(CONFIG, optimizer=optimizer, epochs=1, plain_epochs=0)
    varied = [{}, {"learning_rate": 0.02, "seed": 4}, {"weight_decay": 0.1, "momentum": 0.5, "shift": 1.0}]
    configs = [dataclasses.replace(base, **settings) for settings in varied]
    states, histories = mj.fit_many(configs, data)
    for i, config in enumerate(configs):
        alone, history = mj.fit(config, data)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, i=i: leaf[i], states.params), alone.params)
        assert without_seconds(histories[i]) == without_seconds(history)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    together, others = mj.fit_many(configs, data)
    chex.assert_trees_all_close(together.params, states.params, atol=2e-4)
    assert [[entry[:3] for entry in history] for history in others] == [
        [pytest.approx(entry[:3], abs=1e-3) for entry in history] for history in histories
    ]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_many_settings_go_on_where_they_stopped(data, backend, monkeypatch):
    """On a CPU the configs that were finished are not trained again."""
    configs = [dataclasses.replace(CONFIG, seed=seed) for seed in (1, 2)]
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    whole, histories = mj.fit_many(configs, data)
    asked = iter([False] * (10 if backend == "cpu" else 0) + [True])
    with pytest.raises(mj.Stopped, match=r"continue with progress=stopped\.progress$") as stopped:
        mj.fit_many(configs, data, stop=lambda: next(asked))
    progress = pickle.loads(pickle.dumps(stopped.value)).progress
    assert backend == "gpu" or [one.steps for one in progress] == [8, 2]
    resumed, rest = mj.fit_many(configs, data, progress=progress)
    chex.assert_trees_all_equal(whole, resumed)
    assert [without_seconds(one) for one in rest] == [without_seconds(one) for one in histories]


def test_what_a_callback_is_given_stays_usable(data, whole):
    state, _, kept = whole
    chex.assert_trees_all_equal(kept[-1].state, state)
    for progress in (kept[0], kept[0]):
        chex.assert_trees_all_equal(mj.fit(CONFIG, data, progress=progress)[0], state)
    ended, one = mj.fit(CONFIG, data, on_epoch=lambda progress: True)
    chex.assert_trees_all_equal(ended, kept[0].state)
    assert len(one) == 1
    assert len(repr(whole)) < 2000


def test_progress_of_another_training_is_refused(data, whole):
    kept = whole[2]
    other = dataclasses.replace(CONFIG, batch_size=32)
    refused("progress is of another training: 1 epochs and step 4, but", mj.fit, other, data, progress=kept[0])
    fewer = dataclasses.replace(CONFIG, epochs=1)
    refused("progress is of another training: 2 epochs", mj.fit, fewer, data, progress=kept[1])
    model = mj.make_config("reference", arch="4-pool-s5", epochs=2, batch_size=16, average_decay=0.9)
    refused(r"progress is of another training: .* has shape", mj.fit, model, data, progress=kept[0])


def press(times):
    """An `on_step` that presses Ctrl-C at the second step, so many times."""

    def on_step(epoch, i, totals):
        for _ in range(times if (epoch, i) == (1, 1) else 0):
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


@pytest.fixture
def sigint():
    """The handler of a process by itself: a worker of pytest-xdist ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_stops_after_a_step_and_a_second_one_at_once(data, whole, sigint):
    with pytest.raises(mj.Stopped, match=r"^stopped after step 3; continue with progress=") as first:
        mj.fit(CONFIG, data, on_step=press(1))
    assert signal.getsignal(signal.SIGINT) is sigint
    with pytest.raises(KeyboardInterrupt):
        mj.fit(CONFIG, data, on_step=press(2))
    with pytest.raises(mj.Stopped) as last:  # In the last epoch, so that a loop over fits ends too.
        mj.fit(CONFIG, data, on_epoch=lambda p: len(p.history) == 2 and os.kill(os.getpid(), signal.SIGINT))
    for found in (first.value, pickle.loads(pickle.dumps(last.value))):
        chex.assert_trees_all_equal(mj.fit(CONFIG, data, progress=found.progress)[0], whole[0])
    assert signal.getsignal(signal.SIGINT) is sigint
