"""Many trainings at once, in processes of this machine and on a Dask cluster: the same bits, whatever dies."""

import collections
import contextlib
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import jax
import psutil
import pytest
from conftest import PREPARED, ROOT, begin, free_port, wait_for
from safetensors.numpy import load_file

from mnist_jax import make_config
from mnist_jax.errors import LostError
from mnist_jax.lab import cluster, jobs, records

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
    """Eight seeds, one after the other, on one core."""
    with jobs.process(jobs.cores()[:1]) as worker:
        outcomes = [worker.submit(jobs.train, jobs.Task(CONFIG, (seed,))) for seed in range(1, 9)]
        return {seed: future.result()[0] for seed, future in enumerate(outcomes, 1)}


def workers_of(pid):
    """Its worker processes that are alive, forked by one of its children, or spawned as Dask's are."""
    found = {each.pid: each for each in psutil.process_iter(["ppid", "cmdline", "status"])}
    servers = [each.pid for each in found.values() if each.info["ppid"] == pid and "forkserver" in str(each.info)]

    def is_worker(ppid, cmdline, status):
        return (ppid in servers or (ppid == pid and "spawn_main" in str(cmdline))) and status != "zombie"

    return [each for each in found.values() if is_worker(**each.info)]


def test_at_once_or_one_by_one_and_stopped_between_it_is_the_same(alone, script, tmp_path):
    """As many jobs as there are cores, so that each has one, as `alone` had; then another number for the rest."""
    out, count = tmp_path / "seeds.jsonl", max(2, len(jobs.cores()))
    flags = [*FLAGS, "--out", out, "--weights-dir", tmp_path]
    status, said, err = script("reproduce.py", *flags, "--seeds", 3, "--jobs", count)
    assert (status, err) == (0, "")
    assert set(read(out)) == {1, 2, 3}
    assert len(re.findall(r"^seed \d  test accuracy", said, re.MULTILINE)) == 3
    assert not {"\x1b", "\r"} & set(said)
    status, said, _ = script("reproduce.py", *flags, "--seeds", 4, "--jobs", count + 1)
    assert status == 0
    assert read(out) == {seed: comparable(alone[seed][0]) for seed in (1, 2, 3, 4)}
    for seed in (1, 4):
        weights = load_file(tmp_path / f"reference-4-pool-4-{seed}.safetensors")
        kernel = alone[seed][1]["params"]["conv1"]["kernel"]
        assert any((array == kernel).all() for array in weights.values() if array.shape == kernel.shape)


def test_a_later_trial_compiles_nothing():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    task = jobs.Task(CONFIG, (1,))
    jobs.train(task)
    assert any("backend_compile" in name for name in compiled)
    compiled.clear()
    jobs.train(task._replace(seeds=(2,)))
    assert not [name for name in compiled if "backend_compile" in name]


@pytest.mark.slow
def test_ten_workers_killed_lose_and_double_nothing(alone, monkeypatch):
    """At random moments, but never the third time in one trial; on one core, as `alone`."""
    one = jobs.cores()[:1]
    monkeypatch.setattr(jobs, "cores", lambda: one)
    tasks, moments = [jobs.Task(CONFIG, (seed,)) for seed in alone], random.Random(0)
    deaths, done, due = collections.Counter(), {}, [time.monotonic()]

    def kill_now_and_then():
        spare = all(task in done for task in deaths if deaths[task] == 2)
        if spare and deaths.total() < 10 and time.monotonic() > due[-1] and (workers := workers_of(os.getpid())):
            workers[0].kill()
            due.append(time.monotonic() + moments.uniform(0.1, 1))
        return False

    with jobs.processes(1, True) as pool:
        for task, result in jobs.run(tasks, pool, lambda task, times: deaths.update([task]), kill_now_and_then):
            assert task not in done
            done[task] = result
    assert deaths.total() >= 10
    assert {task.seeds[0]: comparable(trial) for task, [(trial, _)] in done.items()} == {
        seed: comparable(trial) for seed, (trial, _) in alone.items()
    }


def test_a_trial_is_begun_three_times_and_stops_nobody():
    tasks, deaths = [jobs.Task(CONFIG, (seed,)) for seed in (1, 2, 3)], []

    def submit(task):
        future = Future()
        future.set_exception(BrokenProcessPool()) if task is tasks[1] else future.set_result([])
        return future

    pool = jobs.Pool(submit, lambda: 1)
    outcomes = dict(jobs.run(tasks, pool, lambda task, times: deaths.append((task.seeds, times)), lambda: False))
    assert deaths == [((2,), 1), ((2,), 2), ((2,), 3)]
    assert list(outcomes) == tasks
    assert isinstance(outcomes[tasks[1]], LostError)
    assert outcomes[tasks[0]] == outcomes[tasks[2]] == []
    with pytest.raises(KeyboardInterrupt):
        list(jobs.run(tasks, pool, print, lambda: True))


