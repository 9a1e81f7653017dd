"""What the scripts share: flags from dataclasses, errors in one line, a series of trials under a bar."""

import argparse
import contextlib
import dataclasses
import faulthandler
import inspect
import io
import json
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_jax.errors import DivergedError, InputError, LostError, StorageError
from mnist_jax.lab import cluster, jobs
from mnist_jax.lab.records import VERSION
from mnist_jax.recipes import make_config
from mnist_jax.runs.directory import load_config
from mnist_jax.runtime import reuse_freed_memory, use_compilation_cache
from mnist_jax.training import Stopped

T = TypeVar("T")
_HELP_WIDTH = 98


def parse(options: type[T], args: Sequence[str] | None = None) -> T:
    """Builds a dataclass, whose docstring is the help text, from flags, those of the process if none are given.

    A field `config: Config` takes its defaults from the run that `--resume` names, else from the recipe that `--recipe`
    names, for the network of `--arch`. Raises InputError for a flag that is unknown or has no usable value, SystemExit
    after `--help`.
    """
    args = list(sys.argv[1:] if args is None else args)
    default = {}
    if any(field.name == "config" for field in dataclasses.fields(options)):
        given = _values(args, "--recipe", "--arch", "--resume")
        run_dir = given.pop("resume", None)
        try:
            default["default"] = options(config=load_config(Path(run_dir)) if run_dir else make_config(**given))
        except InputError as error:
            raise InputError(f"{error}; see --help") from None
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            # Lines that begin with a letter, tyro joins to one, however long; hence the indent.
            paragraphs = inspect.cleandoc(options.__doc__).split("\n\n")
            filled = [textwrap.fill(paragraph, _HELP_WIDTH, subsequent_indent="  ") for paragraph in paragraphs]
            description = "\n\n".join(filled)
            return tyro.cli(
                options,
                prog=Path(sys.argv[0]).name,  # As argparse has it; tyro's is the whole path, which may not fit.
                args=args,
                description=description,
                config=(tyro.conf.FlagCreatePairsOff,),
                **default,
            )
    except SystemExit as stop:
        if stop.code:
            raise InputError(_first_message(said.getvalue()) + "; see --help") from None
        raise


def run(main: Callable[[T], int | None], options: type[T]) -> NoReturn:
    """Runs a script; what a user can cause ends in one line and the status of the error, or 130 after Ctrl-C."""
    try:
        parsed = parse(options)
        reuse_freed_memory()
        if getattr(parsed, "compilation_cache", False):
            use_compilation_cache()
        sys.exit(main(parsed))
    except (InputError, DivergedError, StorageError) as error:
        _fail(str(error), error.status)
    except LostError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(error.status)  # Leaving in order would wait for the process that is lost.
    except KeyboardInterrupt:
        _fail("interrupted", status=128 + signal.SIGINT)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in the list it gives, in place of what they do; a second one ends the process at once.

    The interpreter runs a handler only between its own instructions, so not while a step runs or compiles; the
    descriptor that it writes to meanwhile is read by a thread.
    """
    if not faulthandler.is_enabled():
        # It gives handlers a stack of their own. On that of the main thread, in the midst of XLA's matrix kernels, they
        # corrupted the heap: on one core, 8 signals of 40 ended in a crash, and with it none of 80.
        faulthandler.enable(sys.__stderr__)
    received, (readable, writable) = [], os.pipe()
    os.set_blocking(writable, False)

    def note() -> None:
        while number := os.read(readable, 1):
            if received:
                os._exit(128 + number[0])
            received.append(number[0])

    numbers = (signal.SIGINT, signal.SIGTERM)
    thread = threading.Thread(target=note, daemon=True)
    thread.start()
    descriptor = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    handlers = [signal.signal(number, lambda number, frame: None) for number in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        os.close(writable)
        thread.join()
        os.close(readable)


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who trains: flags of the scripts that train many times."""

    jobs: int | None = None
    """How many trainings at once, each with its share of the cores; if not given, on a CPU one per core, as far as
    memory allows, and on a GPU or TPU one."""
    scheduler: str | None = None
    """HOST:PORT of a Dask scheduler whose workers are to train, one training each; needs the extra cluster."""


