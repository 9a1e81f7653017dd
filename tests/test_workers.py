"""Many trainings at once, by Dask's workers of this machine and of a cluster: the same bits, whatever dies."""

import contextlib
import importlib.util
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import jax
import psutil
import pytest
from conftest import PREPARED, ROOT, begin, free_port, wait_for
from safetensors.numpy import load_file

from mnist_jax import make_config
from mnist_jax.errors import LostError
from mnist_jax.series import records, workers
from mnist_jax.series.workers import Task, train

SETTINGS = {"recipe": "reference", "arch": "4-pool-4", "epochs": 5, "batch_size": 20}
CONFIG = make_config(**SETTINGS, data_source="tfds", data_dir=str(PREPARED))
FLAGS = ["--data-source", "tfds", "--data-dir", str(PREPARED)]
FLAGS += [part for name, value in SETTINGS.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def comparable(trial):
    """A trial without what may differ: the time it took, and where."""
    history = tuple(epoch._replace(seconds=0.0) for epoch in trial.history)
    return trial._replace(history=history, seconds=0.0, environment=None)


def read(path):
    """The trials of a file by seed, each of which is there once."""
    found = records.read_trials(path)
    by_seed = {trial.config["seed"]: comparable(trial) for trial in found}
    assert len(by_seed) == len(found)
    return by_seed


@pytest.fixture(scope="module")
def alone(environment):
    """Six seeds, one after the other, on one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            return {seed: worker.submit(train, Task(CONFIG, (seed,))).result()[0] for seed in range(1, 7)}


def workers_of(pid):
    """Its worker processes that are alive."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in str(child.cmdline())
    ]


def test_at_once_or_with_a_worker_killed_or_stopped_between_it_is_the_same(alone, call, monkeypatch, tmp_path):
    """Two workers, of which one is killed in its first trial; then one is enough for the rest."""
    out, killed, run_at_once = tmp_path / "seeds.jsonl", [], workers.run_at_once

    def killing(tasks, client, wanted, stop, tell):
        def kill_one():
            if not killed and (busy := [address for address, keys in client.processing().items() if keys]):
                killed.append(psutil.Process(client.run(os.getpid)[busy[0]]))
                killed[0].kill()
            return stop()

        return run_at_once(tasks, client, wanted, kill_one, tell)

    monkeypatch.setattr(workers, "run_at_once", killing)
    flags = [*FLAGS, "--out", out, "--weights-dir", tmp_path]
    status, printed, err = call("reproduce", *flags, "--seeds", 5, "--jobs", 2)
    assert (status, err, len(killed)) == (0, "", 1)
    assert printed.count("a worker is lost; Dask trains again what it had begun\n") == 1
    assert len(re.findall(r"^seed \d  test accuracy", printed, re.MULTILINE)) == 5
    assert not {"\x1b", "\r"} & set(printed)
    monkeypatch.setattr(workers, "run_at_once", run_at_once)
    monkeypatch.setattr(workers, "cores", lambda: [0])  # One core for two workers, and so one for each.
    assert call("reproduce", *flags, "--seeds", 6, "--jobs", 2)[0] == 0
    assert read(out) == {seed: comparable(trial) for seed, (trial, _) in alone.items()}
    for seed in (1, 6):
        weights = load_file(tmp_path / f"reference-4-pool-4-{seed}.safetensors")
        kernel = alone[seed][1]["params"]["conv1"]["kernel"]
        assert any((array == kernel).all() for array in weights.values() if array.shape == kernel.shape)


def test_a_later_trial_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    train(Task(CONFIG, (1,)))
    assert any("backend_compile" in name for name in compiled)
    compiled.clear()
    train(Task(CONFIG, (2,)))
    assert not [name for name in compiled if "backend_compile" in name]


