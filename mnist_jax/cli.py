"""What the scripts share: flags from dataclasses, and errors in one line."""

import argparse
import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

import tyro

from mnist_jax.errors import DivergedError, InputError
from mnist_jax.recipes import make_config
from mnist_jax.runtime import reuse_freed_memory, use_compilation_cache

T = TypeVar("T")


def parse(options: type[T], args: Sequence[str] | None = None) -> T:
    """Builds a dataclass from command-line flags.

    A field `config: Config` takes its defaults from the recipe that `--recipe` names, for the network of `--arch`.

    Args:
      options: the dataclass; its docstring is the help text.
      args: the flags; those of the process if not given.

    Raises:
      InputError: a flag that is unknown or has no usable value.
      SystemExit: after `--help`.
    """
    args = list(sys.argv[1:] if args is None else args)
    default = {}
    if any(field.name == "config" for field in dataclasses.fields(options)):
        default["default"] = options(config=make_config(**_recipe_and_arch(args)))
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=args, config=(tyro.conf.FlagCreatePairsOff,), **default)
    except SystemExit as stop:
        if stop.code:
            raise InputError(_first_message(said.getvalue()) + "; see --help") from None
        raise


def run(main: Callable[[T], int | None], options: type[T]) -> NoReturn:
    """Runs a script: exit status 2 after bad input and 3 after a diverged training, each with one line."""
    try:
        parsed = parse(options)
        reuse_freed_memory()
        if getattr(parsed, "compilation_cache", False):
            use_compilation_cache()
        sys.exit(main(parsed))
    except InputError as error:
        _fail(str(error), status=2)
    except DivergedError as error:
        _fail(str(error), status=3)


def _fail(message: str, status: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def _recipe_and_arch(args: Sequence[str]) -> dict[str, str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in ("--recipe", "--arch"):
        parser.add_argument(flag, nargs="?")
    return {name: value for name, value in vars(parser.parse_known_args(args)[0]).items() if value is not None}


def _first_message(box: str) -> str:
    """The first paragraph under the title of the box that tyro draws around an error, in Unicode or in ASCII."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith("╭")]
    rules = [i for i, line in enumerate(lines) if set(line) <= set("-─╰╯")] + [len(lines)]
    # In Unicode the title is part of the frame; in ASCII it is a paragraph of its own.
    start, stop = (0, rules[0]) if "╭" in box else (rules[0] + 1, rules[1])
    return " ".join(lines[start:stop]).removeprefix("Error parsing config: ")
