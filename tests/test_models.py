from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import STRUCTURES, assert_near, initial_variables, refused, smooth, training_pass

from mnist_jax import ARCHS, count_params, layers_of, load_pretrained, make_model
from mnist_jax.data import standardize
from mnist_jax.data.bundled import MEAN, STD
from mnist_jax.layers import FAST, FLAX
from mnist_jax.layouts import Block, parse_layout
from mnist_jax.models import KERNEL_INITS, directional_derivatives
from mnist_jax.summary import abstract_variables, count_dense

# Parameters, and multiplications with an addition in millions.
SIZES = {"basic": (194_884, 52.16), "lighter": (13_752, 2.84), "gap": (9_752, 2.03), "bn_dropout": (9_920, 2.03)}
SIZES |= {"swift": (9_910, 0.65), "small": (3_936, 0.61), "accurate": (9_408, 1.31)}

# Output height = width, channels and parameters of the convolutions, as the notebooks tabulate them.
LAYERS = {
    "basic": "26 32 288, 24 64 18432, 22 128 73728, 11 32 4096, 9 64 18432, 7 128 73728, 7 10 1280, 1 10 4900",
    "lighter": "26 16 144, 24 16 2304, 22 16 2304, 11 16 256, 9 16 2304, 7 10 1440, 7 10 100, 1 10 4900",
    "gap": "26 16 144, 24 16 2304, 24 16 256, 10 16 2304, 8 16 2304, 6 10 1440, 6 10 900, 1 10 100",
}
LAYERS["bn_dropout"] = LAYERS["gap"]


training_pass = jax.jit(training_pass, static_argnums=0)
training_outputs = jax.jit(
    lambda model, *given: model.apply(*given, train=True, mutable=["batch_stats"]), static_argnums=0
)
pixels = partial(standardize, mean=(MEAN,), deviation=(STD,))


@pytest.mark.parametrize("arch", ARCHS)
def test_sizes_and_shapes_layer_by_layer_none_of_them_fully_connected(arch):
    layers, params = layers_of(make_model(arch)), abstract_variables(make_model(arch))["params"]
    work = sum(layer.multiply_adds for layer in layers) / 1e6
    assert (count_params(params), work) == pytest.approx(SIZES[arch], abs=0.005)
    assert sum(layer.params for layer in layers) == count_params(params)
    assert count_dense(params) == 0
    assert sum(layer.fixed for layer in layers) == (160 if arch == "swift" else 0)
    convolutions = [(*layer.shape[1:], layer.params) for layer in layers if layer.kind == "Conv"]
    if arch in LAYERS:
        assert convolutions == [tuple(map(int, row.split())) for row in LAYERS[arch].split(", ")]
    assert sum(layer.kind == "Dropout" for layer in layers) == (6 if arch == "bn_dropout" else 0)


