import dataclasses
import pickle

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, as_trained, damage, initial_variables, refused, wrong
from safetensors.numpy import load_file, save_file

from mnist_jax import ARCHS, Split, load_pretrained, load_weights, make_model, save_weights
from mnist_jax.runs.files import write_arrays
from mnist_jax.series import records


@pytest.fixture(scope="module")
def lighter():
    model = make_model("lighter")
    return as_trained(model, initial_variables(model))


@pytest.mark.parametrize("arch", ["lighter", "swift", "4-pool-s4"])
def test_weights_survive_to_the_bit(arch, tmp_path):
    model = make_model(arch)
    trained = as_trained(model, jax.tree.map(np.asfortranarray, initial_variables(model)))
    save_weights(tmp_path / "w", trained)
    found = load_weights(tmp_path / "w")
    chex.assert_trees_all_equal(found.variables, trained.variables)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    content = (tmp_path / "w").read_bytes()
    save_weights(tmp_path / "w", trained)
    assert (tmp_path / "w").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


class Nested(nn.Module):
    """Parameters in a list and a tuple, a key with a slash that reads like another path, a pair, and what is sown."""

    @nn.compact
    def __call__(self, x, *, train):
        first, (second,) = self.param("w", lambda key: [jnp.ones((1, 10)), (jnp.full((1, 10), 2.0),)])
        third = self.param("a/b", lambda key: jnp.full((1, 10), 3.0))
        fourth = self.param("a", lambda key: {"b": jnp.full((1, 10), 4.0)})["b"]
        self.variable("counts", "pair", lambda: (jnp.zeros(()), jnp.ones((), jnp.int32)))
        self.sow("sown", "mean", x.mean())
        return first + second + third + fourth + x.mean((1, 2))


def test_lists_tuples_and_slashes_survive(tmp_path):
    trained = as_trained(Nested(), initial_variables(Nested()))
    save_weights(tmp_path / "w", trained)
    found = load_weights(tmp_path / "w", model=Nested())
    chex.assert_trees_all_equal(found.variables, trained.variables)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    assert {"params/w/0", "params/w/1/0", "counts/pair/1"} < load_file(tmp_path / "w").keys()


def test_numbers_are_written_as_the_shortest_decimals(tmp_path, lighter):
    save_weights(tmp_path / "w", lighter.replace(mean=np.array([0.1307], np.float32), deviation=(np.float64(0.3081),)))
    found = load_weights(tmp_path / "w")
    assert ([*found.mean], [*found.deviation]) == ([0.1307], [0.3081])


def test_weights_of_another_network_shape_dtype_name_or_hash_or_with_a_nan(tmp_path, lighter):
    path = tmp_path / "w"
    save_weights(path, lighter)
    refused("are of network 'lighter'; expected 'gap'", load_weights, path, model=make_model("gap"))
    tensors, name = load_file(path), "params/conv1/kernel"
    kernel = tensors[name]
    expected = r"conv1/kernel expected float32 \(3, 3, 1, 16\), found "
    edits = {
        expected + r"float32 \(1, 3, 3, 16\)": {name: kernel.reshape(1, 3, 3, 16)},
        expected + "float64": {name: kernel.astype(np.float64)},
        expected + "nothing": {name: None},
        "conv9/kernel expected nothing": {"params/conv9/kernel": np.zeros(1, np.float32)},
    }
    for message, changed in edits.items():
        write_arrays(path, {n: t for n, t in (tensors | changed).items() if t is not None}, {"arch": "lighter"})
        refused(message, load_weights, path)
    broken = jax.tree.map(lambda x: x.at[0].set(jnp.nan), lighter.variables)
    save_weights(path, dataclasses.replace(lighter, variables=broken))
    refused("is not finite everywhere; train again", load_weights, path)


@pytest.mark.parametrize("arch", ARCHS)
def test_shipped_weights_are_seed_1_of_the_default_recipe(arch, mnist):
    """They get all test images wrong that the results of that seed name, and none other of the first 500."""
    trials = records.read_trials(ROOT / "results" / "series" / f"default-{arch}.jsonl")
    (errors,) = (trial.errors for trial in trials if trial.config["seed"] == 1)
    places = sorted({*errors, *range(500)})
    found = wrong(load_pretrained(arch), Split(*(array[places] for array in mnist.test)))
    assert [places[i] for i in found] == list(errors)


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated", "foreign", "pickle"])
def test_not_a_weights_file(tmp_path, lighter, how):
    path, zeros = tmp_path / "w.safetensors", np.zeros(3)
    save_weights(path, lighter)
    {
        "foreign": lambda: save_file({"x": zeros}, path),
        "pickle": lambda: path.write_bytes(pickle.dumps(lighter.variables)),
    }.get(how, lambda: damage(path, how))()
    refused(str(path), load_weights, path)
