"""What several commands do."""

import errno
import os
import shlex
import signal
from pathlib import Path

from rich.console import Console

from mnist_jax.errors import DivergedError, InputError, LostError
from mnist_jax.runs.directory import load_run
from mnist_jax.runs.weights import load_pretrained
from mnist_jax.runtime import backend
from mnist_jax.steps import Trained

ISSUES = "https://github.com/mnist-jax/mnist_jax/issues"
REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: "correct its permissions",
    errno.EEXIST: "name another: a file is where a folder must be",
    errno.ENOTDIR: "name another: a file is where a folder must be",
}


def describe(error: BaseException) -> tuple[str, int]:
    """The line that answers an error, and the exit status."""
    if isinstance(error, (InputError, DivergedError, LostError)):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 128 + signal.SIGINT
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    if isinstance(error, OSError):
        file = f": {str(error.filename)!r}" if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "make its folder, or name another")
        return f"{error.strerror or error}{file}; {remedy}{notes}", 4
    try:
        backend()
    except InputError as cause:
        return str(cause), cause.status
    text = f"{type(error).__name__}: {error}{notes}"
    return f"unforeseen, a bug: {text}; please report it with what follows: {ISSUES}", 70


def called(*args: str | Path) -> str:
    """A command of `mnist-jax` to type, quoted for a shell; with `uv run` before it where uv has started this one."""
    program = ["uv", "run", "mnist-jax"] if "UV" in os.environ else ["mnist-jax"]
    return shlex.join([*program, *map(str, args)])


def counted(count: int, noun: str) -> str:
    """A number and its noun, as `1 epoch` and `2 epochs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def load_trained(run_dir: Path | None, arch: str | None) -> Trained:
    """Loads the network of a finished run, or one as shipped; raises InputError unless one of the two is given."""
    if (run_dir is None) == (arch is None):
        raise InputError("name either a run dir or --arch, one of the two")
    return load_run(run_dir) if run_dir else load_pretrained(str(arch))


class LastingConsole(Console):
    """A console that says nothing more once the reader of its pipe has left, so that a training goes on."""

    def on_broken_pipe(self) -> None:
        """Is called by rich in place of the error."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
