import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from conftest import damage, part, refused, stopped, without_seconds

from mnist_jax import fit, load_run, make_config, make_setup, save_weights
from mnist_jax.errors import StorageError
from mnist_jax.runs import checkpoints
from mnist_jax.runs.checkpoints import resume, save_checkpoint, share
from mnist_jax.runs.directory import create_run, load_config, save_epochs
from mnist_jax.training import Progress

CONFIG = make_config("reference", arch="bn_dropout", epochs=3, batch_size=100, average_decay=0.9, optimizer="adamw")


def test_a_run_directory_is_made_once_and_has_a_usable_config(small, tmp_path):
    config = make_config("reference", arch="gap", seed=5)
    create_run(tmp_path / "a" / "run", config)
    assert load_config(tmp_path / "a" / "run") == config
    assert json.loads((tmp_path / "a" / "run" / "config.json").read_text()) == dataclasses.asdict(config)
    refused("already holds a run; resume it, or name another", create_run, tmp_path / "a" / "run", make_config())
    assert load_config(tmp_path / "a" / "run") == config
    assert resume(tmp_path / "a" / "run", config, small) == (None, ())  # No checkpoint yet is the start.
    refused("holds no run", load_run, tmp_path)
    for content in ("not json", '{"arch": "bn"}', '{"colour": 1}', "[1]", '{"recipe": 1}'):
        (tmp_path / "config.json").write_text(content)
        refused(r"config .* cannot be used", load_run, tmp_path)


@pytest.fixture(scope="module")
def small(mnist):
    return part(mnist, 500, 500)


@pytest.fixture(scope="module")
def saved(small, tmp_path_factory):
    """A run of three epochs, a checkpoint after each: its directory, its progress, and the final state."""
    run_dir, seen = tmp_path_factory.mktemp("runs") / "run", []
    create_run(run_dir, CONFIG)

    def keep(progress):
        seen.append(progress)
        save_checkpoint(run_dir, CONFIG, progress, 500)
        save_epochs(run_dir, progress.history)

    fit(CONFIG, small, on_epoch=keep)
    return run_dir, seen


@pytest.fixture
def run(saved, tmp_path):
    """A copy to damage."""
    return shutil.copytree(saved[0], tmp_path / "run"), saved[1]


def same(a: Progress, b: Progress):
    chex.assert_trees_all_equal(a._replace(history=()), b._replace(history=()))
    assert a.history == b.history


def test_a_checkpoint_is_the_progress_to_the_bit(run, small):
    run_dir, seen = run
    found = resume(run_dir, CONFIG, small)
    assert found.damaged == ()
    same(found.progress, seen[-1])
    assert jax.tree.structure(found.progress.state) == jax.tree.structure(seen[-1].state)
    assert [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == [
        metrics._asdict() for metrics in seen[-1].history
    ]
    save_checkpoint(run_dir, CONFIG, seen[-1], 500)  # The same step again.
    same(resume(run_dir, CONFIG, small).progress, seen[-1])


def test_another_process_is_given_the_history_to_the_bit(saved, small, monkeypatch):
    """What processes share passes through JAX, which makes float32 of float64."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints, "from_writer", lambda tree: jax.tree.map(jax.numpy.asarray, tree))
    last = saved[1][-1]
    same(share(last, CONFIG, small), last)
    assert any(float(np.float32(entry.seconds)) != entry.seconds for entry in last.history)


def test_a_run_goes_on_from_a_checkpoint_in_mid_epoch(small, saved, tmp_path):
    create_run(tmp_path / "run", CONFIG)
    save_checkpoint(tmp_path / "run", CONFIG, stopped(6, fit, CONFIG, small), 500)
    progress = resume(tmp_path / "run", CONFIG, small).progress
    assert (int(progress.state.step), int(progress.totals.count), len(progress.history)) == (6, 100, 1)
    state, history = fit(CONFIG, small, progress=progress)
    expected = saved[1][-1]
    chex.assert_trees_all_equal(state, expected.state)
    assert without_seconds(history) == without_seconds(expected.history)


def test_only_the_newest_are_kept(saved, tmp_path):
    for progress in saved[1]:
        save_checkpoint(tmp_path, CONFIG, progress, 500, keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["10", "10.sha256", "15", "15.sha256"]


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_to_any_one_file_is_noticed(saved, small, tmp_path, how):
    """It is named, and the checkpoint before it used."""
    run_dir, seen = saved
    for i, path in enumerate([*files_of(run_dir / "checkpoints" / "15"), run_dir / "checkpoints" / "15.sha256"]):
        if path.stat().st_size == 0 and how != "missing":
            continue
        copy = tmp_path / str(i)
        shutil.copytree(run_dir, copy)
        damage(copy / path.relative_to(run_dir), how)
        progress, (line,) = resume(copy, CONFIG, small)
        assert f"checkpoint {copy / 'checkpoints' / '15'} is damaged: " in line
        assert "\n" not in line
        same(progress, seen[1])
    # It is set aside, so that the same step can be saved again.
    assert (copy / "checkpoints" / "15.damaged").is_dir()
    save_checkpoint(copy, CONFIG, seen[2], 500)
    same(resume(copy, CONFIG, small).progress, seen[2])


def test_all_checkpoints_damaged(run, small):
    run_dir, _ = run
    for step in (5, 10, 15):
        for path in files_of(run_dir / "checkpoints" / str(step)):
            damage(path, "flipped")
    named = ".*".join(f"checkpoints/{step} is damaged" for step in (15, 10, 5))
    refused(f"{named}.*no checkpoint is intact, so start again in another directory", resume, run_dir, CONFIG, small)


@pytest.mark.parametrize(("setting", "value"), [("learning_rate", 0.02), ("arch", "gap")])
def test_another_setting_is_refused(run, small, setting, value):
    run_dir, _ = run
    other = dataclasses.replace(CONFIG, **{setting: value})
    message = f"cannot resume: {setting} is {value!r}, but the run was begun with {getattr(CONFIG, setting)!r}"
    refused(message, resume, run_dir, other, small)
    # By hand in the file, to the same end.
    (run_dir / "config.json").write_text(json.dumps(dataclasses.asdict(other)))
    refused(message, resume, run_dir, load_config(run_dir), small)


def test_what_may_change(run, small, tmp_path):
    run_dir, seen = run
    longer = dataclasses.replace(CONFIG, epochs=5, eval_batch_size=100, run_dir="elsewhere")
    same(resume(run_dir, longer, small).progress, seen[-1])
    refused("trains on 500 images, not 400", resume, run_dir, CONFIG, part(small, 400, 500))
    scheduled = make_config(arch="gap", epochs=3)
    create_run(tmp_path / "other", scheduled)
    longer = dataclasses.replace(scheduled, epochs=4)
    refused("epochs is 4, but the run was begun with 3", resume, tmp_path / "other", longer, small)


def test_what_cannot_be_written_says_so_and_harms_nothing(run, small, monkeypatch):
    run_dir, seen = run
    before = (run_dir / "metrics.jsonl").read_bytes()

    def refuse(self, target):
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(StorageError, match=r"cannot write to run dir .*Permission denied.*then resume the run"):
        save_epochs(run_dir, seen[0].history)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    with pytest.raises(StorageError, match=r"weights .* cannot be written \(Permission denied\); correct the perm"):
        save_weights(run_dir / "weights", make_setup(CONFIG, small).trained(seen[0].state))
    monkeypatch.undo()
    same(resume(run_dir, CONFIG, small).progress, seen[-1])