def test_a_trial_that_diverges_stops_nobody(script, tmp_path):
    flags = [*FLAGS, "--learning-rate", "1e30", "--out", tmp_path / "seeds.jsonl", "--seeds", "2", "--jobs", "1"]
    status, said, err = script("reproduce.py", *flags)
    assert status == 3
    for seed in (1, 2):
        assert f"seed {seed}: the loss or its gradient is not finite" in said
        assert f"seed {seed}: the loss" in err
    assert err.count("\n") == 1
    assert records.read_trials(tmp_path / "seeds.jsonl") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_leaves_no_process_behind(environment, tmp_path, number, status):
    """Ctrl-C goes to the workers too, as from a terminal."""
    out = tmp_path / "seeds.jsonl"
    flags = [*FLAGS, "--out", out, "--seeds", 1000, "--jobs", 2]
    process = begin(environment, "reproduce.py", *flags, start_new_session=True)
    wait_for(lambda: out.exists() and out.read_text())
    assert len(workers_of(process.pid)) == 2
    begun = psutil.Process(process.pid).children(recursive=True)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == status
    if number != signal.SIGKILL:
        assert err == "error: interrupted; the same command goes on after what is finished\n"
    assert psutil.wait_procs(begun, timeout=5)[1] == []
    assert read(out)


def test_as_many_jobs_as_cores_and_memory_allow(monkeypatch):
    monkeypatch.setattr(jobs, "cores", lambda: list(range(16)))
    memory = collections.namedtuple("Memory", "available")
    for available, arch, expected in ((64e9, "gap", 16), (5e9, "gap", 7), (5e9, "basic", 4), (1e8, "basic", 1)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda available=available: memory(available))
        monkeypatch.setattr(Path, "read_text", lambda path: "max\n")
        assert jobs.default_jobs(["gap", arch]) == expected
    monkeypatch.setattr(Path, "read_text", lambda path: "2000000000")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(64e9))
    assert jobs.default_jobs(["gap"]) == 2


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


def test_a_cluster_refused_by_name_or_with_a_worker_killed(alone, environment, script, tmp_path, monkeypatch):
    out, deaths, mine = tmp_path / "seeds.jsonl", [], cluster.identity(CONFIG)

    with dask(tmp_path, environment, 2) as (flags, _, nanny):
        wait_for(lambda: len(workers_of(nanny.pid)) == 2 and "Registered" in (tmp_path / "worker.log").read_text())
        for name in mine:
            with monkeypatch.context() as patch:
                patch.setattr(cluster, "_identity", lambda *_, name=name: {**mine, name: "another"})
                status, said, err = script("reproduce.py", *flags, *FLAGS, "--out", out)
            assert (status, said) == (2, "")
            message = f"has {name} {mine[name]}, but this process another; give both the same"
            assert re.fullmatch(rf"error: worker tcp://\S+ {message}\n", err)

        def kill_one():
            if not deaths and out.read_text():
                deaths.append(workers_of(nanny.pid)[0])
                deaths[0].kill()
            return False

        run = jobs.run
        monkeypatch.setattr(jobs, "run", lambda tasks, pool, on_death, _: run(tasks, pool, on_death, kill_one))
        status, said, err = script("reproduce.py", *flags, *FLAGS, "--seeds", 8, "--out", out)
        assert (status, err) == (0, "")
        assert len(re.findall(r"^seed \d: its worker died; it is run again$", said, re.MULTILINE)) == 1
        assert read(out) == {seed: comparable(trial) for seed, (trial, _) in alone.items()}


def test_a_scheduler_that_is_lost_or_was_never_there(environment, tmp_path, monkeypatch):
    with dask(tmp_path, environment, 0) as (flags, scheduler):
        process = begin(environment, "reproduce.py", *FLAGS, *flags, "--out", tmp_path / "seeds.jsonl")
        assert process.stdout.readline() == f"scheduler '{flags[1]}' has no workers yet; waiting for the first\n"
        scheduler.kill()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 5
    assert err == "error: the scheduler is lost; the same command continues after the finished trials\n"
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 1)
    with pytest.raises(LostError, match=f"scheduler '{flags[1]}' cannot be reached"):
        cluster.connect(flags[1], CONFIG, True).__enter__()