def open_pool(
    tasks: Sequence[jobs.Task], workers: Workers, stop: Callable[[], bool]
) -> contextlib.AbstractContextManager[jobs.Pool]:
    """The workers asked for; they use the compilation cache if this process does.

    By default those of this machine: on a CPU one for each core, as far as memory allows and there are tasks, else one.

    Raises InputError for a number that cannot be, or both of the two; and as `cluster.connect`.
    """
    count, cached = workers.jobs, bool(jax.config.jax_compilation_cache_dir)
    if count is not None and count < 1:
        raise InputError(f"jobs {count} cannot be used; choose 1 or more")
    if workers.scheduler and count:
        raise InputError(f"jobs {count} cannot be used with --scheduler, which has the workers it has; drop one")
    if not tasks:
        return contextlib.nullcontext()
    if workers.scheduler:
        return cluster.connect(workers.scheduler, tasks[0].config, cached)
    if jax.default_backend() != "cpu":
        if count and count > 1:
            raise InputError(f"jobs {count} cannot share a {jax.default_backend()}; leave --jobs out")
        return jobs.here(stop)
    count = count or min(jobs.default_jobs(task.config.arch for task in tasks), len(tasks))
    return jobs.here(stop) if count == 1 else jobs.processes(count, cached)


def run_trials(
    tasks: Sequence[jobs.Task],
    workers: Workers,
    label: Callable[[jobs.Task], str],
    record: Callable[[jobs.Task, jobs.Result | DivergedError], tuple[str, str]],
) -> None:
    """Has tasks trained by the workers asked for, under a bar, with a line for each that is finished.

    Args:
      tasks: what is to be trained.
      workers: by what.
      label: a task's name.
      record: keeps what a task came to; gives the lines that say so, and what stands beside the bar from then on.

    Raises LostError at the end if a task's worker died each time. After SIGINT or SIGTERM the process ends, the workers
    before it.
    """
    console, lost = Console(highlight=False, soft_wrap=True), []
    columns = ("trials", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))

    def on_death(task: jobs.Task, times: int) -> None:
        then = "it is run again" if times < jobs.ATTEMPTS else "it is given up"
        console.print(f"{label(task)}: its worker died; {then}")

    with catch_signals() as received:
        stop = partial(bool, received)
        try:
            with (
                open_pool(tasks, workers, stop) as pool,
                Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=inf) as bar,
            ):
                if tasks and not pool.size():
                    console.print(f"scheduler {workers.scheduler!r} has no workers yet; waiting for the first")
                row = bar.add_task("", total=len(tasks), note="")
                bar.advance(row, 0)  # From here on is counted how long a trial takes.
                for task, outcome in jobs.run(tasks, pool, on_death, stop):
                    if isinstance(outcome, LostError):
                        lost.append(f"{label(task)}: {outcome}")
                    else:
                        lines, beside = record(task, outcome)
                        console.print(lines)
                        bar.update(row, note=beside)
                    bar.advance(row)
        except Stopped:
            _fail("interrupted; the same command goes on after what is finished", 128 + received[0])
    if lost:
        raise LostError("; ".join(lost) + "; the same command tries again")


def require_folder(path: Path | None, flag: str) -> None:
    """Asks before long work whether a file can be written where a flag wants it; raises InputError if it cannot."""
    if path and (path.is_dir() or not os.access(path.parent, os.W_OK)):
        reason = "it is a folder" if path.is_dir() else f"folder {str(path.parent)!r} is not there, or is read-only"
        raise InputError(f"{flag} {str(path)!r} cannot be written: {reason}; name another file")


@contextlib.contextmanager
def writing(path: Path, flag: str) -> Iterator[None]:
    """Raises a `StorageError` that names a file and its flag, for what goes wrong while writing it."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r} ({error.strerror}); name another with {flag}") from error


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes what a script measured to the file of its `--json`."""
    with writing(path, "--json"):
        path.write_text(json.dumps({"version": VERSION} | values, indent=2) + "\n", encoding="utf-8")


def _fail(message: str, status: int) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


def _values(args: Sequence[str], *flags: str) -> dict[str, str]:
    """The values of some flags, ahead of parsing the rest."""
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
