"""The same program on one device, on eight, and in two processes; to have its devices each is a process of its own."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import PREPARED, ROOT, free_port, part, run_script
from safetensors.numpy import load_file

from mnist_jax import InputError, devices, evaluate, load_dataset, make_config, make_setup, training
from mnist_jax.lab import jobs
from mnist_jax.loops import program
from mnist_jax.recipes.fits import fit, fit_seeds, start
from mnist_jax.steps import Metrics, Streams

EIGHT = "--xla_force_host_platform_device_count=8"


@pytest.fixture(scope="module")
def on_eight(environment):
    """Calls a function in a process that has eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", EIGHT)
        patch.setenv("NPROC", "32")  # Threads that wait for each other, on few cores.
        with jobs.process(jobs.cores()) as worker:
            yield lambda function: worker.submit(function).result()


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64)).max()) for x, y in pairs)


def several_steps():
    mesh, data = devices.make_mesh(), part(load_dataset("mnist"), 1024, 10_000)
    config = make_config("reference", average_decay=0.9, rotation=10.0)
    images, key, setup = data.train, Streams.from_seed(1).step, make_setup(config, data)

    def train(mesh, first):
        order = first + np.arange(4 * 16, dtype=np.int32).reshape(4, 16)
        state, totals = devices.put(start(config, data)[:2], mesh)
        arguments = devices.put(images, mesh), devices.put(order, mesh, axis=1), key, setup
        return training.train_epoch(state, *arguments, totals=totals)

    differences = []
    for first in range(0, 500, 100):
        (one, one_metrics), (eight, eight_metrics) = train(None, first), train(mesh, first)
        losses = [metrics.mean()[0] for metrics in (one_metrics, eight_metrics)]
        differences.append(max(difference(one._replace(step=()), eight._replace(step=())), abs(np.diff(losses)[0])))
    step = program(training.train_body, False, False)
    compiled = step._cache_size()
    state, totals, images = devices.put((start(config, data).state, Metrics.zeros(), images), mesh)
    order = devices.put(np.zeros((4, 16), np.int32), mesh, axis=1)
    text = step.lower(0, state, totals, (order, key, None), (images, np.float32(1)), setup).compile().as_text()
    return {
        "differences": differences,
        "count": int(eight_metrics.count),
        "replicated": all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eight)),
        "compiled": compiled,
        "eighth": text.count("f32[2,26,26,16]"),
        "whole": text.count("f32[16,26,26,16]"),
    }


def test_several_steps_on_eight_devices_are_those_on_one(on_eight):
    """Dropout, augmentation and the average on; and every device works on an eighth of the batch.

    Of a million values a step, rounding carries one across a ReLU's edge now and then, and all that follows differs in
    the fourth digit: of five runs of four steps, three have to agree. A mistake in the split would show in all.
    """
    found = on_eight(several_steps)
    assert sorted(found["differences"])[2] < 1e-5, found
    assert found["count"] == 64
    assert found["replicated"]
    assert found["compiled"] == 2  # For one device, and for eight.
    assert found["eighth"] > 0
    assert found["whole"] == 0


def scores():
    mesh, mnist = devices.make_mesh(), load_dataset("mnist")
    config = make_config("reference", arch="gap")
    trained = make_setup(config, mnist).trained(start(config, mnist).state)
    found = [evaluate(devices.put(trained, mesh), mnist.test, size, mesh) for size in (250, 999)]
    one = evaluate(trained, mnist.test)
    return [(int(score.count), int(score.correct), float(score.loss)) for score in (one, *found)]


def test_scoring_on_eight_devices_counts_every_image(on_eight):
    """Whatever the batch size: neither 10,000 nor the batches need be divisible by the devices."""
    found = on_eight(scores)
    for count, correct, loss in found:
        assert (count, correct) == (10_000, found[0][1])
        assert loss == pytest.approx(found[0][2], rel=1e-5)


def fits():
    mesh, data = devices.make_mesh(), part(load_dataset("mnist"), 64, 64)
    config = make_config("reference", arch="gap", epochs=1, batch_size=32, rotation=10.0)
    _, (alone,) = fit(config, data)
    _, (together,) = fit(config, data, mesh=mesh)
    _, many = fit_seeds(config, data, seeds=range(1, 9), mesh=mesh)
    return alone.train_loss, together.train_loss, many[0][0].train_loss, len(many)


def test_a_fit_and_many_seeds_on_eight_devices(on_eight):
    alone, *others, count = on_eight(fits)
    assert others == [pytest.approx(alone, abs=1e-5)] * 2
    assert count == 8


