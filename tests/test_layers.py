"""Layers against Flax, XLA and float64: values, gradients, statistics, lowering."""

import itertools
from collections.abc import Callable
from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import STRUCTURES, assert_near, initial_variables, smooth, training_pass
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from mnist_jax import init_state, load_pretrained, make_config, make_model, make_setup, runtime, train_step
from mnist_jax.layers import FAST, FLAX
from mnist_jax.layers.batch_norm import BatchNorm, _batch_norm
from mnist_jax.layers.convolution import conv_general_dilated
from mnist_jax.layers.dropout import Dropout, _dropout, keep_mask
from mnist_jax.layers.pooling import max_pool, relu

# Every example compiles anew.
quick = settings(max_examples=12, deadline=None, derandomize=True)
few = settings(quick, max_examples=6)
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


# Its name before jax 0.8.
float64 = partial(jax.enable_x64, True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


def conv(x, kernel, padding, feature_group_count=1):
    options = {"dimension_numbers": DIMENSIONS, "feature_group_count": feature_group_count}
    return conv_general_dilated(x, kernel, (1, 1), padding, **options)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


close = partial(assert_near, share=1e-5)  # What float32 sums of this length allow.


def value_and_gradients(function, *arguments, options=None):
    """The value, the gradients of sum(g * value) for a random g, and whatever else `function` gives: one program."""
    shape = jax.tree.leaves(jax.eval_shape(function, *arguments))[0].shape
    g = normal(2, *shape).astype(arguments[0].dtype)

    def run(g, *arguments):
        (value, *rest), back = jax.vjp(lambda *arguments: jax.tree.leaves(function(*arguments)), *arguments)
        return value, *back([g, *map(jnp.zeros_like, rest)]), *rest

    return jax.tree.map(np.asarray, jax.jit(run, compiler_options=options)(g, *arguments))


def check_conv(x, kernel, padding, groups=1, compiler=None):
    """Value and both gradients equal those of XLA's convolution in float64."""
    options = {"padding": padding, "feature_group_count": groups}
    exact = partial(lax.conv_general_dilated, window_strides=(1, 1), dimension_numbers=DIMENSIONS, **options)
    with float64():
        wanted = value_and_gradients(exact, x.astype(np.float64), kernel.astype(np.float64), options=compiler)
    close(value_and_gradients(partial(conv, **options), x, kernel, options=compiler), wanted)


@st.composite
def convolutions(draw):
    size = st.integers(1, 3)
    kernel = draw(size), draw(size)
    beyond = draw(st.sampled_from([0, 0, 1]))  # 1: also padding too wide for a fast form
    side = [st.integers(0, k - 1 + 2 * beyond) for k in kernel]
    sides = [(draw(one), draw(one)) for one in side]
    image = [draw(st.integers(max(k - sum(pair), 1), 13)) for k, pair in zip(kernel, sides, strict=True)]
    channels = st.sampled_from([1, 2, 3, 10, 16, 17, 32])
    return draw(st.integers(1, 9)), image, kernel, tuple(sides), draw(channels), draw(channels)


@pytest.mark.parametrize("depthwise", [False, True])
@quick
@given(case=convolutions())
def test_convolution_equals_float64(depthwise, case):
    batch, image, kernel, padding, inputs, outputs = case
    shape = (*kernel, 1, inputs) if depthwise else (*kernel, inputs, outputs)
    check_conv(normal(0, batch, *image, inputs), normal(1, *shape), padding, groups=inputs if depthwise else 1)


SIZES = [(28, 3, 0, 1, 16), (26, 3, 0, 16, 16), (24, 1, 0, 16, 16)]
SIZES += [(6, 3, 1, 10, 10), (7, 7, 0, 10, 10), (9, 3, 0, 64, 128)]


@pytest.mark.parametrize(("image", "kernel", "padding", "inputs", "outputs"), SIZES)
def test_convolutions_of_the_networks(optimizing, image, kernel, padding, inputs, outputs):
    x, k = normal(0, 128, image, image, inputs), normal(1, kernel, kernel, inputs, outputs)
    check_conv(x, k, ((padding, padding),) * 2, compiler=runtime.compiler_options(False))


PADDINGS = st.sampled_from(["SAME", "VALID", "CIRCULAR", "REFLECT", 1, (1, (0, 2))])


@few
@given(PADDINGS, st.sampled_from([(), (2,), (2, 3)]), st.sampled_from([1, 4]), st.booleans())
def test_convolution_layer_equals_flax(padding, batch, groups, use_bias):
    options = {"padding": padding, "feature_group_count": groups, "use_bias": use_bias}
    ours, flax = (layers.conv(4, (3, 3), **options) for layers in (FAST, FLAX))
    x = normal(0, *batch, 9, 8, 4)
    variables = flax.init(jax.random.key(0), x)
    found, wanted = (value_and_gradients(lambda x, v, f=f: f.apply(v, x), x, variables) for f in (ours, flax))
    close(found, wanted)


def program(function, *arguments):
    return str(jax.make_jaxpr(function)(*arguments))


OTHERS = [{name: 2} for name in ("strides", "kernel_dilation", "feature_group_count")]
OTHERS += [{"precision": "highest"}, {"padding": 3}, {"dtype": jnp.complex64}, {"kernel_size": (3,)}]


@pytest.mark.parametrize("options", OTHERS)
def test_other_convolution_layers_are_flax_s(options):
    options = {"kernel_size": (3, 3)} | options
    ours, flax = (layers.conv(8, **options) for layers in (FAST, FLAX))
    x = normal(0, 2, *(9,) * len(options["kernel_size"]), 4)
    variables = jax.eval_shape(flax.init, jax.random.key(0), x)
    assert program(ours.apply, variables, x) == program(flax.apply, variables, x)


@few
@given(st.sampled_from([(), (1,), (4,), (2, 3)]), *[st.integers(2, 9)] * 2, st.integers(1, 5), st.just(False))
@example((64,), 8, 8, 4, True)
def test_pool_equals_flax(batch, height, width, channels, ties):
    """Signs alone have ties of every pattern, where the gradient goes to the first."""
    x = normal(0, *batch, height, width, channels)
    x = np.sign(x) if ties else x
    jax.tree.map(np.testing.assert_array_equal, value_and_gradients(max_pool, x), value_and_gradients(FLAX.max_pool, x))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_relu_equals_flax(monkeypatch, platform):
    as_on(monkeypatch, platform)
    x = np.concatenate([normal(0, 100), np.zeros(3, np.float32)])
    jax.tree.map(np.testing.assert_array_equal, value_and_gradients(relu, x), value_and_gradients(nn.relu, x))


def as_on(monkeypatch, platform):
    """Has this machine's device run the forms of another platform."""

    def choose(*operands, default=None, **forms):
        return forms.get(platform, default)(*operands)

    monkeypatch.setattr(lax, "platform_dependent", choose)


def test_gradients_of_a_network_are_those_of_flax_in_the_forms_of_a_tpu(monkeypatch, mnist):
    """Those of a CPU: test_models.py."""
    as_on(monkeypatch, "tpu")
    images, labels = load_pretrained("bn_dropout").standardize(mnist.train.images[:16]), mnist.train.labels[:16]
    found = []
    for layers in (FAST, FLAX):
        model = make_model("bn_dropout", dropout_rate=0.0, layers=smooth(layers))
        run = jax.jit(partial(training_pass, model))
        found.append(run(initial_variables(model), images, labels)[0])
    assert_near(*found, 1e-4)  # As in test_models.py.


class Norm(nn.Module):
    layer: Callable

    @nn.compact
    def __call__(self, x, average):
        return self.layer(use_running_average=average, name="bn")(x)


CASES = [("batch_norm", {}), ("batch_norm", {"use_bias": False, "momentum": 0.5}), ("batch_norm_max_pool", {})]


@quick
@given(st.tuples(*[st.integers(2, 9)] * 3), st.integers(1, 17), st.floats(-3, 3), st.sampled_from(CASES))
def test_batch_norm_equals_flax_in_float64(shape, channels, shift, case):
    kind, options = case
    x = normal(0, *shape, channels) * 2 + np.float32(shift)
    params = {} if options else {"bias": normal(1, channels)}
    params |= {} if kind == "batch_norm_max_pool" else {"scale": normal(2, channels)}
    stats = {"mean": normal(3, channels), "var": normal(4, channels) ** 2}

    def run(layers, x, params):
        model = Norm(partial(getattr(layers, kind), **options))
        variables = {"params": {"bn": params}, "batch_stats": {"bn": stats}}
        y, state = model.apply(variables, x, False, mutable=["batch_stats"])
        y += jnp.broadcast_to(sum(jax.tree.leaves(state)), y.shape)  # The statistics have gradients.
        return y, state, model.apply(variables, x, True)

    with float64():
        exact = value_and_gradients(partial(run, FLAX), *jax.tree.map(np.float64, (x, params)))
    # A channel of few, nearly equal values divides rounding by its small deviation.
    tolerance = 1e-5 / min(1.0, float(x.reshape(-1, channels).std(0).min()))
    for a, b in zip(*map(jax.tree.leaves, (value_and_gradients(partial(run, FAST), x, params), exact)), strict=True):
        assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max()) * 10


