import contextlib
import dataclasses
import io
import os
import runpy
import socket
import sys
from pathlib import Path
from unittest import mock

import jax
import optax
import pytest

os.environ["MNIST_JAX_LEAVE_PROCESS"] = "1"  # Else importing the package would have the user's cache.

from mnist_jax import EpochMetrics, Setup, Split, Trained, cli, init_state, load_dataset, loops, make_config, runtime
from mnist_jax.objective import objective
from mnist_jax.recipes.values import network_of
from mnist_jax.runs import directory, weights
from mnist_jax.runtime import use_compilation_cache

del os.environ["MNIST_JAX_LEAVE_PROCESS"]

if sys.platform == "linux" and "PYTEST_XDIST_WORKER" in os.environ:  # A core for each, and no waiting for threads.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(cores)]})

# An implicit broadcast between ranks is a mistake until proven otherwise.
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
PREPARED = Path(__file__).parent / "data" / "tfds"
SHARED = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))


@pytest.fixture
def quick_compiler(monkeypatch):
    """Compiles programs without optimizing them: that is sooner done, and a test runs them for a few steps."""
    for module in (runtime, loops):
        monkeypatch.setattr(module, "compiler_options", lambda once=True: {"xla_backend_optimization_level": 0})
    loops.program.cache_clear()
    runtime._jitted.cache_clear()
    yield
    loops.program.cache_clear()
    runtime._jitted.cache_clear()


def initial_variables(model, seed=0):
    """A network's first variables."""
    return init_state(Setup(model, optax.identity()), jax.random.key(seed)).variables


def as_trained(model, variables, data=None):
    """A network with these variables, for MNIST or what the data is."""
    about = Setup(model, optax.identity())
    shape = (data.mean, data.deviation, data.classes, data.image_shape) if data else about[5:]
    return Trained(model, variables, *shape)


def without_seconds(history):
    return [entry[:-1] for entry in history]


def part(mnist, train, test):
    """The first training and test images."""
    splits = {"train": (mnist.train, train), "test": (mnist.test, test)}
    return dataclasses.replace(mnist, **{k: Split(*(a[:size] for a in split)) for k, (split, size) in splits.items()})


@pytest.fixture(scope="session")
def mnist():
    """MNIST as bundled: load once, read only."""
    return load_dataset("mnist")


@pytest.fixture(scope="session")
def batch(mnist):
    """The first 32 training images and labels, as uint8 and int32."""
    return mnist.train.images[:32], mnist.train.labels[:32]


def free_port():
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def finished_run(run_dir, variables, accuracies, **settings):
    """Writes what a run leaves that reached these accuracies, one per epoch."""
    config = make_config(epochs=len(accuracies), **settings)
    history = [EpochMetrics(i, 0.1, 0.97, 0.1, accuracy, 9.0) for i, accuracy in enumerate(accuracies, 1)]
    conditions = objective(variables["params"], config.epochs, accuracies[-1])
    summary = {
        **history[-1]._asdict(),
        "seconds": 30.0,
        "scored_on": "test",
        "objective": [condition._asdict() for condition in conditions],
        "objective_met": False,
        "environment": {"cpu": "<b>odd & named</b>"},
    }
    directory.create_run(run_dir, config)
    directory.save_epochs(run_dir, history)
    weights.save_weights(run_dir / directory.WEIGHTS, as_trained(network_of(config), variables))
    directory.save_json(run_dir, directory.SUMMARY, summary)
    return run_dir


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    """A compilation cache that all tests share, in whatever worker or process of their own, and not the user's."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    os.environ.pop("UV", None)  # It says that a script was called by `uv run`; these are not, though pytest may be.
    use_compilation_cache()
    return dict(os.environ)


def run_script(name, *args, encoding="utf-8"):
    """Runs a script in this process: (exit status, standard output, standard error)."""
    argv = [name, *map(str, args)]
    with mock.patch.object(sys, "argv", argv), mock.patch.object(sys, "orig_argv", ["python", *argv]):
        return finished(lambda: runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__"), encoding)


def run_command(*args):
    """Runs `mnist-jax` in this process, as `run_script`."""
    return finished(lambda: cli.main([*map(str, args)]))


def finished(call, encoding="utf-8"):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        call()
    return stop.value.code or 0, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))


@pytest.fixture
def script(monkeypatch, tmp_path):
    """`run_script`, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return run_script
