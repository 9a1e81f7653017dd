import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
import optax
import platformdirs
import pytest
from PIL import Image

import mnist_jax as mj
from mnist_jax import EpochMetrics, Setup, Split, cli, init_state, load_dataset, make_config, runtime, scoring, training
from mnist_jax.objective import objective
from mnist_jax.recipes.values import network_of
from mnist_jax.runs import directory, weights

# Here, and in processes that tests start, programs are not optimized, and written by XLA's older emitters, where it has
# them: most run for a few steps, and so they compile in a fourth of the time. For the others there is `optimizing`.
OLDER = ["xla_cpu_use_fusion_emitters"] * (jaxlib.version.__version_info__ < (0, 11))
QUICK = {"xla_backend_optimization_level": 0, **dict.fromkeys(OLDER, False)}
OPTIMIZED = {"xla_backend_optimization_level": 3, **dict.fromkeys(OLDER, True)}
if importlib.util.find_spec("libtpu") is None:  # It ends the process at a flag for CPUs.
    flags = (f"--{name}={value}".lower() for name, value in QUICK.items())
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags])

if sys.platform == "linux" and "PYTEST_XDIST_WORKER" in os.environ:  # A core for each, and no waiting for threads.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["PYTEST_XDIST_WORKER"][2:]) % len(cores)]})

# An implicit broadcast between ranks is a mistake until proven otherwise.
jax.config.update("jax_numpy_rank_promotion", "raise")

# `lighter` is `basic`, and `accurate` is `small`, with other widths.
STRUCTURES = [arch for arch in mj.ARCHS if arch not in ("lighter", "accurate")]

ROOT = Path(__file__).parent.parent
PREPARED = Path(__file__).parent / "data" / "tfds"
PROGRAMS = Path(platformdirs.user_cache_dir("mnist_jax")) / "tests"


def pytest_configure(config):
    """Clears the compilation cache of the tests beyond half a gigabyte; a run leaves some 25 MB."""
    # JAX's own limit takes a lock for each program, which fails where a process that has it is stopped.
    alone = not hasattr(config, "workerinput")
    if alone and sum(path.stat().st_size for path in PROGRAMS.rglob("*") if path.is_file()) > 2**29:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture
def optimizing(monkeypatch):
    """Optimizes programs as they are for users: for a test that runs them for long, or asks for their bits."""
    options = {True: runtime.compiler_options(True), False: {**(runtime.compiler_options(False) or {}), **OPTIMIZED}}
    caches = training.program, scoring._compiled, runtime._unoptimized
    monkeypatch.setattr(runtime, "compiler_options", options.get)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@functools.cache
def smooth(layers=mj.FAST):
    """These layers, with tanh and mean for ReLU and maximum.

    Those have edges, which rounding carries one of a million values across, on one processor or another: its gradient
    jumps.
    """

    def pool(x):
        return nn.avg_pool(x, (2, 2), (2, 2))

    def batch_norm_pool(**options):
        norm = layers.batch_norm(use_scale=False, **options)
        return lambda x: pool(norm(x))

    return layers._replace(
        relu=lambda x, after_norm=False: jnp.tanh(x), max_pool=pool, batch_norm_max_pool=batch_norm_pool
    )


