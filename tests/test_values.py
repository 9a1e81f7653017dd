"""Values travel to other processes, and work where JAX has other defaults."""

import contextlib
import dataclasses
import pickle
import subprocess
import sys
from unittest import mock

import chex
import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import without_seconds

import mnist_jax as mj
from mnist_jax import runtime, training
from mnist_jax.augment import EveryEpoch
from mnist_jax.deploy import export
from mnist_jax.models import KERNEL_INITS

CONFIG = mj.make_config(arch="4-pool", epochs=2, plain_epochs=1, batch_size=8, optimizer="sgd")


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def cloudpickled(value):
    return cloudpickle.loads(cloudpickle.dumps(value))


copies = pytest.mark.parametrize("copied", [pickled, cloudpickled])


@pytest.fixture(scope="module")
def data():
    """Two steps an epoch."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 8, 8, 1), np.uint8), np.arange(24) % 3
    return mj.Dataset.from_arrays((images[:16], labels[:16]), (images[16:], labels[16:]))


@contextlib.contextmanager
def other_defaults():
    with runtime._enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.threefry_partitionable(False):
        yield


def plain(tree):
    """The leaves as NumPy arrays, keys too."""
    keys = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key), tree)
    return jax.tree.map(lambda leaf, key: np.asarray(jax.random.key_data(leaf) if key else leaf), tree, keys)


def assert_same(some, others):
    chex.assert_trees_all_equal(plain(some), plain(others))
    chex.assert_trees_all_equal_dtypes(plain(some), plain(others))


@copies
def test_static_values_are_equal_and_hash_alike_when_copied(copied, data):
    values = [
        *(mj.make_model(arch, kernel_init=initial) for arch in mj.ARCHS for initial in KERNEL_INITS.values()),
        *(mj.make_model(arch, layers=mj.FLAX, dtype=jnp.bfloat16) for arch in ("16f-16k5p", "8-8-=2-pool-s16")),
        *(CONFIG, mj.FAST, mj.FLAX, mj.make_distortion(CONFIG), EveryEpoch(np.flip)),
        mj.losses.from_logits(optax.softmax_cross_entropy_with_integer_labels),
    ]
    for value in values:
        again = copied(value)
        assert (type(again), again, hash(again)) == (type(value), value, hash(value))
        assert not isinstance(value, mj.Config) or dataclasses.replace(again) == value
    setup, again = mj.make_setup(CONFIG, data), mj.make_setup(*map(copied, (CONFIG, data)))
    assert (again, hash(again)) == (setup, hash(setup))


@copies
def test_values_with_arrays_are_the_same_when_copied(copied, data):
    progress = mj.start(CONFIG, data)
    stopped, trained = mj.Stopped(progress), mj.make_setup(CONFIG, data).trained(progress.state)
    for value in (progress, mj.Streams.from_seed(1), trained, data.test):
        assert_same(copied(value), value)
        assert jax.tree.structure(copied(value)) == jax.tree.structure(value)
    assert copied(data).sha256 == data.sha256
    assert str(copied(stopped)) == str(stopped)
    assert_same(copied(stopped).progress, progress)


FAR = """
import pickle, sys
import jax.numpy as jnp
import mnist_jax as mj
assert jnp.zeros(1).dtype == "float64"
config, data, trained = pickle.load(sys.stdin.buffer)
state, history = mj.fit(config, data)
sys.stdout.buffer.write(pickle.dumps((state, history, mj.predict(trained, data.test.images))))
"""


def test_another_process_with_other_defaults_has_the_same_bits(data, environment):
    state, history = mj.fit(CONFIG, data)
    trained = mj.make_setup(CONFIG, data).trained(state)
    others = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    others |= {"JAX_RANDOM_SEED_OFFSET": "7", "JAX_THREEFRY_PARTITIONABLE": "0"}
    sent, command = pickle.dumps((CONFIG, data, trained)), [sys.executable, "-W", "error", "-c", FAR]
    far = subprocess.run(command, input=sent, capture_output=True, env=environment | others)
    assert not far.returncode, far.stderr.decode()
    there = pickle.loads(far.stdout)
    assert_same((there[0], there[2]), (state, mj.predict(trained, data.test.images)))
    assert without_seconds(there[1]) == without_seconds(history)


def by_hand(data, path):
    setup, streams = mj.make_setup(CONFIG, data), mj.Streams.from_seed(2**32 - 1)
    state, step = mj.init_state(setup, streams.init), mj.jit(mj.train_step, static_argnames="setup")
    for batch in map(np.asarray, mj.epoch_order(streams.order, 1, 16, 8)):
        images, labels = data.train.images[batch], data.train.labels[batch].astype(np.int64)
        state, metrics = step(state, images, labels, streams.step, setup, 0.5)
    return state, metrics


def many(data, path):
    configs = [dataclasses.replace(CONFIG, learning_rate=rate) for rate in (0.01, 0.02)]
    model = mj.make_model("4-pool", num_classes=3, layers=mj.FLAX)
    loss = mj.losses.from_logits(optax.softmax_cross_entropy_with_integer_labels)
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        return mj.fit_many(configs, data, model=model, loss=loss)[0]


def finished(data, path):
    """A network that was saved, at work."""
    mj.save_weights(path, mj.make_setup(CONFIG, data).trained(mj.start(CONFIG, data).state))
    trained, images = mj.load_weights(path), data.test.images
    program = jax.export.deserialize(export.to_stablehlo(trained))
    layers = mj.layers_of(trained.model, data.image_shape)
    assert [layer.kind for layer in layers if layer.params] == ["Conv", "BatchNorm", "Conv"]
    weights = [op.weights for op in export.operations(trained) if op.weights is not None]
    scores = mj.evaluate(trained, data.test)
    return trained.variables, trained.standardize(images), scores, weights, program.call(images)


@pytest.mark.parametrize("use", [by_hand, many, finished])
def test_with_other_defaults_everything_works_to_the_bit(use, data, tmp_path):
    """And what was compiled is used again."""
    with other_defaults():
        others = use(data, tmp_path / "w")
        assert jnp.zeros(1).dtype == np.float64
    assert_same(others, use(data, tmp_path / "w"))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_streams_are_those_of_jax(seed):
    assert_same(tuple(mj.Streams.from_seed(seed)), tuple(jax.random.split(jax.random.key(seed), 3)))


def test_copies_compile_nothing_anew(data):
    state, _ = mj.fit(CONFIG, data)
    step = training.program(False, False)
    programs = step._cache_size()
    config, again = pickle.loads(pickle.dumps((CONFIG, data)))
    with other_defaults():
        assert_same(mj.fit(config, again)[0], state)
    model = pickle.loads(pickle.dumps(mj.make_setup(CONFIG, data).model))
    assert_same(mj.fit(config, again, model=model)[0], state)
    assert step._cache_size() == programs