@pytest.mark.parametrize("arch", STRUCTURES)
def test_networks_equal_those_of_flax(arch, batch):
    model, variables, images = make_model(arch, dropout_rate=0.0), initial_variables(make_model(arch)), pixels(batch[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(abstract_variables(model.clone(layers=FLAX)), variables)
    outputs, gradients = [], []
    for layers in (FAST, FLAX):
        outputs.append(training_outputs(model.clone(layers=layers), variables, images))
        gradients.append(training_pass(model.clone(layers=smooth(layers)), variables, images, batch[1])[0])
    # In float32 sums of 32 x 26 x 26 values keep five digits, and up to eight layers lose one of them.
    assert_near(outputs[0], outputs[1], 1e-4)
    assert_near(gradients[0], gradients[1], 1e-4)
    # They reach every parameter, but for the fixed ones of `swift`.
    fixed = {"conv1", "bn1"} if arch == "swift" else set()
    for path, grad in jax.tree_util.tree_leaves_with_path(gradients[0]):
        assert (jnp.abs(grad).max() > 0) == (path[0].key not in fixed), jax.tree_util.keystr(path)
    # Dropout is off and batch statistics stay without training: nothing random is given to draw from, nothing mutable.
    apply = jax.jit(partial(model.apply, train=False))
    logits = apply(variables, images)
    assert (logits.shape, logits.dtype) == ((32, 10), jnp.float32)
    chex.assert_tree_all_finite(logits)
    one_by_one = jnp.concatenate([apply(variables, image[None]) for image in images[:3]])
    np.testing.assert_allclose(one_by_one, logits[:3], rtol=1e-5, atol=1e-5)


def test_initial_kernels_are_those_asked_for():
    fan_in = 9 * 64
    for name, std in {"torch_uniform": (3 * fan_in) ** -0.5, "he_normal": (2 / fan_in) ** 0.5}.items():
        model = make_model("basic", kernel_init=KERNEL_INITS[name])
        kernel = initial_variables(model)["params"]["conv3"]["kernel"]
        assert kernel.std() == pytest.approx(std, rel=0.02)
        assert name == "he_normal" or jnp.abs(kernel).max() <= fan_in**-0.5


UNREADABLE = ["", "0", "bn", "16-17x", "15f-8", "s16f-8", "16k5f-8", "8-16f"]
MISPLACED = ["pool", "16-pool-pool", "=1", "16-=2", "16-s24-=2", "crop1", "16-crop1-8", "crop1-crop1-8"]


@pytest.mark.parametrize("arch", [*UNREADABLE, *MISPLACED])
def test_unknown_arch(arch):
    refused(f"unknown arch '{arch}'; choose from basic, .* or write a layout: .* at '", make_model, arch)


def test_a_layout_names_the_layers_in_order():
    layout = "16-s16k5p-pool-=2-8-pool"
    again = Block(16, 5, padded=True, separable=True, again=2)
    assert parse_layout(layout) == (Block(16), again._replace(pool=True, again=0), again, Block(8, pool=True))
    layers = layers_of(make_model(layout))
    names = (
        "conv1 bn1 relu depthwise2 conv2 bn2 max_pool relu depthwise2 conv2 bn3 relu conv4 bn4 max_pool relu "
        "global_pool conv5"
    )
    assert " ".join(layer.name or layer.kind for layer in layers) == names
    sizes = [26] * 6 + [13] * 6 + [11, 11, 5, 5]
    assert [layer.shape for layer in layers[:16]] == [(size, size, 16 if size > 11 else 8) for size in sizes]
    named = [layer for layer in layers if layer.name]
    assert [layer.params for layer in named] == [144, 16, 400, 256, 16, 0, 0, 16, 1152, 8, 80]  # Used again: once.
    assert named[5].multiply_adds == 400 * 13 * 13
    assert sum(layer.params for layer in layers) == count_params(abstract_variables(make_model(layout))["params"])


def test_the_receptive_field_is_what_a_gradient_reaches():
    """The widest of all places, of kernels that cancel nothing; it is not known behind what moves pixels."""

    class Pools(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            conv = partial(nn.Conv, 1, kernel_init=nn.initializers.ones)
            x = conv((3, 5), strides=(2, 1), padding="VALID")(x[:, 1:-1, ::2])
            outputs = [x := nn.avg_pool(x, (2, 2), (2, 1))]
            outputs.append(x := nn.avg_pool(conv((3, 3), kernel_dilation=2)(nn.softplus(x)), (2, 2)))
            outputs.append(x := conv((1, 3))(nn.Dense(1, kernel_init=nn.initializers.ones)(x) + x))
            outputs.append(conv((1, 1))(x.mean((1, 2), keepdims=True) * x))
            conv((1, 1))(x.swapaxes(1, 2))
            return [*outputs, nn.Dense(1, kernel_init=nn.initializers.ones)(x.reshape(1, -1))]

    def run(images):
        return Pools().init_with_output(jax.random.key(0), images, train=False)[0]

    spans = []
    for reached in jax.jit(jax.jacobian(run))(jnp.ones((1, 26, 24, 1))):
        places = np.array(reached).reshape(-1, 26, 24) != 0
        spans.append(tuple(max(np.ptp(np.flatnonzero(each.any(axis))) + 1 for each in places) for axis in (1, 0)))
    layers = [layer for layer in layers_of(Pools(), (26, 24, 1)) if layer.kind != "crop"]
    fields = [layer.receptive_field for layer in layers]
    names = [layer.name or layer.kind for layer in layers]
    known = [fields[i] for i, name in enumerate(names) if name in ("avg_pool", "Conv_2", "Conv_3", "Dense_1")]
    assert known == spans
    assert fields[names.index("Conv_4")] is None


def test_a_layout_is_the_network_by_hand(batch):
    """Convolution, batch norm, ReLU and pool, by Flax's functions on the same variables."""
    model, images = make_model("crop3-4-s6p-pool-6k1-=3"), pixels(batch[0])
    variables = initial_variables(model, 1)
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.1, variables["batch_stats"])
    params, x = variables["params"], images

    def norm(x, name):
        stats = variables["batch_stats"][name]
        return (x - stats["mean"]) / jnp.sqrt(stats["var"] + 1e-5) + params[name]["bias"]

    def conv(x, name, padding="VALID", groups=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        kernel = params[name]["kernel"]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, None, None, numbers, groups)

    with jax.numpy_rank_promotion("allow"):
        x = nn.relu(norm(conv(x[:, 3:-3, 3:-3], "conv1"), "bn1"))
        x = nn.relu(norm(conv(conv(x, "depthwise2", "SAME", 4), "conv2"), "bn2"))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(norm(conv(x, "conv3"), "bn3"))
        x = nn.relu(norm(conv(x, "conv3"), "bn4"))
        expected = x.mean((1, 2)) @ params["conv5"]["kernel"][0, 0]
    np.testing.assert_allclose(jax.jit(partial(model.apply, train=False))(variables, images), expected, atol=1e-4)


def test_a_fixed_convolution_is_not_trained(batch):
    """No gradient reaches it or its batch norm; what is behind has the gradients it had if they were trained."""
    fixed, free = (make_model(f"crop1-4{f}-pool-s6-8", layers=smooth()) for f in ("f", ""))
    variables, images = initial_variables(fixed, 1), pixels(batch[0])
    chex.assert_trees_all_equal(variables["params"]["conv1"], initial_variables(fixed, 2)["params"]["conv1"])
    grads, outputs = training_pass(fixed, variables, images, batch[1])
    expected, expected_outputs = training_pass(free, variables, images, batch[1])
    assert_near(outputs, expected_outputs, 1e-4)
    for name in grads:
        expected[name] = jax.tree.map(jnp.zeros_like, expected[name]) if name in ("conv1", "bn1") else expected[name]
    assert_near(grads, expected, 1e-4)
    params = load_pretrained("swift").variables["params"]  # Through 1,404 steps of Muon, and as many of averaging.
    np.testing.assert_allclose(params["conv1"]["kernel"], directional_derivatives(None, (3, 3, 1, 16)), atol=1e-5)
    np.testing.assert_array_equal(params["bn1"]["bias"], 0)