def assert_near(found, expected, share):
    """Each array of a tree is the expected one within this share of its largest magnitude."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=share * np.abs(other).max())


def initial_variables(model, seed=0):
    return init_state(Setup(model, optax.identity()), jax.random.key(seed)).variables


def training_pass(model, variables, images, labels):
    """Gradients, logits and new batch statistics."""

    def loss(params):
        logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, (logits, updated.get("batch_stats", {}))

    return jax.grad(loss, has_aux=True)(variables["params"])


def as_trained(model, variables, data=None):
    """A network with these variables, for MNIST or what the data is."""
    setup = Setup(model, optax.identity())
    if data:
        about = {name: getattr(data, name) for name in ("mean", "deviation", "classes", "image_shape")}
        setup = setup._replace(**about)
    return setup.with_variables(variables)


def without_seconds(history):
    return [entry[:-1] for entry in history]


def wrong(trained, split):
    """The indices of the images that a network gets wrong."""
    return np.flatnonzero(mj.predict(trained, split.images).argmax(-1) != split.labels).tolist()


def refused(match, function, *args, **kwargs):
    """Calls it: bad input is answered by one line."""
    with pytest.raises(mj.InputError, match=match) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)


def stopped(asked, train, *args, **kwargs):
    """The progress of a training that is told to stop, from the given time on that it asks."""
    times = itertools.count(1)
    with pytest.raises(mj.Stopped) as stop:
        train(*args, stop=lambda: next(times) >= asked, **kwargs)
    return stop.value.progress


def damage(path, how):
    """A file that is missing, empty, truncated, text, or has a flipped bit in its middle."""
    content = path.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes(byte ^ 16 for byte in content[half : half + 1]) + content[half + 1 :]
    path.unlink()
    if how != "missing":
        path.write_bytes({"truncated": content[:half], "flipped": flipped, "empty": b"", "text": b"honestly"}[how])


def part(mnist, train, test):
    """The first images of each split, so many of them."""
    train = Split(mnist.train.images[:train], mnist.train.labels[:train])
    test = Split(mnist.test.images[:test], mnist.test.labels[:test])
    return dataclasses.replace(mnist, train=train, test=test)


@pytest.fixture(scope="session")
def mnist():
    return load_dataset("mnist")


@pytest.fixture(scope="session")
def batch(mnist):
    """The first 32 training images and labels, as uint8 and int32."""
    return mnist.train.images[:32], mnist.train.labels[:32]


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def pictures(folder, images, labels, classes):
    """Writes a folder of pictures, train/LABEL/*.png and the same in test."""
    for split in ("train", "test"):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / split / classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(path)
    return f"{folder}/"


def wait_for(condition, process=None):
    for _ in range(6000):
        if condition():
            return
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came")


def begin(environment, name, *args, **options):
    command = [sys.executable, "-c", "from mnist_jax.cli import main; main()", name, *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipes, **options)


def assert_accessible(page):
    """What can be told of a page without a browser: one landmark, its language, header cells, texts for pictures."""
    assert (page.count("<main>"), page.count("</main>"), page.count("<h1>"), page.count('<html lang="en">')) == (1,) * 4
    assert not re.search(r"<th[^>]*>\s*</th>|<img (?![^>]*alt=\"[^\"])|<canvas (?![^>]*aria-label)", page)
    assert len(re.findall("<th[ >]", page)) == len(re.findall('<th scope="', page))


def finished_run(run_dir, variables, accuracies, data=None, **settings):
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
    weights.save_weights(run_dir / directory.WEIGHTS, as_trained(network_of(config), variables, data))
    directory.save_json(run_dir, directory.SUMMARY, summary)
    return run_dir


@pytest.fixture(scope="session", autouse=True)
def environment():
    """A compilation cache of the tests, for whatever worker, process or later run of the suite; not the user's own."""
    os.environ["XDG_CACHE_HOME"] = str(PROGRAMS)
    os.environ.pop("UV", None)  # It says that a script was called by `uv run`; these are not, though pytest may be.
    mj.tune_process()
    return dict(os.environ)


def assert_refused(result, *parts):
    """Of what `run_command` gives: one line that has these parts."""
    status, out, err = result
    assert (status, out, err[:7], err.count("\n")) == (2, "", "error: ", 1)
    assert not [part for part in parts if part not in err]


def run_command(*args, encoding="utf-8"):
    """Runs `mnist-jax` in this process: (exit status, standard output, standard error)."""
    with mock.patch.object(sys, "argv", ["mnist-jax", *map(str, args)]):
        return finished(cli.main, encoding)


def run_script(name, *args):
    """Runs a file of `scripts/` in this process, as `run_command`."""
    with mock.patch.object(sys, "argv", [name, *map(str, args)]):
        return finished(lambda: runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__"))


def finished(call, encoding="utf-8"):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        call()
    return stop.value.code or 0, *(stream.buffer.getvalue().decode(encoding) for stream in (out, err))


@pytest.fixture
def call(monkeypatch, tmp_path):
    """`run_command`, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return run_command
