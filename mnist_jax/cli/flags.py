"""Flags from dataclasses, by tyro."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec

from mnist_jax.errors import require_path
from mnist_jax.recipes.config import Config, make_config
from mnist_jax.runs.directory import load_config

T = TypeVar("T", bound=Any)

# The settings in the groups of the help texts.
GROUPS = {
    "data": "dataset data_source data_dir held_out",
    "network": "arch kernel_init dropout_rate precision",
    "optimizer": "optimizer learning_rate schedule warmup momentum nesterov beta2 weight_decay label_smoothing "
    "average_decay",
    "distortion": "rotation shift scale shear elastic plain_epochs",
    "run": "recipe epochs batch_size eval_batch_size seed run_dir",
}


@dataclasses.dataclass(frozen=True)
class _Defaults:
    recipe: str = "default"
    arch: str = "bn_dropout"
    resume: Path | None = None


def parse(options: type[T], args: Sequence[str], program: str) -> T:
    """Builds a dataclass, whose docstring is the help text, from the flags of a program.

    A field `config: Settings` takes its defaults from the run that `--resume` names, else from the recipe that
    `--recipe` names, for the network of `--arch`. It has no flags for the settings in `options.UNUSED`. In paths `~` is
    expanded.

    Raises InputError for a value that no run can use, SystemExit after `--help` or where tyro refuses a flag.
    """
    default: dict[str, Any] = {}
    if any(field.name == "config" for field in dataclasses.fields(options)):
        first, _ = tyro.cli(_Defaults, prog=program, args=args, return_unknown_args=True, add_help=False)
        config = load_config(first.resume) if first.resume else make_config(first.recipe, arch=first.arch)
        default["default"] = options(config=config)
    # tyro joins lines that begin with a letter into one, however long; hence the indent.
    width = shutil.get_terminal_size().columns - 2
    paragraphs = inspect.cleandoc(options.__doc__ or "").split("\n\n")
    text = "\n\n".join(textwrap.fill(paragraph, width, subsequent_indent="  ") for paragraph in paragraphs)
    style = tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone
    with _grouping(getattr(options, "UNUSED", ())):
        parsed = tyro.cli(options, prog=program, args=args, description=text, config=style, **default)
    paths = {name: value for name, value in vars(parsed).items() if isinstance(value, Path)}
    return dataclasses.replace(parsed, **{name: require_path(path, name) for name, path in paths.items()})


def _grouping(unused: Collection[str]) -> ConstructorRegistry:
    """Lets tyro show the settings of a `Config` in `GROUPS`."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def rule(info: Any) -> StructConstructorSpec | None:
        if info.type is not Config:
            return None
        groups = []
        for title, names in GROUPS.items():
            fields = [(name, Config.__annotations__[name]) for name in names.split() if name not in unused]
            group: Any = dataclasses.make_dataclass(title, fields, namespace={"__doc__": Config.__doc__})
            values = group(*(getattr(info.default, name) for name, _ in fields))
            groups.append(StructFieldSpec(title, tyro.conf.OmitArgPrefixes[group], default=values, helptext=""))

        def make(**groups: Any) -> Config:
            settings = {name: value for group in groups.values() for name, value in vars(group).items()}
            return dataclasses.replace(info.default, **settings)

        return StructConstructorSpec(instantiate=make, fields=tuple(groups))

    return registry
