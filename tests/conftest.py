import functools
import os
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from mnist_jax import init_state, load_mnist
from mnist_jax.runtime import compiler_options, use_compilation_cache

# An implicit broadcast between ranks is a mistake until proven otherwise.
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
PREPARED = Path(__file__).parent / "data" / "tfds"
SHARED = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))


@functools.cache
def _once(function, *static):
    return jax.jit(function, static_argnames=static, compiler_options=compiler_options(once=True))


def initial_variables(model, seed=0):
    """A network's first variables, in one program: compiling one for each operation takes five times as long."""
    return {"batch_stats": {}, **_once(_init, "model")(model=model, key=jax.random.key(seed))}


def _init(model, key):
    return model.init(key, np.zeros((1, 28, 28, 1), np.float32), train=False)


def initial_state(model, optimizer, key, average=False):
    """`init_state` in one program."""
    initialise = _once(init_state, "model", "optimizer", "average")
    return initialise(model=model, optimizer=optimizer, key=key, average=average)


@pytest.fixture(scope="session")
def mnist():
    """MNIST as bundled: load once, read only."""
    return load_mnist()


@pytest.fixture(scope="session")
def batch(mnist):
    """The first 32 training images and labels, as uint8 and int32."""
    return mnist.train.images[:32], mnist.train.labels[:32]


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory):
    """A compilation cache that all tests share, in whatever worker or process of their own, and not the user's."""
    directory = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        directory = directory.parent
    os.environ["XDG_CACHE_HOME"] = str(directory / "cache")
    use_compilation_cache()
    return dict(os.environ)


@pytest.fixture
def script(monkeypatch, capsys, tmp_path):
    """Runs a script in this process, in an empty directory: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(name, *args):
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / "scripts" / name), run_name="__main__")
        captured = capsys.readouterr()
        return stop.value.code or 0, captured.out, captured.err

    return run
