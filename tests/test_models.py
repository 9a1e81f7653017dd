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

# Output height = width, channels and parameters of the convolutions, those of the notebooks as they tabulate them; a
# separable one has the parameters of both its kernels.
LAYERS = {
    "basic": "26 32 288, 24 64 18432, 22 128 73728, 11 32 4096, 9 64 18432, 7 128 73728, 7 10 1280, 1 10 4900",
    "lighter": "26 16 144, 24 16 2304, 22 16 2304, 11 16 256, 9 16 2304, 7 10 1440, 7 10 100, 1 10 4900",
    "gap": "26 16 144, 24 16 2304, 24 16 256, 10 16 2304, 8 16 2304, 6 10 1440, 6 10 900, 1 10 100",
}
LAYERS |= {
    "bn_dropout": LAYERS["gap"],
    "swift": "24 16 144, 10 16 2304, 8 16 2304, 8 16 2304, 4 18 2592, 1 10 180",
    "small": "26 16 144, 24 20 464, 12 22 620, 12 22 682, 6 24 726, 6 28 888, 1 10 280",
    "accurate": "26 24 216, 24 32 984, 12 36 1440, 12 36 1620, 6 40 1764, 6 56 2600, 1 10 560",
}
NORMS = dict.fromkeys(LAYERS, ()) | {"bn_dropout": (1, 2, 4, 5, 6, 7)}
NORMS |= {"swift": range(1, 6), "small": range(1, 7), "accurate": range(1, 7)}


training_pass = jax.jit(training_pass, static_argnums=0)
training_outputs = jax.jit(
    lambda model, *given: model.apply(*given, train=True, mutable=["batch_stats"]), static_argnums=0
)
pixels = partial(standardize, mean=(MEAN,), deviation=(STD,))


@pytest.mark.parametrize("arch", ARCHS)
def test_sizes_and_shapes_layer_by_layer_none_of_them_fully_connected(arch):
    layers = {layer.name: layer for layer in layers_of(make_model(arch))}
    params = abstract_variables(make_model(arch))["params"]
    work = sum(layer.multiply_adds for layer in layers.values()) / 1e6
    assert (count_params(params), work) == pytest.approx(SIZES[arch], abs=0.005)
    assert count_dense(params) == 0
    assert sum(layer.given for layer in layers.values()) == (160 if arch == "swift" else 0)
    chex.assert_rank([layer["kernel"] for layer in params.values() if "kernel" in layer], 4)
    for i, row in enumerate(LAYERS[arch].split(", "), 1):
        size, channels, params = map(int, row.split())
        assert layers[f"conv{i}"].shape == (size, size, channels)
        depthwise = layers[f"depthwise{i}"].params if f"depthwise{i}" in layers else 0
        assert layers[f"conv{i}"].params + depthwise == params
    norms = {name: layer for name, layer in layers.items() if name.startswith("bn")}
    assert list(norms) == [f"bn{i}" for i in NORMS[arch]]
    for name, norm in norms.items():
        channels = layers[f"conv{name[2:]}"].shape[-1]
        assert norm.shape == layers[f"conv{name[2:]}"].shape
        assert norm.params == channels * (2 if arch == "bn_dropout" else 1)
    assert sum(layer.kind == "Dropout" for layer in layers.values()) == (6 if arch == "bn_dropout" else 0)


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
    """That of the value in the middle of each average pool, of kernels that cancel nothing."""

    class Pools(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Conv(1, (3, 5), strides=(2, 1), padding="VALID", kernel_init=nn.initializers.ones)(x[:, 1:-1])
            first = nn.avg_pool(x, (2, 2), (2, 2))
            x = nn.Conv(1, (3, 3), kernel_dilation=2, padding="VALID", kernel_init=nn.initializers.ones)(first)
            return jnp.stack([first[0, 3, 6, 0], nn.avg_pool(x, (2, 2))[0, 0, 4, 0], x.mean()])

    def run(images):
        return Pools().init_with_output(jax.random.key(0), images, train=False)[0]

    reached = np.array(jax.jit(jax.jacobian(run))(jnp.ones((1, 40, 36, 1))))[:, 0, ..., 0] > 0
    spans = [tuple(int(np.ptp(np.flatnonzero(each.any(axis)))) + 1 for axis in (1, 0)) for each in reached]
    kinds = ("avg_pool", "global_pool")
    found = [layer.receptive_field for layer in layers_of(Pools(), (40, 36, 1)) if layer.kind in kinds]
    assert spans == found


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