def refusals():
    mesh = devices.make_mesh()
    for call, said in (
        (lambda: devices.make_mesh(9), "devices 9 cannot be used; choose 1 to 8, or all"),
        (lambda: devices.make_mesh(0), "devices 0 cannot be used; choose 1 to 8, or all"),
        (lambda: devices.choose_mesh("most"), "devices 'most' cannot be used; choose a number or all"),
        (
            lambda: devices.require_divisible(100, mesh),
            "batch size 100 cannot be split over 8 devices; choose 96 or 104",
        ),
        (lambda: devices.require_divisible(5, mesh), "batch size 5 cannot be split over 8 devices; choose 8"),
        (
            lambda: fit_seeds(make_config(), load_dataset("mnist"), seeds=[1, 2, 3], mesh=mesh),
            "3 seeds cannot be split over 8 devices; choose a multiple of that",
        ),
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == said
    assert devices.choose_mesh(None) is None
    assert devices.choose_mesh("1") is None
    assert devices.choose_mesh("all").size == 8
    assert devices.choose_mesh("2").size == 2
    devices.require_divisible(128, mesh)


def test_refusals(on_eight):
    on_eight(refusals)


DATA = ["--no-report", "--data-source", "tfds", "--data-dir", PREPARED]


def train(environment, *args):
    command = map(str, [sys.executable, ROOT / "scripts" / "train.py", *DATA, *args])
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def two(environment, *args):
    """Two processes on this machine: the status and output of both."""
    together = ["--coordinator", f"localhost:{free_port()}", "--num-processes", 2]
    processes = [train(environment, *args, *together, "--process-id", i) for i in (0, 1)]
    return [(*process.communicate(), process.returncode) for process in processes]


def test_two_processes_are_one(environment, tmp_path):
    """One epoch of three steps; stopped, as it were, and resumed for another, which both have to be given."""
    flags = ["--arch", "gap", "--recipe", "reference", "--batch-size", 100, "--epochs", 1, "--rotation", 10]
    assert run_script("train.py", *DATA, *flags, "--run-dir", tmp_path / "one")[0] == 0
    (out, err, status), (silent, other_err, other_status) = two(environment, *flags, "--run-dir", tmp_path / "two")
    assert (status, other_status) == (0, 0), err + other_err
    assert "1 epochs of 3 steps of 100 on 2 x cpu" in out
    assert "epoch" not in silent  # Gloo has a word of its own.
    one, both = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(both[name], one[name], atol=1e-5)
    metrics = [json.loads((tmp_path / name / "metrics.jsonl").read_text()) for name in ("one", "two")]
    assert metrics[1]["test_loss"] == pytest.approx(metrics[0]["test_loss"], abs=1e-4)

    assert run_script("train.py", *DATA, "--resume", tmp_path / "one", "--epochs", 2)[0] == 0
    (_, err, status), _ = two(environment, "--resume", tmp_path / "two", "--epochs", 2)
    assert status == 0, err
    one, both = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(both[name], one[name], atol=1e-4)
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_lost_process_ends_the_other(environment, tmp_path):
    """Within the heartbeat, and not by hanging: the test itself would."""
    flags = ["--arch", "gap", "--recipe", "reference", "--batch-size", 100, "--epochs", 10_000]
    together = ["--run-dir", tmp_path / "run", "--coordinator", f"localhost:{free_port()}", "--num-processes", 2]
    first, second = (train(environment, *flags, *together, "--process-id", i) for i in (0, 1))
    while "epoch  1/" not in first.stdout.readline():
        assert first.poll() is None, first.stderr.read()
    second.kill()
    second.communicate()
    _, err = first.communicate(timeout=90)
    assert first.returncode == 5
    assert err.splitlines()[-1].startswith("error: another process is lost")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("localhost:1", None, None), "all three; give them"),
        (("localhost:1", 2, 2), "process id 2 of 2 processes cannot be"),
        (("localhost:1", 0, 0), "process id 0 of 0 processes cannot be"),
    ],
)
def test_processes_that_cannot_be(arguments, said):
    with pytest.raises(InputError, match=said):
        devices.join_processes(*arguments)


def test_alone_by_default(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: pytest.fail("there is nobody to join"))
    devices.join_processes(None, None, None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: joined.append(options))
    joined = []
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    devices.join_processes(None, None, None)
    assert joined == [{"heartbeat_timeout_seconds": 30}]
