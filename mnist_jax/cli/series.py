"""A series of trainings under a progress bar, by the workers that the flags ask for."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mnist_jax.cli.lab_options import Workers
from mnist_jax.cli.program import fail, require_at_least
from mnist_jax.errors import DivergedError, InputError, LostError
from mnist_jax.lab import cluster, jobs
from mnist_jax.signals import catch_signals
from mnist_jax.training import Stopped


def open_pool(
    tasks: Sequence[jobs.Task], workers: Workers, stop: Callable[[], bool], most: int
) -> contextlib.AbstractContextManager[jobs.Pool]:
    """The workers asked for, `most` at most if no number was; they use the compilation cache if this process does.

    Raises InputError for an impossible number, or if both flags are given; and as `cluster.connect`.
    """
    count, cached = workers.jobs, jax.config.values["jax_enable_compilation_cache"]
    require_at_least(1, workers, "jobs")
    if workers.scheduler and count:
        raise InputError(f"jobs {count} cannot be used with --scheduler, which has the workers it has; drop one")
    if not tasks:
        return jobs.here(stop)
    if workers.scheduler:
        return cluster.connect(workers.scheduler, tasks[0].config, cached)
    if jax.default_backend() != "cpu":
        if count and count > 1:
            raise InputError(f"jobs {count} cannot share a {jax.default_backend()}; leave --jobs out")
        return jobs.here(stop)
    count = count or min(jobs.default_jobs(task.config.arch for task in tasks), most)
    return jobs.here(stop) if count == 1 else jobs.processes(count, cached)


def run_trials(
    tasks: Sequence[jobs.Task],
    workers: Workers,
    label: Callable[[jobs.Task], str],
    record: Callable[[jobs.Task, jobs.Result | DivergedError], tuple[str, str]],
    further: Callable[[], jobs.Task | None] = lambda: None,
    most: int | None = None,
) -> None:
    """Trains all tasks under a progress bar, and prints a line for each that is finished.

    Args:
      tasks: what to train.
      workers: who trains.
      label: the name of a task.
      record: stores the outcome; returns text to print and a note for the progress bar.
      further: gives another task when those are begun and a worker is free; None if there is none.
      most: number of tasks, at most. If not given: that of `tasks`.

    Raises LostError at the end if a task's worker died each time. After SIGINT or SIGTERM the process exits, the
    workers before it.
    """
    most = most or len(tasks)
    console, lost = Console(highlight=False, soft_wrap=True), []
    columns = ("trials", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))

    def on_death(task: jobs.Task, times: int) -> None:
        then = "it is run again" if times < jobs.ATTEMPTS else "it is given up"
        console.print(f"{label(task)}: its worker died; {then}")

    with catch_signals() as received:
        stop = partial(bool, received)
        try:
            with (
                open_pool(tasks, workers, stop, most) as pool,
                Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=inf) as bar,
            ):
                if tasks and not pool.size():
                    console.print(f"scheduler {workers.scheduler!r} has no workers yet; waiting for the first")
                row = bar.add_task("", total=most, note="")
                bar.advance(row, 0)  # The clock of the first trial starts here.
                for task, outcome in jobs.run(itertools.chain(tasks, iter(further, None)), pool, on_death, stop):
                    if isinstance(outcome, LostError):
                        lost.append(f"{label(task)}: {outcome}")
                    else:
                        lines, note = record(task, outcome)
                        console.print(lines)
                        bar.update(row, note=note)
                    bar.advance(row)
        except (Stopped, KeyboardInterrupt):
            fail("interrupted; the same command goes on after what is finished", 128 + received[0])
    if lost:
        raise LostError("; ".join(lost) + "; the same command tries again")
