"""What several commands do."""

import os
import shlex
from pathlib import Path

from rich.console import Console

from mnist_jax.errors import InputError
from mnist_jax.runs.directory import load_run
from mnist_jax.runs.weights import load_pretrained
from mnist_jax.steps import Trained


def called(*args: str | Path) -> str:
    """A command of `mnist-jax` to type, quoted for a shell; with `uv run` before it where uv has started this one."""
    program = ["uv", "run", "mnist-jax"] if "UV" in os.environ else ["mnist-jax"]
    return shlex.join([*program, *map(str, args)])


def counted(count: int, noun: str) -> str:
    """A number and its noun, as `1 epoch` and `2 epochs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def load_trained(run_dir: Path | None, arch: str | None) -> Trained:
    """The trained network of a finished run, or one as shipped.

    Raises InputError if not one of the two is given, or as `load_run` and `load_pretrained`.
    """
    if (run_dir is None) == (arch is None):
        raise InputError("name either a run dir or --arch, one of the two")
    return load_run(run_dir) if run_dir else load_pretrained(str(arch))


class LastingConsole(Console):
    """A console that says nothing more once the reader of its pipe has left, so that a training goes on."""

    def on_broken_pipe(self) -> None:
        """Is called by rich in place of the error."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
