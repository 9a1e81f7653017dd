"""The same program on one device, on eight, and in two processes; to have its devices each is a process of its own."""

import json
import multiprocessing
import re
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

import chex
import jax
import numpy as np
import pytest
from conftest import PREPARED, ROOT, begin, free_port, part, refused, run_command, smooth
from safetensors.numpy import load_file

from mnist_jax import devices, evaluate, load_dataset, make_config, make_setup, training
from mnist_jax.recipes.fits import fit, fit_seeds, start
from mnist_jax.recipes.values import network_of
from mnist_jax.steps import Streams, train_step
from mnist_jax.training import Epoch, program

SMALL = "crop6-8-pool-8"
EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.fixture(scope="module")
def on_eight(environment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{EIGHT} --xla_cpu_collective_call_terminate_timeout_seconds=10")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
            yield lambda function: worker.submit(function).result()


def several_steps():
    """Dropout, augmentation and the average on; and every device works on an eighth of the batch."""
    data = part(load_dataset("mnist"), 64, 1)
    config = make_config("reference", batch_size=16, average_decay=0.9, rotation=10.0)
    model, key = network_of(config).clone(layers=smooth()), Streams.from_seed(1).step
    setup, step, found = make_setup(config, data, model=model), program(False, False), []
    order, programs = np.arange(64, dtype=np.int32).reshape(4, 16), step._cache_size()
    for mesh in (None, devices.make_mesh()):
        state, totals, images = devices.put((*start(config, data, model=model)[:2], data.train), mesh)
        split = devices.put(order, mesh, axis=1)
        state, totals = training.train_epoch(state, images, split, key, setup, totals=totals)
        assert totals.count == 64
        found.append((state, totals.mean()))
    one, eight = jax.tree.map(np.asarray, found)
    chex.assert_trees_all_close(eight, one, atol=1e-5)  # Sums of 16 x 26 x 26 values, none of which is far above one.
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert step._cache_size() == programs + 2  # For one device, and for eight.
    epoch = Epoch(images, split, key, np.float32(1), None, None, None)
    text = step.lower(0, state, totals, epoch, setup, train_step, None).compile().as_text()
    assert text.count("f32[2,26,26,16]") > text.count("f32[16,26,26,16]") == 0


def scores():
    """Whatever the batch size: neither the images nor the batches need be divisible by the devices."""
    mesh, data = devices.make_mesh(), part(load_dataset("mnist"), 1, 1001)
    config = make_config("reference", arch=SMALL, batch_size=1)
    trained = make_setup(config, data).trained(start(config, data).state)
    one = evaluate(trained, data.test)
    for size in (250, 99, 8):
        found = evaluate(devices.put(trained, mesh), data.test, size, mesh)
        assert (int(found.count), int(found.correct)) == (1001, int(one.correct))
        assert float(found.loss) == pytest.approx(float(one.loss), rel=1e-5)


def fits():
    mesh, data = devices.make_mesh(), part(load_dataset("mnist"), 64, 64)
    config = make_config("reference", arch=SMALL, epochs=1, batch_size=32, rotation=10.0)
    (alone,), (together,) = fit(config, data)[1], fit(config, data, mesh=mesh)[1]
    _, ((seed1,), _) = fit_seeds(config, data, seeds=[1, 2], mesh=mesh)
    assert seed1[:-1] == together[:-1]
    streams, options = [Streams.from_seed(seed) for seed in range(1, 9)], {"epochs": 1, "batch_size": 32, "mesh": mesh}
    reached = training.train(make_setup(config, data), data, streams, **options)
    (many,) = reached.history
    assert [together.train_loss, many[0].train_loss] == pytest.approx([alone.train_loss] * 2, abs=1e-5)
    assert len({metrics.train_loss for metrics in many}) == 8
    assert {leaf.sharding.shard_shape(leaf.shape)[0] for leaf in jax.tree.leaves(reached.state)} == {1}


def refusals():
    mesh, data = devices.make_mesh(), load_dataset("mnist")
    for count in (9, 0):
        refused(f"^devices {count} .* 1 to 8", devices.make_mesh, count)
    refused("^devices 'most'", devices.choose_mesh, "most")
    refused("^batch size 100 .* 96 or 104$", devices.require_divisible, 100, mesh)
    refused("^batch size 5 .* 8$", devices.require_divisible, 5, mesh)
    options = {"epochs": 1, "batch_size": 128, "mesh": mesh}
    streams = [Streams.from_seed(1)] * 3
    refused("^3 trainings .* 8$", training.train, make_setup(make_config(), data), data, streams, **options)
    assert devices.choose_mesh(None) is devices.choose_mesh("1") is None
    assert (devices.choose_mesh("all").size, devices.choose_mesh("2").size) == (8, 2)
    devices.require_divisible(128, mesh)


@pytest.mark.parametrize("check", [several_steps, scores, fits, refusals])
def test_eight_devices_are_one(on_eight, check):
    on_eight(check)


DATA = ["--no-report", "--data-source", "tfds", "--data-dir", PREPARED]


def two(environment, *args):
    together = ["--coordinator", f"localhost:{free_port()}", "--num-processes", 2]
    return [begin(environment, "train", *DATA, *args, *together, "--process-id", i) for i in (0, 1)]


def finish(processes):
    return [(*process.communicate(), process.returncode) for process in processes]


def assert_weights_equal(folder, atol):
    one, both = (load_file(folder / name / "weights.safetensors") for name in ("one", "two"))
    chex.assert_trees_all_close(both, one, atol=atol)


def test_two_processes_are_one(environment, tmp_path):
    """One epoch of three steps; stopped, as it were, and resumed for another, which both have to be given."""
    flags = ["--arch", "crop9-4", "--recipe", "reference", "--batch-size", 100, "--epochs", 1, "--rotation", 10]
    assert run_command("train", *DATA, *flags, "--run-dir", tmp_path / "one")[0] == 0
    together = finish(two(environment, *flags, "--run-dir", tmp_path / "two"))
    (out, err, status), (silent, other_err, other_status) = together
    assert (status, other_status) == (0, 0), err + other_err
    assert "1 epoch of 3 steps of 100 images, on 2 devices: cpu" in out
    assert "epoch" not in silent  # Gloo has a word of its own.
    assert_weights_equal(tmp_path, atol=1e-5)
    metrics = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two")]
    assert metrics[1]["test_loss"] == pytest.approx(metrics[0]["test_loss"], abs=1e-4)

    assert run_command("train", *DATA, "--resume", tmp_path / "one", "--epochs", 2)[0] == 0
    (_, err, status), _ = finish(two(environment, "--resume", tmp_path / "two", "--epochs", 2))
    assert status == 0, err
    assert_weights_equal(tmp_path, atol=1e-4)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2


# What both processes of a pair do. Number 1 was told something else each time.
PAIR = """
import dataclasses, json, sys
import numpy as np
import mnist_jax as mj
from mnist_jax import cli, devices
from mnist_jax.runs.session import session

coordinator, one = sys.argv[1], int(sys.argv[2])
devices.join_processes(coordinator, 2, one)
data = mj.load_dataset("mnist")
data = dataclasses.replace(data, train=mj.Split(*(array[:64] for array in data.train)))
config, mesh = mj.make_config("reference", arch="crop9-4", epochs=2, batch_size=32), devices.make_mesh()
begun = mj.start(config, data)
other = dataclasses.replace(data, classes=tuple("abcdefghij"))

def begin(**settings):
    with session(dataclasses.replace(config, **settings), data):
        raise AssertionError

def only_one():
    with devices.synchronized():
        if one:
            raise OSError(28, "the disk is full", "file")

cases = [
    lambda: mj.fit(dataclasses.replace(config, seed=1 + one), data, mesh=mesh),
    lambda: mj.fit(dataclasses.replace(config, learning_rate=0.1 + one), other if one else data, mesh=mesh),
    lambda: mj.fit_seeds(config, data, seeds=[1 + one, 2], mesh=mesh),
    lambda: mj.fit(config, data, mesh=mesh, progress=begun._replace(state=begun.state._replace(step=np.int32(one)))),
    lambda: begin(seed=1 + one),
    lambda: begin(run_dir="."),
    only_one,
]
ends = []
for case in cases:
    try:
        case()
    except (mj.InputError, OSError) as error:
        ends.append([type(error).__name__, str(error)])
devices.join_processes = lambda *arguments: None
try:
    cli.main(["train", "--arch", "gap", "--no-report", "--seed", str(1 + one)])
except SystemExit as end:
    print(json.dumps([ends, end.code]))
"""


def test_two_processes_that_were_told_different_things(environment, tmp_path):
    """Both refuse, with the same words, before a step is taken and before anything is written."""
    (tmp_path / "config.json").write_text("{}")
    address, pipes = f"localhost:{free_port()}", {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", PAIR, address]
    env = environment | {"PYTHONPATH": str(ROOT)}
    ended = finish([subprocess.Popen([*command, str(i)], env=env, cwd=tmp_path, **pipes) for i in (0, 1)])
    (zero, status), (one, other_status) = (json.loads(out.splitlines()[-1]) for out, _, _ in ended)
    assert (status, other_status) == (2, 2)
    names = ["seed 2", "learning rate 1.1.* data ", "seed .*2", "step 1", "seed .*2", "run dir '.'", "disk"]
    assert [kind for kind, _ in zero] == [kind for kind, _ in one] == ["InputError"] * 6 + ["OSError"]
    for name, (_, first), (_, second) in zip(names, zero, one, strict=True):
        assert first.replace("process 1: ", "") == second.replace("process 0: ", "")
        assert re.search(name, first)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_lost_process_ends_the_other(environment, tmp_path):
    """Within the heartbeat, and not by hanging: the test itself would."""
    flags = ["--arch", "4-pool-4", "--recipe", "reference", "--batch-size", 100, "--epochs", 10_000]
    first, second = two(environment, *flags, "--run-dir", tmp_path / "run")
    while "1/10000" not in first.stdout.readline():
        assert first.poll() is None, first.stderr.read()
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=90)
    assert first.returncode == 5
    assert err.splitlines()[-1].startswith("error: another process is lost")
    assert "Traceback" not in err


def test_alone_by_default_and_with_processes_that_can_be(monkeypatch):
    refused("coordinator", devices.join_processes, "localhost:1", None, None)
    for count in (2, 0):
        refused(f"id {count} of {count} processes", devices.join_processes, "localhost:1", count, count)
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: joined.append(given))
    devices.join_processes(None, None, None)
    assert not joined  # There is nobody to join.
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    devices.join_processes(None, None, None)
    assert joined == [(None, None, None)]


def test_a_port_that_is_taken_and_an_address_that_cannot_be_used():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        refused(f"localhost:{port}", devices.join_processes, f"localhost:{port}", 2, 0)
    for coordinator in ("localhost", ":1", "localhost:0", "localhost:x", "localhost:65536"):
        refused(f"^coordinator '{coordinator}'", devices.join_processes, coordinator, 2, 1)


@pytest.mark.parametrize(("error", "status"), [(ZeroDivisionError, 70), (KeyboardInterrupt, 130)])
def test_a_bug_in_one_of_several_processes_ends_it_at_once(monkeypatch, error, status):
    """A normal exit would wait five minutes for the others, which wait for this one."""
    ended = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("os._exit", ended.append)
    monkeypatch.setattr(devices, "choose_mesh", mock.Mock(side_effect=error))
    assert run_command("train", "--arch", "gap")[0] == status
    assert ended == [status]