OTHERS = [{"axis": 1}, {"use_fast_variance": False}, {"force_float32_reductions": False}, {"axis_name": "seeds"}]
OTHERS = [(rank, {}) for rank in (1, 2, 3, 5)] + [(4, options) for options in (*OTHERS, {"dtype": jnp.complex64}, {})]


@pytest.mark.parametrize(("rank", "options"), OTHERS)
def test_other_batch_norms_are_flax_s(rank, options):
    x = normal(0, 2, *(3,) * rank)
    mask = None if options or rank != 4 else np.arange(3) > 0
    norms = [norm(use_running_average=False, **options) for norm in (BatchNorm, nn.BatchNorm)]
    variables = jax.eval_shape(norms[1].init, jax.random.key(0), x[0])
    seeds = partial(jax.vmap, in_axes=(None, 0), axis_name="seeds")
    ours, flax = (program(seeds(partial(n.apply, mutable=["batch_stats"], mask=mask)), variables, x) for n in norms)
    assert ours == flax


def test_batch_norm_with_max_pool_takes_a_negative_scale():
    x, norm = normal(0, 4, 6, 6, 3), {"use_running_average": False, "scale_init": nn.initializers.constant(-2.0)}
    pooled, plain = BatchNorm(pool=True, **norm), BatchNorm(**norm)
    found, separate = (norm.init_with_output(jax.random.key(0), x)[0] for norm in (pooled, plain))
    close(found, max_pool(separate))


