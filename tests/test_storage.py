"""Where things are written: one writer at a time, paths, and what is said when the disk refuses."""

import dataclasses
import errno
import fcntl
import os
import resource
import time
from pathlib import Path

import pytest
from conftest import assert_refused, part, refused

from mnist_jax import load_dataset, load_pretrained, load_run, load_weights, make_config, save_weights
from mnist_jax.errors import BusyError, InputError
from mnist_jax.runs import directory
from mnist_jax.runs.session import session
from mnist_jax.series import records


def without_flock(monkeypatch, number):
    """Many network disks have no locks."""

    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [None, errno.ENOLCK])
def test_a_file_has_one_writer_at_a_time(tmp_path, monkeypatch, number):
    """Also where the disk has no `flock`, as many network disks."""
    if number:
        without_flock(monkeypatch, number)
    path = tmp_path / "new" / "trials.jsonl"
    for _ in range(2):  # It is free again.
        with records.only_writer(path), records.only_writer(path.with_name("other.jsonl")):
            said = rf"trials.jsonl' is being written by process {os.getpid()} on .*; wait for it or stop it, or name"
            with pytest.raises(BusyError, match=said), records.only_writer(path):
                pass
            assert records.read_trials(path) == []
    assert BusyError.status == 5


def test_a_lock_that_a_killed_process_left_on_another_machine_can_be_removed(tmp_path, monkeypatch):
    without_flock(monkeypatch, errno.ENOLCK)
    left = tmp_path / ".trials.jsonl.held"
    left.write_text("4711\nelsewhere\n")
    with pytest.raises(BusyError, match=rf"if it is gone, remove '{left}'$"):
        records.only_writer(tmp_path / "trials.jsonl").__enter__()
    left.unlink()
    with records.only_writer(tmp_path / "trials.jsonl"):
        pass


@pytest.mark.parametrize("number", [None, errno.ENOLCK])
def test_two_runs_that_begin_at_once(mnist, monkeypatch, tmp_path, number):
    """The first has the lock and has not written its config yet; the second leaves none. Also on a disk without locks.

    Without a directory named, each has its own.
    """
    if number:
        without_flock(monkeypatch, number)
    run_dir, data = tmp_path / "run", part(mnist, 300, 100)
    config = make_config("reference", arch="gap", batch_size=100, run_dir=str(run_dir))
    with directory.lock(run_dir, new=True):
        with pytest.raises(BusyError, match=f"is being written by process {os.getpid()} on"):
            session(config, data).__enter__()
        assert not (run_dir / "config.json").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    unnamed = dataclasses.replace(config, run_dir=None)
    with session(unnamed, data) as one, session(unnamed, data) as two:
        assert [run.run_dir.name for run in (one, two)] == ["now-gap-reference", "now-gap-reference-2"]


def test_what_cannot_be_written_is_an_error_of_the_system_with_its_file(tmp_path):
    trained, limits = load_pretrained("gap"), resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "file" / "w", tmp_path / "folder", tmp_path / "absent" / "w", tmp_path / ("x" * 250)]
    for path in paths:
        with pytest.raises(OSError, match=str(path)):
            save_weights(path, trained)
    with pytest.raises(OSError, match="file/run"):
        directory.create_run(tmp_path / "file" / "run", make_config())
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            save_weights(tmp_path / "w", trained)
        assert error.value.filename == str(tmp_path / "w")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize("name", ["a\0", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused_before_training(mnist, tmp_path, name):
    config = make_config("reference", arch="gap", batch_size=100, run_dir=str(tmp_path / name))
    refused("run dir .* cannot be used", session(config, part(mnist, 300, 100)).__enter__)
    with pytest.raises(InputError, match="cannot be used"), directory.lock(tmp_path / name, new=True):
        pass


def test_what_a_killed_save_left_is_removed(tmp_path):
    for name in ("config.json.0123abcd.tmp", "mine.tmp"):
        (tmp_path / name).touch()
    with directory.lock(tmp_path):
        assert [path.name for path in tmp_path.glob("*.tmp")] == ["mine.tmp"]


def test_home_is_expanded_and_addresses_are_refused(monkeypatch, tmp_path, mnist):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained = load_pretrained("gap")
    save_weights("~/w.safetensors", trained)
    assert str(load_weights("~/w.safetensors")) == str(trained)
    config = make_config("reference", arch="gap", batch_size=100, run_dir="~/run")
    with session(config, part(mnist, 300, 100)) as run:
        assert run.run_dir == tmp_path / "run"
    for address in ("s3://x/y.npz", Path("hdfs://host/x")):
        for function in (load_dataset, load_run, load_weights, directory.load_config):
            refused("://.* is an address, and only a path of this machine can be used", function, address)
        refused("address", load_dataset, "mnist", data_dir=address, source="tfds")
        refused("address", save_weights, address, trained)
    refused("address", session(dataclasses.replace(config, run_dir="gs://bucket/run"), part(mnist, 300, 100)).__enter__)
    refused("weights is a NoneType; give text or a Path", load_weights, None)
    refused("home", load_weights, "~nobody-of-that-name/w")


@pytest.mark.parametrize("command", ["reproduce --out", "search --log"])
def test_a_second_series_is_refused_before_the_work(call, command):
    with records.only_writer(Path("file.jsonl")):
        status, out, err = call(*command.split(), "file.jsonl")
    assert (status, out, err.count("\n")) == (5, "", 1)
    assert f"error: results 'file.jsonl' is being written by process {os.getpid()} on " in err


@pytest.mark.parametrize("command", ["train --resume ADDRESS", "predict ADDRESS", "reproduce --weights-dir ADDRESS"])
def test_an_address_is_refused_before_the_work(call, tmp_path, command):
    found = call(*command.replace("ADDRESS", "gs://bucket/x").split())
    assert_refused(found, "'gs://bucket/x' is an address, and only a path of this machine can be used; name one")
    assert not list(tmp_path.iterdir())
