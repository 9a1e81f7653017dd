"""Checkpoints: what is saved is what is read back, or it is named."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from conftest import damage, part, refused, stopped, without_seconds

from mnist_jax import fit, load_run, make_config, make_setup, save_weights
from mnist_jax.runs import checkpoints
from mnist_jax.runs.checkpoints import resume, save_checkpoint, share
from mnist_jax.runs.directory import create_run, load_config, save_epochs
from mnist_jax.runs.files import by_name, read_arrays, write_arrays
from mnist_jax.training import Progress

CONFIG = make_config("reference", arch="4-pool-4", epochs=3, batch_size=100, average_decay=0.9, optimizer="adamw")


def test_a_run_directory_is_made_once_and_has_a_usable_config(small, tmp_path):
    config = make_config("reference", arch="gap", seed=5)
    create_run(tmp_path / "a" / "run", config)
    refused("already holds a run; resume it, or name another", create_run, tmp_path / "a" / "run", make_config())
    assert load_config(tmp_path / "a" / "run") == config
    assert resume(tmp_path / "a" / "run", config, small) == (None, ())  # No checkpoint yet is the start.
    refused("seed was 5, now 6", resume, tmp_path / "a" / "run", dataclasses.replace(config, seed=6), small)
    refused("holds no run", load_run, tmp_path)
    for content in ("not json", '{"arch": "bn"}', '{"colour": 1}', "[1]", '{"recipe": 1}'):
        (tmp_path / "config.json").write_text(content)
        refused(r"config .* cannot be used", load_run, tmp_path)


@pytest.fixture(scope="module")
def small(mnist):
    return part(mnist, 500, 500)


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """A run of three epochs, a checkpoint after each: its directory, and its progress."""
    run_dir, seen = tmp_path_factory.mktemp("runs") / "run", []
    create_run(run_dir, CONFIG)

    def keep(progress):
        seen.append(progress)
        save_checkpoint(run_dir, progress)
        save_epochs(run_dir, progress.history)

    fit(CONFIG, small, on_epoch=keep)
    return run_dir, seen


@pytest.fixture
def run(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved[0], tmp_path / "run"), saved[1]


def same(a: Progress, b: Progress):
    chex.assert_trees_all_equal(a._replace(history=()), b._replace(history=()))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert (a.history, a.identity) == (b.history, b.identity)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize("name", ["run", "a [b]*?{c}", "\udce9 七\n'\""])
def test_a_checkpoint_is_the_progress_to_the_bit_whatever_the_path(saved, small, tmp_path, name):
    run_dir = shutil.copytree(saved[0], tmp_path / name)
    for _ in range(2):
        progress, damaged = resume(run_dir, CONFIG, small)
        assert damaged == ()
        same(progress, saved[1][-1])
        save_checkpoint(run_dir, progress)  # The same step again.
    assert names(run_dir) == ["10.safetensors", "15.safetensors"]  # The last two.
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [metrics._asdict() for metrics in progress.history]


def test_another_process_is_given_the_history_to_the_bit(saved, small, monkeypatch):
    """What processes share passes through JAX, which makes float32 of float64."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints, "from_writer", lambda tree: jax.tree.map(jax.numpy.asarray, tree))
    last = saved[1][-1]
    same(share(last, CONFIG, small), last)
    assert any(float(np.float32(entry.seconds)) != entry.seconds for entry in last.history)


def test_a_run_goes_on_from_a_checkpoint_in_mid_epoch(small, saved, tmp_path):
    create_run(tmp_path / "run", CONFIG)
    save_checkpoint(tmp_path / "run", stopped(6, fit, CONFIG, small))
    progress, _ = resume(tmp_path / "run", CONFIG, small)
    assert (progress.steps, int(progress.totals.count), len(progress.history)) == (6, 100, 1)
    state, history = fit(CONFIG, small, progress=progress)
    expected = saved[1][-1]
    chex.assert_trees_all_equal(state, expected.state)
    assert without_seconds(history) == without_seconds(expected.history)


