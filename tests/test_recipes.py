import dataclasses
import inspect
import re

import pytest
from conftest import refused

from mnist_jax import ARCHS, RECIPES, Config, make_config
from mnist_jax.augment import Distortion
from mnist_jax.recipes.values import make_distortion


def test_reference_is_the_notebooks_recipe_and_default_meets_the_limit_on_epochs():
    config = make_config("reference")
    assert (config.epochs, config.batch_size, config.learning_rate, config.momentum) == (15, 128, 0.01, 0.9)
    assert (config.schedule, config.nesterov, config.kernel_init) == ("constant", False, "torch_uniform")
    assert (config.dropout_rate, config.seed) == (0.05, 1)
    assert make_distortion(config) is None
    assert make_config() == Config()
    assert make_config().epochs < 15
    assert make_distortion(make_config()) == Distortion(rotation=7.0, shift=1.5, scale=0.07, shear=0.07)


def test_overrides_win_and_configs_are_values():
    config = make_config("reference", epochs=2, arch="gap")
    assert (config.epochs, config.arch, config.learning_rate) == (2, "gap", 0.01)
    assert Config(**dataclasses.asdict(config)) == config
    assert len({config, make_config("reference", epochs=2, arch="gap")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    refused("unknown setting 'lr'; choose from arch", make_config, lr=0.1)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_recipe_names_real_settings(arch):
    for name in RECIPES:
        config = make_config(name, arch=arch)
        assert (config.recipe, config.arch) == (name, arch)


def test_networks_without_batch_norm_learn_at_a_smaller_rate_and_swift_by_its_fast_recipe():
    assert {make_config(arch=arch).learning_rate for arch in ("bn_dropout", "small", "accurate")} == {0.02}
    assert {make_config(arch=arch).learning_rate for arch in ("basic", "lighter", "gap")} == {0.005}
    assert {make_config("reference", arch=arch).learning_rate for arch in ARCHS} == {0.01}
    assert make_config(arch="gap", learning_rate=0.1).learning_rate == 0.1
    swift = make_config(arch="swift")
    assert swift == dataclasses.replace(make_config("fast", arch="swift"), recipe="default")
    fast = dataclasses.replace(make_config("fast"), arch="swift", recipe="default", label_smoothing=0.05)
    assert swift == fast
    assert make_config("reference", arch="swift").optimizer == "sgd"


# Each value and the settings that cannot have it. Every number at 0, below and not finite: test_faults.py.
UNUSABLE = {
    "other": ("arch", "recipe", "optimizer", "schedule", "precision", "kernel_init", "data_source"),
    1.0: ("warmup", "momentum", "beta2", "label_smoothing", "average_decay", "dropout_rate", "scale"),
    10_001: ("epochs", "eval_batch_size"),
    2**32: ("seed",),
    2.5: ("epochs", "batch_size", "seed"),
    "1": ("learning_rate", "rotation"),
}


@pytest.mark.parametrize(("value", "setting"), [(value, name) for value in UNUSABLE for name in UNUSABLE[value]])
def test_unusable_values_are_named_with_the_remedy(value, setting):
    name, shown = setting.replace("_", " "), re.escape(str(value))
    refused(f"(?=.*{name})(?=.*{shown}).*choose", make_config, **{"recipe": "default", setting: value})


def test_help_knows_every_setting():
    text = inspect.getdoc(Config)  # Python 3.13 takes the indent from `__doc__`.
    assert not [field.name for field in dataclasses.fields(Config) if f"\n  {field.name}: " not in text]
