"""Own parts in place of a recipe's: data, network, loss, optimizer, augmentation, step, order; watching a fit."""

import dataclasses
import os
import pickle
import signal
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import refused, stopped, without_seconds
from flax import nnx

import mnist_jax as mj

CONFIG = mj.make_config("reference", arch="4-pool-s4", epochs=2, batch_size=16, average_decay=0.9)  # 4 steps an epoch.
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: name == "/jax/core/compile/backend_compile_duration" and compilations.append(name)
)


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
    assert [state.collections["counter"]["calls"] for state in states] == [8, 8]


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
    large, tiny = (mj.Split(np.zeros((2, *shape, 3), np.uint8), np.zeros(2, np.int32)) for shape in ((31, 29), (4, 4)))
    other = dataclasses.replace(data, train=large, test=large)
    setup = mj.make_setup(mj.make_config(arch=arch, batch_size=2), other)
    variables = jax.eval_shape(lambda: mj.init_state(setup, jax.random.key(0)).variables)
    images = jax.ShapeDtypeStruct((2, 31, 29, 3), jnp.float32)
    assert jax.eval_shape(lambda v, x: setup.model.apply(v, x, train=False), variables, images).shape == (2, 5)
    small = dataclasses.replace(data, train=tiny, test=tiny)
    config = mj.make_config(arch=arch, batch_size=2)
    refused(f"images of 4x4 are too small for network '{arch}'", mj.make_setup, config, small)


def test_draws_of_a_loss_come_from_its_key(data):
    def thrice(apply, params, images, labels, key):
        (first, kept), (second, _), (third, _) = (apply(params, images, *keys) for keys in ((), (), (key,)))
        return first.mean(), (jnp.abs(first - second).max(-1), first - third, kept)

    key, batch = jax.random.key(0), (data.train.images[:4], data.train.labels[:4])
    setup = mj.make_setup(CONFIG, data, model=Odd(), loss=thrice)
    (_, (repeated, different, _)), _ = mj.value_and_grad(mj.init_state(setup, key), *batch, key, setup)
    assert not repeated.any()
    assert different.all()


@pytest.mark.parametrize("transformed", ["loop", "examples"])
def test_a_loss_may_transform_the_network(data, transformed):
    """An attack in a loop, with memory saved, and gradients per example: as by hand, but for rounding."""

    def loss(by_hand, apply, params, images, labels, key):
        def ascend(_, images):
            return images + jax.grad(lambda images: cross_entropy(apply(params, images)[0], labels).sum())(images)

        def size(image, label):
            slope = jax.grad(lambda params: cross_entropy(apply(params, image[None])[0], label[None]).sum())(params)
            return optax.tree.norm(slope, squared=True)

        extra = jnp.zeros(len(labels))
        if transformed == "loop":
            images = ascend(1, ascend(0, images)) if by_hand else jax.lax.fori_loop(0, 2, ascend, images)
        elif by_hand:
            extra = 0.01 * jnp.stack([size(*example) for example in zip(images, labels, strict=True)])
        else:
            extra = 0.01 * jax.vmap(size)(images, labels)
        logits, collections = (apply if by_hand else jax.checkpoint(apply))(params, images)
        losses = cross_entropy(logits, labels) + extra
        return losses.mean(), (losses, logits, collections)

    key, batch = jax.random.key(0), (data.train.images[:3], data.train.labels[:3])
    setups = [mj.make_setup(CONFIG, data, model=Odd(), loss=partial(loss, by_hand)) for by_hand in (True, False)]
    gradient = mj.jit(mj.value_and_grad, static_argnames="setup")
    expected, found = (gradient(mj.init_state(setup, key), *batch, key, setup) for setup in setups)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_is_a_closure_and_what_is_reported_is_what_the_loss_gives(data, whole):
    teacher = whole[0]
    model = mj.make_setup(CONFIG, data).model

    def distill(apply, params, images, labels, key):
        del key
        (logits, collections), wanted = apply(params, images), model.apply(teacher.variables, images, train=False)
        losses = optax.losses.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(wanted))
        return losses.mean(), (losses, logits, collections)

    _, history = mj.fit(CONFIG, data, loss=distill)
    assert history[-1].train_loss < 0.1 < history[-1].test_loss  # A divergence, and a plain cross-entropy of 5 classes.


def test_the_loss_from_logits_is_the_recipes_own(data, whole):
    """And smoothing by hand is the recipe's smoothing, but for what is reported."""
    own, history = mj.fit(CONFIG, data, loss=mj.losses.from_logits(cross_entropy))
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
        seen.append((images.dtype, images.shape[1:]))
        return jnp.zeros_like(images)

    _, history = mj.fit(CONFIG, data, augment=blank)
    assert set(seen) == {(jnp.dtype("float32"), (9, 11, 3))}
    # On blank images alone nothing but the classes' shares can be learned.
    assert all(entry.train_loss > 1.5 for entry in history)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.lion(1e-2)),
        optax.lbfgs(memory_size=2, linesearch=optax.scale_by_backtracking_linesearch(3)),  # Needs `value_fn`,
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),  # and this `grad_fn`.
    ],
    ids=["lion", "lbfgs", "sam"],
)
def test_any_optimizer_also_with_many_seeds(data, optimizer, monkeypatch):
    alone, history = mj.fit(CONFIG, data, optimizer=optimizer)
    assert history[1].train_loss < history[0].train_loss
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    states, _ = mj.fit_seeds(CONFIG, data, seeds=[CONFIG.seed, 2], optimizer=optimizer)
    chex.assert_trees_all_close(states[0].params, alone.params, atol=1e-3)


