"""The networks and the optimiser against PyTorch's, from equal weights on equal images."""

import itertools

import jax
import numpy as np
import pytest
import torch_networks
from conftest import as_trained, assert_near, initial_variables

from mnist_jax import ARCHS, Setup, TrainState, layers_of, make_config, make_optimizer, train_step
from mnist_jax.recipes.values import network_of

torch = pytest.importorskip("torch", reason="torch is not installed")


pytestmark = pytest.mark.parametrize("arch", [*ARCHS, "crop1-8-s8p-pool-=2-6"])


def start(arch):
    """A network without dropout with perturbed variables, so that no layer starts at its neutral element, twice."""
    # He initialisation, so that the logits are of the order of one and the comparison means something.
    model = network_of(make_config(arch=arch, dropout_rate=0.0, kernel_init="he_normal"))
    variables = jax.tree.map(np.array, initial_variables(model))
    rng = np.random.default_rng(0)
    for tree in variables.values():
        for name in (name for name in tree if name.startswith("bn")):
            tree[name] = jax.tree.map(lambda a: a + rng.uniform(0, 0.3, a.shape).astype(a.dtype), tree[name])
    network = torch_networks.torch_network(arch, dropout=0.0)
    tensors = torch_networks.variables_of(network, variables)
    jax.tree.map(lambda tensor, value: tensor.copy_(torch.tensor(value)), tensors, variables)
    return as_trained(model, variables), network


def nchw(images):
    # A reshape, not a permutation, whose strides PyTorch would take for channels-last: there its float32 batch
    # statistics are off, and its logits 3e-4 from its own in float64 (contiguous: 6e-7, as are Flax's).
    return torch.tensor(np.array(images)).reshape(-1, 1, 28, 28)


def deviation(tree, other):
    """The largest absolute difference between two trees of arrays; a Python float, which pytest can pass on."""
    apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), tree, other)
    return float(max(jax.tree.leaves(apart), default=0.0))


def test_logits_and_running_averages(arch, mnist, record_property):
    trained, network = start(arch)
    model, variables, images = trained.model, trained.variables, trained.standardize(mnist.test.images[:128])

    logits = model.apply(variables, images, train=False)
    with torch.no_grad():
        expected = network.eval()(nchw(images)).numpy()
    record_property("evaluation", deviation(logits, expected))
    assert_near(logits, expected, 1e-5)

    logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
    with torch.no_grad():
        expected = network.train()(nchw(images)).numpy()
    record_property("training", deviation(logits, expected))
    assert_near(logits, expected, 1e-5)

    running = jax.tree.map(torch.Tensor.numpy, torch_networks.variables_of(network, variables).get("batch_stats", {}))
    # What each batch norm is given: the output of the convolution called before it.
    layers = layers_of(model)
    given = {norm.name: conv.shape for conv, norm in itertools.pairwise(layers) if norm.name.startswith("bn")}
    for name, stats in updated.get("batch_stats", {}).items():
        # PyTorch's running variances are of N - 1 values where Flax's are of N, the pixels of all images.
        old, (height, width, _) = variables["batch_stats"][name]["var"], given[name]
        stats["var"] += (stats["var"] - 0.9 * old) / (len(images) * height * width - 1)
    difference = deviation(updated.get("batch_stats", {}), running)
    record_property("running averages", difference)
    assert difference < 1e-5


def test_three_steps_of_sgd(arch, mnist, record_property):
    batches = [(mnist.train.images[i : i + 128], mnist.train.labels[i : i + 128]) for i in (0, 128, 256)]
    trained, network = start(arch)
    collections = {**trained.variables}
    params = collections.pop("params")
    setup = Setup(trained.model, make_optimizer(make_config("reference", arch=arch), total_steps=3))
    state = TrainState(params, collections, setup.optimizer.init(params), np.zeros((), np.int32))
    step = jax.jit(train_step, static_argnames="setup")
    descent = torch.optim.SGD(network.train().parameters(), lr=0.01, momentum=0.9)
    for images, labels in batches:
        state, metrics = step(state, images, labels, jax.random.key(0), setup)
        descent.zero_grad()
        loss = torch.nn.functional.nll_loss(
            torch.log_softmax(network(nchw(trained.standardize(images))), 1), torch.tensor(labels, dtype=torch.long)
        )
        loss.backward()
        descent.step()
        assert metrics.mean()[0] == pytest.approx(loss.item(), rel=1e-5)
    # Not the running variances: PyTorch's are of N - 1, and Flax's of N, values.
    params = jax.tree.map(torch.Tensor.numpy, torch_networks.variables_of(network, trained.variables)["params"])
    difference = deviation(state.params, params)
    record_property("weights after three steps", difference)
    # They move by 3e-3 to 0.2, and by 0.01 x 2.7 / 128 images / 36 pixels = 6e-6 where rounding carries a value across
    # a ReLU's edge.
    assert difference < 1e-4
