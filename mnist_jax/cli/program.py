"""A command as a process: how it was called, what it writes, and how it ends."""

import contextlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mnist_jax.errors import InputError, StorageError, reason, remedy

if TYPE_CHECKING:
    from mnist_jax.steps import Trained


def called(*args: str | Path) -> str:
    """A command of `mnist-jax` to type, quoted for a shell; with `uv run` before it where uv has started this one."""
    program = ["uv", "run", "mnist-jax"] if "UV" in os.environ else ["mnist-jax"]
    return shlex.join([*program, *map(str, args)])


def fail(message: str, status: int) -> NoReturn:
    """Prints an error in one line and exits."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


_formatted = warnings.formatwarning


def format_warning(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> str:
    """A warning for users is one line, without the place in the code."""
    return f"warning: {message}\n" if category is UserWarning else _formatted(message, category, *place, **line)


def load_trained(run_dir: Path | None, arch: str | None) -> "Trained":
    """The trained network of a finished run, or one as shipped.

    Raises InputError if not one of the two is given, or as `load_run` and `load_pretrained`.
    """
    from mnist_jax.runs.directory import load_run
    from mnist_jax.runs.weights import load_pretrained

    if (run_dir is None) == (arch is None):
        raise InputError("name either a run dir or --arch, one of the two")
    return load_run(run_dir) if run_dir else load_pretrained(str(arch))


def counted(count: int, noun: str) -> str:
    """A number and its noun, as `1 epoch` and `2 epochs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def require_at_least(least: int, options: Any, *names: str) -> None:
    """Raises InputError if one of these options is below `least`."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"{name.replace('_', ' ')} {value} cannot be used; choose {least} or more")


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Raises StorageError, with the file and its flag, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        what = remedy(error, f"make its folder, or name another with {flag}")
        raise StorageError(f"cannot write {str(path)!r} ({reason(error)}); {what}") from error
