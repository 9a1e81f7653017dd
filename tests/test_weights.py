import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT, as_trained, damage, initial_variables, refused, wrong
from safetensors.numpy import load_file, save_file

from mnist_jax import ARCHS, Split, load_pretrained, load_weights, make_model, save_weights
from mnist_jax.series import records


@pytest.fixture(scope="module")
def lighter():
    model = make_model("lighter")
    return as_trained(model, initial_variables(model))


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_survive_to_the_bit(arch, tmp_path):
    model = make_model(arch)
    trained = as_trained(model, initial_variables(model))
    save_weights(tmp_path / "w", trained)
    found = load_weights(tmp_path / "w")
    chex.assert_trees_all_equal(found.variables, trained.variables)
    assert jax.tree.structure(found) == jax.tree.structure(trained)
    content = (tmp_path / "w").read_bytes()
    save_weights(tmp_path / "w", trained)
    assert (tmp_path / "w").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


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
        edited = {n: tensor for n, tensor in (tensors | changed).items() if tensor is not None}
        save_file(edited, path, {"mnist_jax": '{"format": 1, "arch": "lighter"}'})
        refused(message, load_weights, path)
    save_weights(path, lighter)
    damage(path, "flipped")
    refused("are damaged: expected SHA-256", load_weights, path)
    save_weights(path, jax.tree.map(lambda x: x.at[0].set(jnp.nan), lighter))
    refused("is not finite everywhere; train again", load_weights, path)


@pytest.mark.parametrize("arch", ARCHS)
def test_shipped_weights_are_seed_1_of_the_default_recipe(arch, mnist):
    """They get all test images wrong that the results of that seed name, and none other of the first 2,000."""
    trials = records.read_trials(ROOT / "results" / f"default-{arch}.jsonl")
    (errors,) = (trial.errors for trial in trials if trial.config["seed"] == 1)
    places = sorted({*errors, *range(2000)})
    found = wrong(load_pretrained(arch), Split(*(array[places] for array in mnist.test)))
    assert [places[i] for i in found] == list(errors)


@pytest.mark.parametrize("how", ["missing", "text", "truncated", "foreign", "pickle"])
def test_not_a_weights_file(tmp_path, lighter, how):
    path, zeros = tmp_path / "w.safetensors", np.zeros(3)
    save_weights(path, lighter)
    {
        "foreign": lambda: save_file({"x": zeros}, path),
        "pickle": lambda: path.write_bytes(pickle.dumps(lighter.variables)),
    }.get(how, lambda: damage(path, how))()
    refused(str(path), load_weights, path)
