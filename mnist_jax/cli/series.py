"""A series of trainings under a progress bar, by the workers that the flags ask for."""

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from mnist_jax.cli.options import Workers
from mnist_jax.cli.program import LastingConsole
from mnist_jax.errors import DivergedError, InputError, LostError, require_whole
from mnist_jax.series import workers
from mnist_jax.series.workers import Result, Task
from mnist_jax.signals import catch_signals
from mnist_jax.training import Stopped


def default_file(folder: str, name: str, old_name: str) -> Path:
    """The file of `results/` to append to where no flag names one; a file of version 0.2, if there is one."""
    # `=` in a layout means something to a shell, and `/` is in names such as emnist/letters.
    file, old = Path("results", folder, name.replace("=", "r").replace("/", "-")), Path("results", old_name)
    return old if old.exists() and not file.exists() else file


@contextlib.contextmanager
def outcomes(
    tasks: Sequence[Task], options: Workers, stop: Callable[[], bool], tell: Callable[[str], object]
) -> Iterator[Iterator[tuple[Task, Any]]]:
    """Yields the outcomes of tasks, trained by the workers that were asked for; by default one per core.

    Raises InputError for an impossible number, or if both flags are given; and as `workers.cluster_workers`.
    """
    count, backend = options.jobs, jax.default_backend()
    require_whole(1 if count is None else count, "jobs", 1)
    if options.scheduler and count:
        raise InputError(f"jobs {count} cannot be used with --scheduler, which has the workers it has; drop one")
    if count and count > 1 and backend != "cpu":
        raise InputError(f"jobs {count} cannot share a {backend}; leave --jobs out")
    if tasks and options.scheduler:
        config = tasks[0].config
        with workers.cluster_workers(options.scheduler, config) as client:
            if not client.nthreads():
                tell(f"scheduler {options.scheduler!r} has no workers yet; waiting for the first")
            yield workers.run_at_once(tasks, client, workers.identity(config), stop, tell)
        return
    if backend != "cpu" or not tasks:
        count = 1
    elif count != 1 and importlib.util.find_spec("distributed") is None:
        tell(f"one training after the other, since {workers.MISSING}")
        count = 1
    elif count is None:
        count = min(workers.default_jobs([task.config.arch for task in tasks]), len(tasks))
    if count == 1:
        yield workers.run_here(tasks, stop)
        return
    with workers.local_workers(count) as client:
        yield workers.run_at_once(tasks, client, {}, stop, tell)


def run_trials(
    tasks: Sequence[Task],
    options: Workers,
    out: Path,
    record: Callable[[Task, Result | DivergedError], tuple[str, str]],
) -> None:
    """Trains all tasks under a progress bar, and prints what `record` returns: a text, and a note for the bar.

    The first line says that `record` appends to `out`. Raises LostError at the end if a task was given up. After SIGINT
    or SIGTERM the process exits, its workers first.
    """
    console, lost = LastingConsole(highlight=False, soft_wrap=True), []
    columns = ("trials", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[note]}")
    with catch_signals() as received:
        try:
            with (
                outcomes(tasks, options, partial(bool, received), console.print) as ended,
                Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=inf) as bar,
            ):
                console.print(f"appending to {out}")
                row = bar.add_task("", total=len(tasks), note="")
                bar.advance(row, 0)  # The clock of the first trial starts here.
                for task, outcome in ended:
                    if isinstance(outcome, LostError):
                        lost.append(f"seed {', '.join(map(str, task.seeds))}: {outcome}")
                    else:
                        lines, note = record(task, outcome)
                        console.print(lines)
                        bar.update(row, note=note)
                    bar.advance(row)
        except (Stopped, KeyboardInterrupt):
            print("error: interrupted; the same command goes on after what is finished", file=sys.stderr)
            sys.exit(128 + received[0])
    if lost:
        raise LostError("; ".join(lost) + "; the same command tries again")
