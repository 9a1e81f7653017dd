"""Flags from dataclasses, by tyro, with errors in one line."""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import io
import shutil
import textwrap
import typing
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from mnist_jax.errors import InputError, require_path
from mnist_jax.recipes.config import Config, make_config

T = TypeVar("T", bound=Any)


def parse(options: type[T], args: Sequence[str], program: str) -> T:
    """Builds a dataclass, whose docstring is the help text, from the flags of a program.

    A field `config: Config` takes its defaults from the run that `--resume` names, else from the recipe that `--recipe`
    names, for the network of `--arch`. It has no flags for the settings in `options.UNUSED`.

    In paths `~` is expanded. Raises InputError for a flag that is unknown or has no usable value, SystemExit after
    `--help`.
    """
    default: dict[str, Any] = {}
    if any(field.name == "config" for field in dataclasses.fields(options)):
        given = _values(args, "--recipe", "--arch", "--resume")
        run_dir = given.pop("resume", None)
        try:
            default["default"] = options(config=_load_config(run_dir) if run_dir else make_config(**given))
        except InputError as error:
            raise InputError(f"{error}; see --help") from None
    text = inspect.cleandoc(options.__doc__ or "")
    # tyro joins lines that begin with a letter into one, however long; hence the indent.
    width = min(shutil.get_terminal_size().columns, 100) - 2
    filled = [textwrap.fill(paragraph, width, subsequent_indent="  ") for paragraph in text.split("\n\n")]
    said, flags = io.StringIO(), {}
    try:
        with contextlib.redirect_stderr(said), _wording(getattr(options, "UNUSED", ()), flags):
            parsed = tyro.cli(
                options,
                prog=program,
                args=args,
                description="\n\n".join(filled),
                config=(tyro.conf.FlagCreatePairsOff,),
                **default,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        names = [arg.partition("=")[0].replace("_", "-") for arg in args if arg.startswith("--")]
        unknown = [name for name in names if name not in (*flags, "--help")]
        if not unknown:
            raise InputError(_first_message(said.getvalue()) + "; see --help") from None
        meant = " or ".join(similar(unknown[0], flags))
        raise InputError(
            f"unknown flag {unknown[0]}; {f'did you mean {meant}? See' if meant else 'see'} --help"
        ) from None
    return _expanded(parsed)


def _load_config(run_dir: str) -> Config:
    from mnist_jax.runs.directory import load_config  # It imports JAX, which the help text does without.

    return load_config(Path(run_dir))


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


def similar(unknown: str, flags: Iterable[str]) -> list[str]:
    """The flags that a short or misspelled one may stand for: by its initials or beginning, else by its letters."""
    initials = {flag: "--" + "".join(word[0] for word in flag[2:].split("-")) for flag in flags}
    short = [flag for flag in flags if flag.startswith(unknown) or initials[flag] == unknown]
    return short or difflib.get_close_matches(unknown, list(flags), n=2, cutoff=0.7)


def _wording(unused: Collection[str], flags: dict[str, str]) -> tyro.constructors.ConstructorRegistry:
    """How the fields of dataclasses become flags, which `flags` is filled with, and their help texts.

    A flag that turns something off says so. None is no value to type; what stands for it is in the help text.
    """
    registry, within = tyro.constructors.ConstructorRegistry(), []

    def word(field: Any) -> Any:
        if dataclasses.is_dataclass(field.type) or dataclasses.is_dataclass(field.default):
            return dataclasses.replace(field, helptext="")
        text = field.helptext() if callable(field.helptext) else field.helptext
        text, options = " ".join(str(text or "").split()), {}
        if field.default is True:
            text = f"Do not {text[:1].lower()}{text[1:]}"
        positional = typing.get_origin(field.type) is Annotated
        kinds = typing.get_args(typing.get_args(field.type)[0] if positional else field.type)
        if kinds and kinds[1:] in ((type(None),), (...,)):
            name = kinds[0].__name__.upper() + (" ..." if kinds[1] is ... else "")
            options["metavar"] = f"[{name}]" if positional and field.default is None else name
        if "metavar" in options or isinstance(field.default, bool):
            options["help_behavior_hint"] = ""
        kind = Annotated[field.type, tyro.conf.arg(help=text, **options)]
        if field.name in unused:
            return dataclasses.replace(field, type=tyro.conf.Suppress[kind])
        flags[f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}"] = text
        return dataclasses.replace(field, type=kind)

    @registry.struct_rule
    def rule(info: tyro.constructors.StructTypeInfo) -> Any:
        if within or not dataclasses.is_dataclass(info.type):
            return None
        within.append(info)  # Below, tyro's own rule is asked for.
        spec: Any = registry.get_struct_spec(info)
        within.clear()
        names = {field.name for field in dataclasses.fields(info.type)}  # Older versions of tyro count UNUSED too.
        return dataclasses.replace(spec, fields=tuple(word(field) for field in spec.fields if field.name in names))

    return registry


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
