import dataclasses
import inspect
import itertools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import part, refused

import mnist_jax as mj
from mnist_jax import ARCHS, RECIPES, Config, make_config
from mnist_jax.augment import Distortion
from mnist_jax.recipes.values import make_distortion
from mnist_jax.runs.directory import config_of


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
    for recipe, arch in itertools.product(RECIPES, ARCHS):
        assert (make_config(recipe, arch=arch).recipe, make_config(recipe, arch=arch).arch) == (recipe, arch)


# Each value and the settings that cannot have it. Every number at 0, below and not finite: test_faults.py.
UNUSABLE = {
    "other": ("arch", "recipe", "optimizer", "schedule", "precision", "kernel_init", "data_source"),
    1.0: ("warmup", "momentum", "beta2", "label_smoothing", "average_decay", "dropout_rate", "scale"),
    10_001: ("epochs", "eval_batch_size"),
    2**32: ("seed",),
    2.5: ("epochs", "batch_size", "seed"),
    "1": ("learning_rate", "rotation", "epochs", "nesterov"),
    None: ("epochs", "learning_rate", "nesterov", "arch", "dataset"),
    10**400: ("learning_rate",),
    b"gap": ("arch", "recipe", "run_dir"),
}


def test_unusable_values_are_named_with_the_remedy():
    for value, settings in UNUSABLE.items():
        for setting in settings:
            name, shown = setting.replace("_", " "), re.escape(str(value)[:60])
            refused(f"(?=.*{name})(?=.*{shown}).*choose", make_config, **{"recipe": "default", setting: value})


WHOLE = [2.0, np.int64(2), np.array(2), jnp.bfloat16(2)]
NOT_WHOLE = ["2", None, True, 2.5, float("nan"), np.array([2])]


@pytest.mark.parametrize("whole", WHOLE)
def test_equal_numbers_of_any_type_are_taken_and_written_plainly(whole):
    rate, flag = np.float32(0.5), jnp.array(True)
    config = make_config(epochs=whole, learning_rate=whole, momentum=rate, nesterov=flag, dataset=np.str_("mnist"))
    plain = make_config(epochs=2, learning_rate=2.0, momentum=0.5, nesterov=True)
    assert (config, hash(config)) == (plain, hash(plain))
    assert json.dumps(dataclasses.asdict(config)) == json.dumps(dataclasses.asdict(plain))
    assert config_of({"batch_size": 128.0, "epochs": 2.0}) == make_config(epochs=2)


def test_what_is_no_whole_number_is_refused_wherever_one_is_given(mnist):
    data, trained, key = part(mnist, 64, 2), mj.load_pretrained("small"), mj.Streams.from_seed(1).order
    uses = {
        "epochs": lambda value: make_config(epochs=value),
        "seed": lambda value: mj.fit_seeds(Config(), data, seeds=[value]),
        "seed .* choose 0 to 4294967295": mj.Streams.from_seed,
        "hold out": lambda value: mj.hold_out(data, value),
        "batch size": lambda value: mj.evaluate(trained, data.test, value),
        "batch size .* 1 or more": lambda value: mj.predict(trained, data.test.images, value),
        "batch size .*": lambda value: mj.epoch_order(key, 1, 64, value),
        "number of examples": lambda value: mj.epoch_order(key, 1, value, 2),
        "number of steps": lambda value: mj.make_optimizer(Config(), value),
        "number of classes": lambda value: mj.make_model("gap", num_classes=value),
    }
    for value in NOT_WHOLE:
        for name, use in uses.items():
            refused(rf"(?=.*{re.escape(repr(value)[:5])}.*choose).*{name}", use, value)
    jax.jit(lambda traced: refused("epochs .*Tracer", make_config, epochs=traced))(2)


def test_direct_arguments_of_other_types_are_refused(mnist):
    data, trained = part(mnist, 64, 2), mj.load_pretrained("small")
    assert mj.make_optimizer(Config(), np.int64(4)) == mj.make_optimizer(Config(), 4)
    refused("config is a .*make_config", mj.fit, None, data)
    refused("trained is a ", mj.predict, "swift", data.test.images)
    refused("progress is a TrainState; give", mj.fit, Config(), data, progress=mj.TrainState(*[None] * 4))
    refused("seeds array.* cannot be used", mj.fit_seeds, Config(), data, seeds=np.array(1))
    refused("split is a Dataset; give a Split, as data.test", mj.evaluate, trained, data)
    refused("train is a ndarray; give a pair", mj.Dataset.from_arrays, *data.train)
    refused("dataset is a int; give a name or a path", mj.load_dataset, 5)


def test_help_knows_every_setting():
    text = inspect.getdoc(Config)  # Python 3.13 takes the indent from `__doc__`.
    assert not [field.name for field in dataclasses.fields(Config) if f"\n  {field.name}: " not in text]
