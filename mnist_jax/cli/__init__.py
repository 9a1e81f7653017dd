"""The command `mnist-jax`."""

import gc
import importlib
import inspect
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

import jax

from mnist_jax.cli.flags import parse
from mnist_jax.cli.options import COMMANDS
from mnist_jax.cli.program import describe
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.runtime import tune_process
from mnist_jax.version import __version__

T = TypeVar("T")


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
        line, status = describe(error)
        print("error: " + " ".join(line.split()), file=sys.stderr)
        if status == 70:
            traceback.print_exception(error)
        if jax.distributed.is_initialized() and not isinstance(error, (InputError, DivergedError, OSError)):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # A normal exit would wait for the other processes.
        sys.exit(status)


def _mend_streams() -> None:
    """Opens closed standard streams, before a file of the run gets their number; escapes what an encoding lacks."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
