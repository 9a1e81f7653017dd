"""The command `mnist-jax`."""

import errno
import gc
import importlib
import inspect
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import jax

from mnist_jax.cli.flags import parse
from mnist_jax.cli.options import COMMANDS
from mnist_jax.errors import DivergedError, InputError, LostError
from mnist_jax.runtime import backend, tune_process
from mnist_jax.version import __version__

T = TypeVar("T")
ISSUES = "https://github.com/mnist-jax/mnist_jax/issues"
REMEDIES = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EACCES: "correct its permissions",
    errno.EROFS: "name another, which is not read-only",
    errno.EEXIST: "name another: a file is where a folder must be",
    errno.ENOTDIR: "name another: a file is where a folder must be",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command, given as `train --arch gap`, by default on the arguments of the process; exits."""
    name, *rest = (sys.argv[1:] if args is None else args) or ("",)
    if name == "--version":
        print(f"mnist-jax {__version__}")
        sys.exit()
    if name in ("-h", "--help"):
        print("usage: mnist-jax COMMAND ...", end="\n\n")
        for command, options in COMMANDS.items():
            print(f"  {command:12}{inspect.cleandoc(options.__doc__ or '').splitlines()[0]}")
        print("\nmnist-jax COMMAND --help: its flags")
        sys.exit()
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(InputError.status)
    run(lambda options: importlib.import_module(f"mnist_jax.cli.{name}").main(options), COMMANDS[name], name, rest)


def run(
    main: Callable[[T], int | None],
    options: type[T],
    command: str | None = None,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the flags, runs a command, by default the script of this process on its arguments, and exits.

    An error ends in one line and its status; one that nobody foresaw in status 70, with its traceback.
    """
    gc.freeze()  # Else the collector looks through JAX's objects once more, and every command ends 0.2 s later.
    _mend_streams()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        program = f"mnist-jax {command}" if command else Path(sys.argv[0]).name
        parsed = parse(options, sys.argv[1:] if args is None else args, program)
        tune_process()
        sys.exit(main(parsed))
    except BrokenPipeError:  # The reader of a pipe has left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (Exception, KeyboardInterrupt) as error:
        line, status = answer(error)
        print("error: " + " ".join(line.split()), file=sys.stderr)
        if status == 70:
            traceback.print_exception(error)
        if jax.distributed.is_initialized() and not isinstance(error, (InputError, DivergedError, OSError)):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # A normal exit would wait for the other processes.
        sys.exit(status)


def answer(error: BaseException) -> tuple[str, int]:
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


def _mend_streams() -> None:
    """Opens closed standard streams, before a file of the run gets their number; escapes what an encoding lacks."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