def test_a_trial_that_diverges_stops_nobody_and_without_dask_they_run_one_by_one(call, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    flags = [*FLAGS, "--learning-rate", "1e30", "--out", tmp_path / "seeds.jsonl", "--seeds", "2", "--jobs", "2"]
    status, printed, err = call("reproduce", *flags)
    assert status == 3
    assert printed.startswith("one training after the other, since distributed is not installed: pip install 'mnist")
    for seed in (1, 2):
        assert f"seed {seed}: the loss or its gradient is not finite" in printed
        assert f"seed {seed}: the loss" in err
    assert err.count("\n") == 1
    assert records.read_trials(tmp_path / "seeds.jsonl") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_leaves_no_process_behind(environment, tmp_path, number, status):
    """Ctrl-C, which goes to the workers too as from a terminal, once a trial is finished; or killed in the first."""
    out = tmp_path / "seeds.jsonl"
    flags = [*FLAGS, "--out", out, "--seeds", 1000, "--jobs", 2]
    process = begin(environment, "reproduce", *flags, start_new_session=True)
    wait_for(lambda: len(workers_of(process.pid)) == 2, process)
    if number == signal.SIGINT:
        wait_for(lambda: out.exists() and out.read_text(), process)
    begun = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    if number == signal.SIGINT:
        assert err == "error: interrupted; the same command goes on after what is finished\n"
        assert read(out)
    assert psutil.wait_procs(begun, timeout=5)[1] == []


def test_as_many_jobs_as_cores_and_memory_allow(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: list(range(16)))
    for memory, arch, expected in ((64e9, "gap", 16), (5e9, "gap", 7), (5e9, "basic", 4), (1e8, "basic", 1)):
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
        assert workers.default_jobs(["gap", arch]) == expected


SHOWN = re.findall(r"^(.*\b8786\b.*)$", (ROOT / "docs/trainings.md").read_text(encoding="utf-8"), re.MULTILINE)


@contextlib.contextmanager
def dask(directory, environment, count):
    """A scheduler and n workers on loopback by the documentation's commands; the flags of the one that uses them."""
    port = str(free_port())
    lines = [line.replace("HOST:8786", f"localhost:{port}").replace("8786", port) for line in SHOWN]
    start, join, use = (shlex.split(line, comments=True) for line in lines)
    join[join.index("--nworkers") + 1] = str(count)
    with contextlib.ExitStack() as stack:
        processes = []
        for command in (start, join) if count else (start,):
            log = stack.enter_context((directory / f"{command[1]}.log").open("w"))
            command = [sys.executable, "-m", "dask", *command[1:], "--no-dashboard"]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append(process)
        yield use[2:], *processes


def test_a_cluster_with_another_version_or_data_is_refused_by_name(alone, environment, call, tmp_path, monkeypatch):
    out, mine = tmp_path / "seeds.jsonl", workers.identity(CONFIG)
    with dask(tmp_path, environment, 1) as (flags, *_):
        wait_for(lambda: "Registered" in (tmp_path / "worker.log").read_text())
        for name in mine:
            with monkeypatch.context() as patch:
                patch.setattr(workers, "_identity", lambda *_, name=name: {**mine, name: "another"})
                status, printed, err = call("reproduce", *flags, *FLAGS, "--out", out)
            assert (status, printed) == (2, "")
            message = f"has {name} {mine[name]}, but this process another; give both the same"
            assert re.fullmatch(rf"error: worker tcp://\S+ {message}\n", err)
        assert call("reproduce", *flags, *FLAGS, "--seeds", 2, "--out", out)[::2] == (0, "")
        assert read(out) == {seed: comparable(alone[seed][0]) for seed in (1, 2)}


def test_a_scheduler_that_is_lost_or_was_never_there(environment, tmp_path, monkeypatch):
    with dask(tmp_path, environment, 0) as (flags, scheduler):
        process = begin(environment, "reproduce", *FLAGS, *flags, "--out", tmp_path / "seeds.jsonl")
        assert process.stdout.readline() == f"scheduler '{flags[1]}' has no workers yet; waiting for the first\n"
        scheduler.kill()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert err == "error: the scheduler is lost; the same command continues after the finished trials\n"
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 1)
    with pytest.raises(LostError, match=f"scheduler '{flags[1]}' cannot be reached"):
        workers.cluster_workers(flags[1], CONFIG).__enter__()
