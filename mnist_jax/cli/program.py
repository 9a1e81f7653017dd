"""A command as a process: how it was called, what it writes, and how it ends."""

import contextlib
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mnist_jax.errors import InputError, StorageError, reason, remedy

if TYPE_CHECKING:
    from mnist_jax.steps import Trained


def called(command: str, *args: str | Path) -> str:
    """How to call a command in the way this process was called, with these arguments, quoted for a shell.

    `python scripts/train.py` and `uv run scripts/train.py` for a script given by its path, else `mnist-jax train`.
    """
    script = Path(sys.argv[0])
    words = ["mnist-jax", command]
    if script.name == script_name(command):
        if script.is_absolute() and script.is_relative_to(Path.cwd()):
            script = script.relative_to(Path.cwd())
        python = "python" if Path(sys.orig_argv[0]).is_absolute() else sys.orig_argv[0]
        words = ["uv", "run", script] if "UV" in os.environ else [python, script]
    return shlex.join(map(str, [*words, *args]))


def typed(command: str) -> str:
    """The whole of the command that this process was called by."""
    words = sys.argv[1:]
    return called(command, *words[words[:1] == [command] :])


def script_name(command: str) -> str:
    """The file in `scripts/` that runs a command."""
    return command.replace("-", "_") + ".py"


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


def require_folder(path: Path | None, flag: str) -> None:
    """Raises InputError, before long work, if the file that a flag names cannot be written."""
    if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        reason = "it is a folder" if path.is_dir() else f"folder {str(path.parent)!r} is not there, or is read-only"
        raise InputError(f"{flag} {str(path)!r} cannot be written: {reason}; name another file")


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Raises StorageError, with the file and its flag, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        what = remedy(error, f"make its folder, or name another with {flag}")
        raise StorageError(f"cannot write {str(path)!r} ({reason(error)}); {what}") from error


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str], Any]]:
    """Gives a function that says on standard error what a long command is doing, in a terminal on one line."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield console.print
        return
    with console.status("starting") as status:
        yield status.update


def report(table: Iterable[str], record: Any, path: Path | None) -> None:
    """Prints a table of README, and writes the named tuple that it shows to the file of `--json`, if one was given."""
    from rich.console import Console
    from rich.markdown import Markdown

    from mnist_jax.runs.directory import write_text

    Console(width=120).print(Markdown("\n".join(table)))
    if path:
        with writing(path, "--json"):
            write_text(path, json.dumps(record._asdict(), indent=2) + "\n")
