import jax.numpy as jnp

from mnist_jax import create_model, environment, objective
from mnist_jax.models import abstract_variables


def verdicts(arch, epochs, accuracy):
    params = abstract_variables(create_model(arch))["params"]
    return [condition.met for condition in objective(params, epochs, accuracy)]


def test_each_condition_is_judged_by_itself():
    assert verdicts("bn_dropout", 14, 0.994) == [True, True, True, True]
    assert verdicts("bn_dropout", 14, 0.9939) == [False, True, True, True]
    assert verdicts("basic", 14, 0.994) == [True, False, True, True]
    assert verdicts("bn_dropout", 15, 0.994) == [True, True, False, True]


def test_a_fully_connected_layer_is_found():
    params = {"dense": {"kernel": jnp.zeros((4, 10)), "bias": jnp.zeros(10)}}
    condition = objective(params, 1, 1.0)[-1]
    assert (condition.value, condition.met) == ("1", False)


def test_values_are_shown():
    params = abstract_variables(create_model("gap"))["params"]
    values = [condition.value for condition in objective(params, 3, 0.98765)]
    assert values == ["98.77%", "9,752", "3", "0"]


def test_environment_names_versions_and_hardware():
    record = environment()
    assert record["platform"] == "cpu"
    assert record["cpu_cores"] >= 1
    assert record["cpu"]
    assert record["jax"].split(".")[0].isdigit()