def test_damage_to_any_part_is_noticed(run, small):
    """The checkpoint is named, the one before it is used, and the next one takes its place."""
    run_dir, seen = run
    path = run_dir / "checkpoints" / "15.safetensors"
    content = path.read_bytes()
    damaged = {content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :] for i in range(0, len(content), 251)}
    for other in (*damaged, content[:-1], b"", b"honestly"):
        path.write_bytes(other)
        progress, (line,) = resume(run_dir, CONFIG, small)
        assert line.startswith(f"checkpoint '{path}' is damaged: ")
        assert "\n" not in line
        same(progress, seen[1])
    save_checkpoint(run_dir, stopped(2, fit, CONFIG, small, progress=progress))
    assert names(run_dir) == ["10.safetensors", "12.safetensors"]
    for path in (run_dir / "checkpoints").iterdir():
        damage(path, "flipped")
    lines = "checkpoints/12.safetensors' is damaged.*checkpoints/10.safetensors' is damaged"
    refused(f"{lines}.*no checkpoint is intact; start again in another directory", resume, run_dir, CONFIG, small)


@pytest.mark.parametrize(
    ("setting", "value", "remark"),
    [
        ("learning_rate", 0.02, "learning rate was 0.01, now 0.02"),
        ("arch", "gap", "arch was '4-pool-4', now 'gap'"),
        ("held_out", 100, "held out was 0, now 100"),
    ],
)
def test_another_setting_is_refused(run, small, setting, value, remark):
    run_dir, _ = run
    other = dataclasses.replace(CONFIG, **{setting: value})
    refused(remark, resume, run_dir, other, small)
    # By hand in the file, to the same end.
    (run_dir / "config.json").write_text(json.dumps(dataclasses.asdict(other)))
    refused(remark, resume, run_dir, load_config(run_dir), small)


def test_what_may_change(run, small, tmp_path):
    run_dir, seen = run
    longer = dataclasses.replace(CONFIG, epochs=5, eval_batch_size=100, run_dir="elsewhere")
    progress, _ = resume(run_dir, longer, small)
    same(progress, seen[-1])
    refused("data was .*, now", resume, run_dir, CONFIG, part(small, 400, 500))
    scheduled = make_config(arch="gap", epochs=3)
    create_run(tmp_path / "other", scheduled)
    longer = dataclasses.replace(scheduled, epochs=4)
    refused("epochs was 3, now 4", resume, tmp_path / "other", longer, small)


def test_an_intact_checkpoint_that_cannot_be_used_is_not_passed_over(run, small, monkeypatch):
    """Of other versions of the packages, of version 0.2, or one that the disk does not give."""
    run_dir, seen = run
    path = run_dir / "checkpoints" / "15.safetensors"
    arrays, about = read_arrays(path)
    arrays["state/opt_state/new"] = arrays.pop("state/step")
    write_arrays(path, arrays, about)
    refused("15.safetensors' does not fit .state/opt_state/new.*with the versions", resume, run_dir, CONFIG, small)
    write_arrays(path, by_name(seen[0]), {"format": 3})
    refused("newer than 2; update mnist_jax", resume, run_dir, CONFIG, small)
    monkeypatch.setattr("pathlib.Path.open", refusing)
    with pytest.raises(PermissionError, match=r"15\.safetensors"):
        resume(run_dir, CONFIG, small)
    monkeypatch.undo()
    (run_dir / "checkpoints" / "10" / "state").mkdir(parents=True)  # As Orbax wrote it.
    refused("of mnist_jax 0.2; finish this run with 0.2", resume, run_dir, CONFIG, small)
    assert names(run_dir) == ["10", "10.safetensors", "15.safetensors"]


def refusing(path, *_):
    raise PermissionError(13, "Permission denied", str(path))


def test_what_cannot_be_written_says_so_and_harms_nothing(run, small, monkeypatch):
    run_dir, seen = run
    before = (run_dir / "metrics.jsonl").read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", refusing)
    for write, file in (
        (lambda: save_checkpoint(run_dir, seen[0]), "checkpoints/5.safetensors"),
        (lambda: save_epochs(run_dir, seen[0].history), "metrics.jsonl"),
        (lambda: save_weights(run_dir / "weights", make_setup(CONFIG, small).trained(seen[0].state)), "weights"),
    ):
        with pytest.raises(PermissionError) as error:
            write()
        assert error.value.filename == str(run_dir / file)
    monkeypatch.undo()
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    assert sorted(path.name for path in run_dir.iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
    same(resume(run_dir, CONFIG, small)[0], seen[-1])
