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
from unittest.mock import Mock

import psutil
import pytest
from conftest import PREPARED, ROOT, begin, free_port, refused, wait_for
from safetensors.numpy import load_file

from mnist_jax import make_config
from mnist_jax.cli.options import Workers
from mnist_jax.cli.series import outcomes
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
    """Four seeds, one after the other, on one core: trials and variables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NPROC", "1")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            return {seed: worker.submit(train, Task(CONFIG, (seed,))).result()[0] for seed in range(1, 5)}


def test_at_once_or_with_a_worker_killed_or_stopped_between_it_is_the_same(alone, call, monkeypatch, tmp_path):
    """One seed was trained before; then two workers share a core, of which one is killed in its first trial."""
    out, killed, run_at_once = tmp_path / "seeds.jsonl", [], workers.run_at_once
    records.prepare_trials(out)
    records.append_trials(out, alone[1][0])

    def killing(tasks, client, wanted, stop, tell):
        def kill_one():
            if not killed and (busy := [address for address, keys in client.processing().items() if keys]):
                killed.append(psutil.Process(client.run(os.getpid)[busy[0]]))
                killed[0].kill()
            return stop()

        return run_at_once(tasks, client, wanted, kill_one, tell)

    monkeypatch.setattr(workers, "run_at_once", killing)
    monkeypatch.setattr(workers, "cores", lambda: [0])
    flags = [*FLAGS, "--out", out, "--weights-dir", tmp_path, "--seeds", 4, "--jobs", 2]
    status, printed, err = call("reproduce", *flags)
    assert (status, err, len(killed)) == (0, "", 1)
    assert printed.count("a worker is lost; Dask trains again what it had begun\n") == 1
    assert sorted(re.findall(r"^seed (\d)  test accuracy", printed, re.MULTILINE)) == ["2", "3", "4"]
    assert not {"\x1b", "\r"} & set(printed)
    assert read(out) == {seed: comparable(trial) for seed, (trial, _) in alone.items()}
    weights = load_file(tmp_path / "reference-4-pool-4-4.safetensors")
    kernel = alone[4][1]["params"]["conv1"]["kernel"]
    assert any((array == kernel).all() for array in weights.values() if array.shape == kernel.shape)


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
    children = psutil.Process(process.pid).children
    wait_for(lambda: sum("spawn_main" in str(child.cmdline()) for child in children(recursive=True)) == 2, process)
    if number == signal.SIGINT:
        wait_for(lambda: out.exists() and out.read_text(), process)
    begun = children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == status
    if number == signal.SIGINT:
        assert err == "error: interrupted; the same command goes on after what is finished\n"
        assert read(out)
    assert psutil.wait_procs(begun, timeout=5)[1] == []


def test_as_many_jobs_as_cores_and_memory_allow(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: [*range(16)])
    for memory, arch, expected in ((64e9, "gap", 16), (5e9, "basic", 4), (1e8, "basic", 1)):
        monkeypatch.setattr("distributed.system.MEMORY_LIMIT", memory)
        assert workers.default_jobs(["gap", arch]) == expected


@contextlib.contextmanager
def dask(directory, environment, count):
    """A scheduler and n workers by the documentation's commands: the flags that use them, the address, a process."""
    lines = re.findall(r"^(.*\b8786\b.*)$", (ROOT / "docs/trainings.md").read_text(encoding="utf-8"), re.MULTILINE)
    port = str(free_port())
    lines = [line.replace("HOST:8786", f"localhost:{port}").replace("8786", port) for line in lines]
    start, join, use = (shlex.split(line, comments=True) for line in lines)
    join[join.index("--nworkers") + 1] = str(count)
    with contextlib.ExitStack() as stack:
        for command in (start, join) if count else (start,):
            log = stack.enter_context((directory / f"{command[1]}.log").open("w"))
            command = [sys.executable, "-m", "dask", *command[1:], "--no-dashboard"]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=directory)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        yield use[2:], f"localhost:{port}", process


def test_a_cluster_with_another_version_or_data_is_refused_by_name(alone, environment, call, tmp_path, monkeypatch):
    """Before the work, and so is a worker that comes later, by its first task."""
    out, mine = tmp_path / "seeds.jsonl", workers.identity(CONFIG)
    others = {"mnist-jax": ("sources", lambda: "another"), "data": ("dataset", lambda _: Mock(sha256="another"))}
    with dask(tmp_path, environment, 1) as (flags, address, _):
        wait_for(lambda: "Registered" in (tmp_path / "worker.log").read_text())
        for name, patched in others.items():
            with monkeypatch.context() as patch:
                patch.setattr(workers, *patched)
                status, printed, err = call("reproduce", *flags, *FLAGS, "--out", out)
            assert (status, printed) == (2, "")
            message = f"has {name} {mine[name]}, but this process another; give both the same"
            assert re.fullmatch(rf"error: worker tcp://\S+ {message}\n", err)
        with workers.cluster_workers(address, CONFIG) as client:
            tasks = workers.run_at_once([Task(CONFIG, (1,))], client, {"data": "another"}, bool, print)
            refused("worker tcp://.* has data", next, tasks)
        assert call("reproduce", *flags, *FLAGS, "--seeds", 2, "--out", out)[::2] == (0, "")
        assert read(out) == {seed: comparable(alone[seed][0]) for seed in (1, 2)}


def test_a_scheduler_that_is_lost_or_was_never_there(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 1)
    said, task = [], Task(CONFIG, (1,))
    with dask(tmp_path, environment, 0) as (_, address, scheduler):
        wait_for(lambda: "Scheduler at" in (tmp_path / "scheduler.log").read_text())
        with (
            outcomes([task], Workers(scheduler=address), scheduler.kill, said.append) as ended,
            pytest.raises(LostError, match="the scheduler is lost; the same command continues"),
        ):
            next(ended)
    assert said == [f"scheduler '{address}' has no workers yet; waiting for the first"]
    with pytest.raises(LostError, match=f"scheduler '{address}' cannot be reached"):
        workers.cluster_workers(address, CONFIG).__enter__()
