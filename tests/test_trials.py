import json

import numpy as np
import pytest
from conftest import part

from mnist_jax import InputError, make_config, make_model, predict
from mnist_jax.lab import trials


@pytest.fixture(scope="module")
def ran(mnist):
    small = part(mnist, 500, 500)
    config = make_config("reference", arch="gap", epochs=2, batch_size=100, seed=7)
    return config, small, *trials.run(config, small)


def test_a_trial_says_what_the_final_weights_do(ran):
    config, data, trial, variables = ran
    assert trials.config_of(trial) == config
    assert [epoch["epoch"] for epoch in trial["history"]] == [1, 2]
    wrong = predict(make_model(config), variables, data.test.images, 70).argmax(-1) != data.test.labels
    assert trial["errors"] == np.flatnonzero(wrong).tolist()
    assert trial["history"][-1]["test_accuracy"] == (500 - len(trial["errors"])) / 500
    right = predict(make_model(config), variables, data.train.images).argmax(-1) == data.train.labels
    assert trial["train_accuracy"] == right.mean()
    assert trial["seconds"] > 0


def test_trials_are_lines_of_a_file(ran, tmp_path):
    trial = ran[2]
    path = tmp_path / "new" / "trials.jsonl"
    assert trials.read(path) == []
    trials.append(path, trial)
    trials.append(path, trial)
    assert trials.read(path) == [trial, trial]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [trial, trial]
    path.write_text('{"config"')
    with pytest.raises(InputError, match="cannot be read"):
        trials.read(path)
    with pytest.raises(InputError, match="cannot be written"):
        trials.append(path / "below", trial)
    with pytest.raises(InputError, match="cannot be written"):
        trials.append(path / "below")


def test_an_older_trial_has_its_recipe_in_the_newer_settings():
    assert trials.config_of({"config": {"recipe": "reference", "arch": "gap", "seed": 3}}) == make_config(
        "reference", arch="gap", seed=3
    )


def test_seeds_trained_together_are_trials_of_their_own(ran):
    config, data, alone, _ = ran
    for seed, (trial, variables) in zip((7, 8), trials.run_seeds(config, [7, 8], data), strict=True):
        assert trials.config_of(trial).seed == seed
        assert trial["together"] == 2
        assert [epoch["epoch"] for epoch in trial["history"]] == [1, 2]
        wrong = predict(make_model(config), variables, data.test.images).argmax(-1) != data.test.labels
        assert trial["errors"] == np.flatnonzero(wrong).tolist()
        if seed == 7:
            assert trial["history"][-1]["test_loss"] == pytest.approx(alone["history"][-1]["test_loss"], abs=1e-4)
