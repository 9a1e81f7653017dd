"""The command `mnist-jax`."""

import atexit
import gc
import importlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn, TypeVar

from mnist_jax.cli.program import fail, format_warning
from mnist_jax.cli.streams import printing
from mnist_jax.errors import DivergedError, InputError, LostError, StorageError
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
    "benchmark": "time a training step and scoring against plain Flax and PyTorch",
    "time-to-target": "time a whole run against the notebook's recipe in PyTorch",
    "estimate-tpu": "ask the TPU's compiler how many cycles a step takes",
}
# Those that only print: there is nothing to go on with when the reader of their pipe has left.
PRINTING = ("", "--version", "evaluate", "predict")


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Runs one command, given as `train --arch gap`, by default on the arguments of the process; exits."""
    name, *rest = (sys.argv[1:] if args is None else args) or ("",)
    with printing(name not in PRINTING and not {"-h", "--help"} & {name, *rest}):
        _main(name, rest)
    raise AssertionError  # Every command exits.


def _main(name: str, rest: Sequence[str]) -> None:
    if name in ("-h", "--help"):
        lines = (f"  {command:16}{line}" for command, line in COMMANDS.items())
        print("usage: mnist-jax COMMAND ...", "", *lines, "", "mnist-jax COMMAND --help: its flags", sep="\n")
        sys.exit()
    if name == "--version":
        print(f"mnist-jax {__version__}")
        sys.exit()
    if name not in COMMANDS:
        fail(f"unknown command {name!r}; choose from {', '.join(COMMANDS)}", 2)
    from mnist_jax.cli.lab_options import OPTIONS  # It imports tyro, which the list of commands does without.

    run(lambda options: _import(name).main(options), OPTIONS[name], rest, name)


def _import(command: str) -> ModuleType:
    """The module of a command, which imports JAX.

    The garbage collector does not look through what is imported, now or at the end of the process: importing makes
    little garbage, and looking for it would take a tenth of the time.
    """
    name, collects = f"mnist_jax.cli.{command.replace('-', '_')}", gc.isenabled()
    if name in sys.modules:
        return sys.modules[name]
    gc.disable()
    try:
        return importlib.import_module(name)
    finally:
        gc.freeze()
        atexit.register(gc.freeze)
        if collects:
            gc.enable()


def script(command: str) -> NoReturn:
    """Runs a command for the file in `scripts/` that is named after it."""
    main([command, *sys.argv[1:]])


def run(main: Callable[[T], int | None], options: type[T], args: Sequence[str], command: str) -> NoReturn:
    """Parses the flags, runs a command and exits.

    An error that a user can cause ends in one line and the status of the error, Ctrl-C in status 130. Any other is a
    bug of ours: it ends in one line, which has what was noted on the error, its traceback and status 70.
    """
    from mnist_jax.cli.flags import parse

    warnings.formatwarning = format_warning
    try:
        parsed = parse(options, args, command)
        if not getattr(parsed, "compilation_cache", True):
            import jax

            jax.config.update("jax_enable_compilation_cache", False)  # Importing JAX has turned it on.
        sys.exit(main(parsed))
    except (InputError, DivergedError, StorageError) as error:
        fail(str(error), error.status)
    except LostError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.status)  # A normal exit would wait for the lost process.
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:
        raise
    except Exception as error:
        from mnist_jax.runtime import backend

        try:
            backend()
        except InputError as cause:
            fail(str(cause), cause.status)
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        print(f"error: unforeseen, a bug: {said}{notes}; please report it with what follows: {ISSUES}", file=sys.stderr)
        traceback.print_exception(error)
        _leave(70)


def _leave(status: int) -> NoReturn:
    """Exits; of several processes that have joined, without waiting for the others, as the end of the process does."""
    if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
