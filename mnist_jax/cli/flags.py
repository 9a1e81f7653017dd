"""Flags from dataclasses, by tyro, with errors in one line."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from mnist_jax.cli.program import called, script_name
from mnist_jax.errors import InputError, require_path
from mnist_jax.recipes.config import make_config
from mnist_jax.runs.directory import load_config

T = TypeVar("T", bound=Any)


def parse(options: type[T], args: Sequence[str], command: str) -> T:
    """Builds a dataclass, whose docstring is the help text, from the flags of a command.

    A field `config: Config` takes its defaults from the run that `--resume` names, else from the recipe that `--recipe`
    names, for the network of `--arch`. In the help text `mnist-jax COMMAND` is written as it was called.

    In paths `~` is expanded. Raises InputError for a flag that is unknown or has no usable value, SystemExit after
    `--help`.
    """
    default: dict[str, Any] = {}
    if any(field.name == "config" for field in dataclasses.fields(options)):
        given = _values(args, "--recipe", "--arch", "--resume")
        run_dir = given.pop("resume", None)
        try:
            default["default"] = options(config=load_config(Path(run_dir)) if run_dir else make_config(**given))
        except InputError as error:
            raise InputError(f"{error}; see --help") from None
    call = called(command)
    text = inspect.cleandoc(options.__doc__ or "").replace(f"mnist-jax {command}", call)
    # tyro joins lines that begin with a letter into one, however long; hence the indent.
    filled = [textwrap.fill(paragraph, 98, subsequent_indent="  ") for paragraph in text.split("\n\n")]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed = tyro.cli(
                options,
                prog=call if call.startswith("mnist-jax ") else script_name(command),
                args=args,
                description="\n\n".join(filled),
                config=(tyro.conf.FlagCreatePairsOff,),
                **default,
            )
    except SystemExit as stop:
        if stop.code:
            raise InputError(_first_message(said.getvalue()) + "; see --help") from None
        raise
    return _expanded(parsed)


def _expanded(options: T) -> T:
    """Expands `~` in every path; raises InputError for an address such as gs://bucket/run."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value, name = getattr(options, field.name), field.name.replace("_", " ")
        if dataclasses.is_dataclass(value):
            changes[field.name] = _expanded(value)
        elif isinstance(value, Path):
            changes[field.name] = require_path(value, name)
        elif isinstance(value, str) and field.name in ("run_dir", "data_dir"):
            changes[field.name] = str(require_path(value, name))
        elif isinstance(value, tuple) and field.name != "paths":  # `predict` refuses its pictures one by one.
            changes[field.name] = tuple(require_path(one, name) if isinstance(one, Path) else one for one in value)
    return dataclasses.replace(options, **changes)


def _values(args: Sequence[str], *flags: str) -> dict[str, Any]:
    """The values of some flags, read ahead of the rest."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in flags:
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
