import os
import runpy
import sys
from pathlib import Path

import jax
import pytest

from mnist_jax import load_mnist

# An implicit broadcast between ranks is a mistake until proven otherwise.
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = Path(__file__).parent.parent
PREPARED = Path(__file__).parent / "data" / "tfds"
SHARED = Path(os.environ.get("TFDS_DATA_DIR", ROOT.parent / "shared" / "data" / "tfds"))


@pytest.fixture(scope="session")
def mnist():
    """MNIST as bundled: load once, read only."""
    return load_mnist()


@pytest.fixture(scope="session")
def batch(mnist):
    """The first 32 training images and labels, as uint8 and int32."""
    return mnist.train.images[:32], mnist.train.labels[:32]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """For processes of their own: a compilation cache that all tests, in whatever worker, share."""
    return os.environ | {"XDG_CACHE_HOME": str(tmp_path_factory.getbasetemp().parent / "cache")}


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
