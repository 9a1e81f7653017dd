"""The command `mnist-jax`."""

import atexit
import gc
import importlib
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
from mnist_jax.cli.options import OPTIONS
from mnist_jax.cli.program import fail, format_warning
from mnist_jax.errors import DivergedError, InputError, LostError, StorageError
from mnist_jax.runtime import backend, tune_process
from mnist_jax.version import __version__

T = TypeVar("T")
ISSUES = "https://github.com/mnist-jax/mnist_jax/issues"

# Every command, and its line in `mnist-jax --help`; each is a module with `main(options)`.
COMMANDS = {
    "train": "train a network, report every epoch, say whether the objective is met",
    "evaluate": "score trained weights on the test images, or on pictures by people",
    "predict": "say which digit, or which number, a picture shows",
    "export": "write a trained network as a page to draw on, StableHLO or ONNX",
    "compare": "say whether networks differ, or put finished runs side by side",
    "search": "try settings on held-out training images",
    "reproduce": "train a recipe over many seeds",
}


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command, given as `train --arch gap`, by default on the arguments of the process; exits."""
    name, *rest = (sys.argv[1:] if args is None else args) or ("",)
    if name in ("-h", "--help"):
        lines = (f"  {command:16}{line}" for command, line in COMMANDS.items())
        print("usage: mnist-jax COMMAND ...", "", *lines, "", "mnist-jax COMMAND --help: its flags", sep="\n")
        sys.exit()
    if name == "--version":
        print(f"mnist-jax {__version__}")
        sys.exit()
    if name not in COMMANDS:
        fail(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}", 2)
    run(lambda options: importlib.import_module(f"mnist_jax.cli.{name}").main(options), OPTIONS[name], name, rest)


def script(command: str) -> NoReturn:
    """Runs a command for the file in `scripts/` that is named after it."""
    main([command, *sys.argv[1:]])


def run(
    main: Callable[[T], int | None],
    options: type[T],
    command: str | None = None,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parses the flags, runs a command, by default the script of this process on its arguments, and exits.

    An error that a user can cause ends in one line and the status of the error, Ctrl-C in status 130. Any other is a
    bug of ours: it ends in one line, which has what was noted on the error, its traceback and status 70.
    """
    _mend_streams()
    warnings.formatwarning = format_warning
    gc.freeze()  # Python need not look through JAX's objects, now or at the end, which takes half a second.
    atexit.register(gc.freeze)
    try:
        program = f"mnist-jax {command}" if command else Path(sys.argv[0]).name
        parsed = parse(options, sys.argv[1:] if args is None else args, program)
        if not getattr(parsed, "compilation_cache", True):
            jax.config.update("jax_enable_compilation_cache", False)
        tune_process()
        sys.exit(main(parsed))
    except (InputError, DivergedError) as error:
        fail(str(error), error.status)
    except LostError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.status)  # A normal exit would wait for the lost process.
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:  # The reader of a pipe has left, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        fail(str(error), StorageError.status)
    except Exception as error:
        try:
            backend()
        except InputError as cause:
            fail(str(cause), cause.status)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        print(f"error: unforeseen, a bug: {text}{notes}; please report it with what follows: {ISSUES}", file=sys.stderr)
        traceback.print_exception(error)
        _leave(70)


def _mend_streams() -> None:
    """Opens closed standard streams, before a file of the run gets their number; escapes what an encoding lacks."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _leave(status: int) -> NoReturn:
    """Exits; of several processes that have joined, without waiting for the others, as the end of the process does."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