@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0])
def test_batch_statistics_of_a_large_batch(mean):
    """Means and variances of 80,000 values to five digits of the spread, also away from zero."""
    x = normal(0, 128, 26, 26, 4) + np.float32(mean)
    _, batch_mean, batch_var = jax.jit(_batch_norm)(x, jnp.ones(4), jnp.zeros(4), 1e-5)
    values = x.reshape(-1, 4).astype(np.float64)
    np.testing.assert_allclose(batch_mean, values.mean(0), atol=1e-5 * max(mean, 1))
    np.testing.assert_allclose(batch_var, values.var(0), atol=1e-5 * max(mean**2, 1))


RATE, SHAPE = 0.05, (128, 26, 26, 16)


def deviates(a, b):
    """Standard errors between the correlation of two independent masks and 0."""
    return abs(np.mean(a * b)) / (RATE * (1 - RATE)) * len(a) ** 0.5


def test_dropout_has_its_rate_and_is_independent_across_seeds_steps_layers_and_places():
    drop = jax.jit(lambda key: ~keep_mask(key, RATE, SHAPE))
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    keys = [reduce(jax.random.fold_in, folded, jax.random.key(seed)) for seed, *folded in places]
    masks = [np.asarray(drop(key), np.float64).ravel() - RATE for key in keys]
    error = (RATE * (1 - RATE) / masks[0].size) ** 0.5
    for mask in masks:
        assert abs(mask.mean()) < 4 * error
        for axis in range(1, 4):  # no row, column or channel is favoured
            others = tuple(i for i in range(4) if i != axis)
            means = mask.reshape(SHAPE).mean(others) / error / SHAPE[axis] ** 0.5
            assert np.abs(means).max() < 4.5
    for a, b in itertools.combinations(masks, 2):
        assert deviates(a, b) < 4
        assert deviates(b[:-1], a[1:]) < 4  # nor is one stream the other, moved
    for lag in (1, 2, 15, 16, 32, 416, 10816, 2**16, 2**17):
        assert deviates(masks[0][:-lag], masks[0][lag:]) < 4


def test_dropout_scales_and_repeats():
    x, key = jnp.ones((64, 50, 20)), jax.random.key(3)
    y = _dropout(x, key, 0.2)
    assert set(np.unique(y)) == {0, np.float32(1.25)}
    assert abs(y.mean() - 1) < 4 * (0.25 / x.size) ** 0.5
    np.testing.assert_array_equal(y, _dropout(x, key, 0.2))
    np.testing.assert_array_equal(y, jax.vjp(lambda x: _dropout(x, key, 0.2), x)[1](x)[0])
    np.testing.assert_array_equal(Dropout(0.2, deterministic=True).apply({}, x), x)
    for implementation in ("threefry2x32", "rbg"):
        key = jax.random.key(0, impl=implementation)
        mask = keep_mask(key, 0.5, (1000,))
        np.testing.assert_array_equal(mask, keep_mask(jax.random.key_data(key), 0.5, (1000,)))  # An old key.
        assert 400 < mask.sum() < 600


@pytest.mark.parametrize("arch", STRUCTURES)
def test_training_step_lowers_for_every_platform(mnist, arch):
    config = make_config(arch=arch, dropout_rate=0.05, optimizer="sgd")
    setup = make_setup(config, mnist)
    state = jax.eval_shape(lambda: init_state(setup, jax.random.key(0)))
    images, labels = jnp.zeros((128, 28, 28, 1), jnp.uint8), jnp.zeros(128, jnp.int32)
    traced = jax.jit(partial(train_step, setup=setup)).trace(state, images, labels, jax.random.key(0))
    for platform in ("cpu", "cuda", "tpu"):
        assert "convolution" in traced.lower(lowering_platforms=(platform,)).as_text()
