import dataclasses
import json
import resource

import jax
import pytest
from conftest import as_trained, part, refused, wrong

from mnist_jax import make_config
from mnist_jax.recipes.values import network_of
from mnist_jax.series import records, trials


@pytest.fixture(scope="module")
def ran(mnist):
    small = part(mnist, 500, 500)
    config = make_config("reference", arch="gap", epochs=2, batch_size=100, seed=7)
    ((trial, variables),) = trials.run(config, [7], small)
    return config, small, trial, as_trained(network_of(config), variables, small)


def test_a_trial_says_what_the_final_weights_do(ran):
    config, data, trial, trained = ran
    places = {"dataset": "mnist", "data_source": "bundled", "data_dir": None, "run_dir": None}  # A record keeps none.
    assert trial.config | places == dataclasses.asdict(config)
    assert not trial.config.keys() & places.keys()
    assert [epoch.epoch for epoch in trial.history] == [1, 2]
    assert list(trial.errors) == wrong(trained, data.test)
    assert trial.history[-1].test_accuracy == (500 - len(trial.errors)) / 500
    assert trial.train_accuracy == (500 - len(wrong(trained, data.train))) / 500
    assert trial.seconds > 0


def test_trials_are_lines_of_a_file(ran, tmp_path):
    trial, other = ran[2], ran[2]._replace(config=ran[2].config | {"seed": 8})
    path = tmp_path / "new" / "trials.jsonl"
    assert records.read_trials(path) == []
    records.prepare_trials(path)
    diverged = records.Trial({"arch": "gap"}, diverged="at step 3")
    records.append_trials(path, trial)
    records.append_trials(path, diverged, other)
    assert records.read_trials(path) == [trial, diverged, other]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[1] == {"version": 1, "config": {"arch": "gap"}, "diverged": "at step 3"}
    assert lines[0]["history"][1]["test_accuracy"] == trial.history[1].test_accuracy
    with pytest.raises(FileExistsError):
        records.prepare_trials(path / "below")
    path.write_text(json.dumps({**lines[1], "version": 2, "unheard": 0}) + "\n")
    refused(r"trials.jsonl' has format 2, newer than 1; update mnist_jax$", records.read_trials, path)


def test_a_line_that_is_no_trial_is_named_and_one_that_was_cut_off_is_skipped(tmp_path):
    path = tmp_path / "trials.jsonl"
    for damage in ("[]\n", '{"config": {}, "unheard": 0}\n'):
        path.write_text(damage)
        refused(r"trials.jsonl' cannot be read .* repair or remove the line$", records.read_trials, path)
    for damage in ('{"config": {"se{"config": {}}', "\0\0\0\0"):
        path.write_text(f'{{"config": {{"seed": 1}}}}\n{damage}\n{{"config": {{"seed": 2}}}}\n')
        with pytest.warns(UserWarning, match=r"trials.jsonl': line 2 was cut off and is left out; remove it$"):
            assert [trial.config["seed"] for trial in records.read_trials(path)] == [1, 2]


def test_doubles_are_named_and_dropped(tmp_path):
    """Two trials are the same if their settings, data and attempt are, written out or not."""
    path = tmp_path / "trials.jsonl"
    records.prepare_trials(path)
    config = dataclasses.asdict(make_config("reference", arch="gap", seed=3))
    first, double = records.Trial(config, seconds=1.0), {"recipe": "reference", "arch": "gap", "seed": 3}
    changes = {"sha256": "0"}, {"attempt": {"norm": 1}}, {"config": config | {"seed": 4}}
    others = [first._replace(**change) for change in changes]
    records.append_trials(path, first, *others, records.Trial(double))
    with pytest.warns(UserWarning, match=r"line 5 has the trial of line 1 again and is left out; remove it$"):
        assert records.read_trials(path) == [first, *others]


@pytest.mark.parametrize(
    ("left", "kept"), [('{"config": {}}', 1), ('{"config"', 0), ('{"config": {}}\n{"c', 1), ("", 0)]
)
def test_an_incomplete_last_line_blocks_nothing(tmp_path, left, kept):
    path = tmp_path / "trials.jsonl"
    path.write_text(left)
    old = [records.Trial({}, version=0)] * kept
    assert records.read_trials(path) == old
    records.prepare_trials(path)
    records.append_trials(path, records.Trial({"seed": 2}))
    assert records.read_trials(path) == [*old, records.Trial({"seed": 2})]


def test_a_full_disk_adds_nothing(ran, tmp_path):
    """No file may grow beyond one trial and a half."""
    path = tmp_path / "trials.jsonl"
    records.prepare_trials(path)
    records.append_trials(path, ran[2])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) * 3 // 2, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*trials.jsonl'"):
            records.append_trials(path, ran[2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*full.jsonl'"):
        records.append_trials(tmp_path / "full.jsonl", ran[2])


def test_settings_are_compared_as_they_were_written():
    """What is newer than a trial has its recipe's value; what was retired since matters where it changed something."""
    reference = records.settings(dataclasses.asdict(make_config("reference", arch="gap", seed=3)))
    old = {"recipe": "reference", "arch": "gap", "seed": 3}
    assert records.settings(old) == records.settings(old, seed=3) == reference
    assert records.settings({**old, "low_resolution": 20, "low_resolution_epochs": 0}) == reference
    for other in ({"seed": 4}, {"low_resolution_epochs": 2}, {"never_heard_of": 1}, {"arch": "of another time"}):
        assert records.settings({**old, **other}) != reference


def test_many_seeds_are_trials_of_their_own(ran, mnist, monkeypatch):
    """One after the other as alone; trained in one program, they say so."""
    config, data, alone, _ = ran
    (first, _), (second, variables) = trials.run(config, [7, 8], data)
    assert (first.config, first.errors, first.history[-1][:-1]) == (alone.config, alone.errors, alone.history[-1][:-1])
    assert (second.config, second.together) == (alone.config | {"seed": 8}, None)
    assert list(second.errors) == wrong(as_trained(network_of(config), variables, data), data.test)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    short = dataclasses.replace(config, epochs=1, batch_size=4)
    assert [trial.together for trial, _ in trials.run(short, [7, 8], part(mnist, 4, 4))] == [2, 2]