def test_own_step_and_own_order(data, whole):
    same = {"step": lambda *args: mj.train_step(*args), "order": lambda *args: np.asarray(mj.epoch_order(*args))}
    chex.assert_trees_all_equal(mj.fit(CONFIG, data, **same)[0], whole[0])

    def summed(state, images, labels, *rest):
        state, metrics = mj.train_step(state, images, labels, *rest)
        return state, metrics._replace(correct=labels.sum())

    def fours(key, epoch, num_examples, batch_size):
        return np.resize(np.flatnonzero(data.train.labels == 4), (num_examples // batch_size, batch_size))

    _, history = mj.fit(CONFIG, data, step=summed, order=fours)
    assert [entry.train_accuracy for entry in history] == [4, 4]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_warm_start_has_the_weights(data, whole, backend, monkeypatch):
    """The averages, if there are some; a learning rate of 0 keeps them."""
    initial, optimizer = mj.make_setup(CONFIG, data).trained(whole[0]), optax.sgd(0.0)
    begun = mj.start(CONFIG, data, initial=initial).state
    chex.assert_trees_all_equal({"params": begun.params, **begun.collections}, whole[0].variables)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    configs = [dataclasses.replace(CONFIG, rotation=rotation) for rotation in (0.0, 5.0)]  # Numbers are varied, too.
    for many in ({"configs": configs}, {"configs": configs[:1] * 2}):
        for state in mj.fit_many(**many, data=data, initial=initial, optimizer=optimizer)[0]:
            chex.assert_trees_all_equal(state.params, whole[0].variables["params"])
    other = dataclasses.replace(CONFIG, arch="4-pool-s5")
    for configs in ([other] * 2, [other, dataclasses.replace(other, learning_rate=0.1)]):
        refused("^initial is of another network", mj.fit_many, configs, data, initial=initial)


def test_data_of_other_statistics_compile_nothing_anew(data):
    images, means, counts = np.concatenate([data.train.images, data.test.images]), set(), []
    for fold in np.split(np.arange(80), 4):
        rest = np.setdiff1d(np.arange(80), fold)
        other = mj.Dataset.from_arrays(*((images[part], part % 5) for part in (rest, fold)), classes=data.classes)
        state, _ = mj.fit(CONFIG, other)
        trained = mj.make_setup(CONFIG, other).trained(state)
        mj.predict(trained, other.test.images), mj.evaluate(trained, other.test)
        means.add(other.mean)
        counts.append(len(compilations))
    assert len(means) == 4
    assert counts[3] == counts[0] > 0


class Plain(nn.Module):
    """Has no `train`."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(5)(x.mean((1, 2)))


INDICES = np.zeros((4, 16), int)
WRONG = [
    ("model", [Plain(), nn.Sequential([nn.Dense(5)]), "gap", Normed(weights=np.zeros(3))]),
    ("model", [nnx.Linear(3, 5, rngs=nnx.Rngs(0)), lambda images, train: images]),  # As of equinox: not of linen.
    ("optimizer", [optax.lookahead(optax.sgd(0.1), 5, 0.5), optax.sgd]),
    ("loss", [optax.softmax_cross_entropy, cross_entropy, mj.losses.from_logits(optax.softmax_cross_entropy)]),
    ("loss", [mj.losses.from_logits(lambda logits, labels: cross_entropy(logits, labels).mean())]),
    ("loss", [lambda apply, params, images, labels, key: apply(params, images)[0].mean()]),
    ("augment", [lambda images: images, lambda key, images: images[:4], lambda key, images: None]),
    ("step", [lambda state, images, labels: (state, None), lambda state, *args: state]),
    ("order", [lambda key: INDICES, lambda *args: INDICES + 64, lambda *args: INDICES - 1, lambda *args: INDICES.T]),
    ("order", [lambda *args: INDICES / 1, lambda *args: [[0], [1, 2]]]),
    ("on_epoch", [lambda progress: 1, lambda progress: np.ones(2)]),
    ("initial", [{}]),
    ("progress", [{}]),
]


@pytest.mark.parametrize(("name", "part"), [(name, part) for name, parts in WRONG for part in parts])
def test_wrong_parts_are_refused_by_name(data, name, part):
    # Labels fit one-hot targets by chance in a batch of as many images as there are classes.
    for config in (CONFIG, dataclasses.replace(CONFIG, batch_size=5))[: 1 + (name == "loss")]:
        refused(f"^(the )?{name}\\b", mj.fit, config, data, **{name: part})


def test_settings_that_a_part_replaces_are_refused(data):
    augment = {"augment": lambda key, images: images}
    for name, value, part in (
        ("rotation", 5.0, augment),
        ("plain_epochs", 1, augment),
        ("learning_rate", 0.5, {"optimizer": optax.sgd(0.1)}),
        ("precision", "bfloat16", {"model": Odd()}),
        ("label_smoothing", 0.1, {"loss": mj.losses.CrossEntropy()}),
    ):
        match = f"^{name.replace('_', ' ')} .*{next(iter(part))}.*{name}="
        refused(match, mj.fit, dataclasses.replace(CONFIG, **{name: value}), data, **part)


def test_parts_and_settings_that_do_not_fit_are_refused_by_name(data):
    refused(r"model .*\b10\b.* 5 classes", mj.fit, CONFIG, data, model=Normed(classes=10))
    refused("data is a tuple", mj.fit, CONFIG, (data.train, data.test))
    small = mj.load_pretrained("small")
    refused("images have shape 9x11x3; the network takes 28x28x1", mj.predict, small, data.test.images)
    trained = mj.make_setup(CONFIG, data).trained(mj.start(CONFIG, data).state)
    assert mj.predict(trained, data.test.images[:0]).shape == (0, 5)
    refused("there are no images to score", mj.evaluate, trained, mj.Split(*(part[:0] for part in data.test)))
    other = dataclasses.replace(CONFIG, batch_size=8)
    refused(r"configs differ in batch size \(16, 8\)", mj.fit_many, [CONFIG, other], data)
    refused(r"configs \[\]", mj.fit_many, [], data)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_many_settings_are_the_settings_alone(data, optimizer, monkeypatch):
    """One after the other, and in one program, as on a GPU; in the order of the configs."""
    base = dataclasses.replace(CONFIG, optimizer=optimizer, epochs=1, plain_epochs=0)
    varied = [{}, {"learning_rate": 0.02, "seed": 4}, {"weight_decay": 0.1, "momentum": 0.5, "shift": 1.0}]
    configs = [dataclasses.replace(base, **settings) for settings in varied]
    states, histories = mj.fit_many(configs, data)
    for i, config in enumerate(configs):
        alone, history = mj.fit(config, data)
        chex.assert_trees_all_equal(states[i], alone)
        assert without_seconds(histories[i]) == without_seconds(history)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    together, others = mj.fit_many(configs, data)
    for one, expected in zip(together, states, strict=True):
        chex.assert_trees_all_close(one.params, expected.params, atol=2e-4)
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
    assert backend == "gpu" or [one.steps for one in progress] == [8, 3]
    for _ in range(2):  # It can be used twice.
        resumed, rest = mj.fit_many(configs, data, progress=progress)
        chex.assert_trees_all_equal(whole, resumed)
        assert [without_seconds(one) for one in rest] == [without_seconds(one) for one in histories]
    refused("^progress .*seed", mj.fit_many, configs[::-1], data, progress=progress)
    for wrong in (progress[0], progress * 2, [0]):
        refused("^progress", mj.fit_many, configs, data, progress=wrong)


def test_the_arguments_of_a_callback_stay_usable(data, whole):
    state, _, kept = whole
    chex.assert_trees_all_equal(kept[-1].state, state)
    for progress in (kept[0], kept[0]):
        chex.assert_trees_all_equal(mj.fit(CONFIG, data, progress=progress)[0], state)
    ended, one = mj.fit(CONFIG, data, on_epoch=lambda progress: True)
    chex.assert_trees_all_equal(ended, kept[0].state)
    assert len(one) == 1
    assert len(repr(whole)) < 2000


def test_progress_of_another_training_is_refused(data, whole):
    kept = whole[2][0]
    changes = {"batch_size": 32, "momentum": 0.5, "seed": 2, "arch": "4-pool-s5"}
    for name, value in changes.items():
        config = dataclasses.replace(CONFIG, **{name: value})
        match = f"^progress .*{name.replace('_', ' ')} was {getattr(CONFIG, name)!r}, now {value!r}"
        refused(match, mj.fit, config, data, progress=kept)
    parts = {"model": Odd(), "optimizer": optax.sgd(0.1), "loss": mj.losses.from_logits(cross_entropy)}
    for name, part in (parts | {"augment": lambda key, images: images, "order": mj.epoch_order}).items():
        refused(f"^progress .*{name}", mj.fit, CONFIG, data, progress=kept, **{name: part})
    other = dataclasses.replace(data, test=data.train)
    refused("^progress .*data", mj.fit, CONFIG, other, progress=kept)
    unknown = kept._replace(identity=type(kept.identity)())
    refused("^progress .*3 epochs", mj.fit, CONFIG, data, progress=unknown._replace(history=kept.history * 3))
    refused("^progress .*shape", mj.fit, dataclasses.replace(CONFIG, arch="4-pool-s5"), data, progress=unknown)


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
