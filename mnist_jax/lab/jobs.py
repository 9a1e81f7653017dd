"""Many trainings at once, in this process or in worker processes that share its cores. Workers may die."""

import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import psutil

from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, LostError
from mnist_jax.lab import trials
from mnist_jax.lab.records import Trial
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import load_data, part_of
from mnist_jax.runtime import cores, use_compilation_cache

ATTEMPTS = 3  # A task is given up when its workers have died this often.
SPAWN = multiprocessing.get_context("spawn")


class Task(NamedTuple):
    """The work of one worker: a config and its seeds, in one program if there are several."""

    config: Config
    seeds: tuple[int, ...]


Result = list[tuple[Trial, dict[str, Any]]]  # The trial and the final variables of each seed of a task.


class Pool(NamedTuple):
    """Workers, as functions of futures.

    Attributes:
      submit: starts `train` for a task; gives the future.
      size: the largest number of tasks to run at a time.
      broken: raised by a future whose worker died.
      died: futures whose worker died since the last call and which the pool repeats by itself.
    """

    submit: Callable[[Task], Any]
    size: Callable[[], int]
    broken: type[Exception] = BrokenExecutor
    died: Callable[[Iterable[Any]], list[Any]] = lambda futures: []


def run(
    tasks: Iterable[Task], pool: Pool, on_death: Callable[[Task, int], None], stop: Callable[[], bool]
) -> Iterator[tuple[Task, Result | DivergedError | LostError]]:
    """Trains distinct tasks; yields each with its outcome, in the order of finishing.

    A task is taken from `tasks` when a worker is free for it, so that what came before may decide what it is.
    The outcome is the result of `train`, a DivergedError, or a LostError if the task's workers died three times.
    `on_death` is called with a task and the number of deaths so far, `stop` ten times a second.

    Raises KeyboardInterrupt if `stop` returns true, Stopped if `train` saw it first, LostError if the cluster is lost,
    InputError if no worker can use a task.
    """
    waiting, running, deaths, tasks = collections.deque(), {}, collections.Counter(), iter(tasks)
    given_up = LostError(f"its worker died {ATTEMPTS} times; is there too little memory?")

    def last_death(task: Task) -> bool:
        deaths[task] += 1
        on_death(task, deaths[task])
        return deaths[task] == ATTEMPTS

    while True:
        free = max(pool.size(), 1) - len(running) - len(waiting)
        waiting.extend(itertools.islice(tasks, max(free, 0)))
        if not (waiting or running):
            return
        while waiting and len(running) < pool.size():
            task = waiting.popleft()
            running[pool.submit(task)] = task
        finished = [future for future in running if future.done()]
        for future in pool.died(list(running)):
            if last_death(running[future]):
                future.cancel()
                yield running.pop(future), given_up
        for future in finished:
            if not (task := running.pop(future, None)):
                continue
            try:
                yield task, future.result()
            except DivergedError as error:
                yield task, error
            except pool.broken:
                if last_death(task):
                    yield task, given_up
                else:
                    waiting.appendleft(task)
        if stop():
            raise KeyboardInterrupt
        if running and not finished:
            time.sleep(0.1)


def train(task: Task, stop: Callable[[], bool] = lambda: False) -> Result:
    """Trains and scores a task; stops and raises as `fit`."""
    config, seeds = task
    return trials.run(config, seeds, dataset(config), stop)


def dataset(config: Config) -> Dataset:
    """The data that a config trains on and scores, loaded once per process; raises as `load_data` and `part_of`."""
    place = {name: getattr(config, name) for name in ("dataset", "data_source", "data_dir", "held_out")}
    return _dataset(Config(**place))


@functools.cache
def _dataset(config):
    return part_of(config, load_data(config))


# The workers of this machine ------------------------------------------------------------------------------------------


def default_jobs(archs: Iterable[str]) -> int:
    """One training per core, or fewer if memory, or a container's limit, is short."""
    free = [psutil.virtual_memory().available]
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            free.append(int(Path(limit).read_text()))
    each = max(1.2e9 if arch == "basic" else 0.7e9 for arch in archs)  # Bytes of a worker.
    return max(1, min(len(cores()), int(min(free) / each)))


@contextmanager
def here(stop: Callable[[], bool]) -> Iterator[Pool]:
    """This process as the only worker; calls `stop` after every step."""

    def submit(task: Task) -> Future:
        future = Future()
        try:
            future.set_result(train(task, stop))
        except Exception as error:
            future.set_exception(error)
        return future

    yield Pool(submit, lambda: 1)


@contextmanager
def processes(count: int, cached: bool) -> Iterator[Pool]:
    """`count` processes, each with its share of the cores; they end with the block.

    On Linux they are forked from a process that has imported the package and does nothing else: a worker, also one in
    place of a dead one, is there at once.
    """
    context: BaseContext = SPAWN
    if sys.platform == "linux":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    mine = cores()
    bounds = [i * len(mine) // count for i in range(count + 1)]
    shares = [mine[start:stop] or [mine[start]] for start, stop in itertools.pairwise(bounds)]
    workers: dict[int, Executor] = {}
    last: dict[int, Future] = {}

    with contextlib.ExitStack() as stack:

        def submit(task: Task) -> Future:
            i = next(i for i in range(count) if i not in last or last[i].done())
            try:
                last[i] = workers[i].submit(train, task)
            except (KeyError, BrokenExecutor):  # Not started yet, or dead.
                workers[i] = stack.enter_context(process(shares[i], cached, context))
                last[i] = workers[i].submit(train, task)
            return last[i]

        yield Pool(submit, lambda: count)


@contextmanager
def process(share: Sequence[int], cached: bool = True, context: BaseContext = SPAWN) -> Iterator[Executor]:
    """A new process to submit calls to, bound to cores before it first uses JAX, with or without compilation cache.

    It ends at once when the block ends or this process dies, even in the middle of a call.
    """
    leash, end = context.Pipe(duplex=False)
    executor = ProcessPoolExecutor(1, context, _begin, (leash, share, cached))
    with _without_sigint():
        executor.submit(int)
    leash.close()
    try:
        yield executor
    finally:
        end.close()
        executor.shutdown(cancel_futures=True)


@contextmanager
def _without_sigint() -> Iterator[None]:
    """A process that starts in the block inherits the mask, so that only this one handles Ctrl-C. Windows has none."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(leash, share, cached):
    def follow() -> None:
        leash.poll(None)  # Returns when the other end is closed, by the parent or by its death.
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    if not hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)
    else:
        os.environ["NPROC"] = str(len(share))  # XLA's number of threads.
    share_cache(cached)


def share_cache(cached: bool) -> None:
    """Uses the compilation cache of this worker's number of cores, or none; importing the package has turned it on."""
    jax.config.update("jax_enable_compilation_cache", cached)
    if jax.config.values["jax_compilation_cache_dir"]:
        use_compilation_cache()
