"""Many trainings: one after the other in this process, or at once by Dask's workers, here or on a cluster."""

import contextlib
import functools
import importlib.util
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, TypeAlias

from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError, LostError
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import load_data, part_of
from mnist_jax.runtime import cores, sources
from mnist_jax.series import trials
from mnist_jax.series.records import Trial

MISSING = "distributed is not installed: pip install 'mnist-jax[cluster]'"
_CONNECT_SECONDS = 10


class Task(NamedTuple):
    """The work of one worker: a config and its seeds, in one program if there are several."""

    config: Config
    seeds: tuple[int, ...]


Result = list[tuple[Trial, dict[str, Any]]]  # The trial and the final variables of each seed of a task.
Outcome: TypeAlias = Result | DivergedError | LostError


def train(task: Task, stop: Callable[[], bool] = lambda: False) -> Result:
    """Trains and scores a task; stops and raises as `fit`."""
    return trials.run(task.config, task.seeds, dataset(task.config), stop)


def dataset(config: Config) -> Dataset:
    """The data that a config trains on and scores, loaded once per process; raises as `load_data` and `part_of`."""
    names = ("dataset", "data_source", "data_dir", "held_out")
    return _dataset(Config(**{name: getattr(config, name) for name in names}))


@functools.cache
def _dataset(config):
    return part_of(config, load_data(config))


def run_here(tasks: Sequence[Task], stop: Callable[[], bool]) -> Iterator[tuple[Task, Outcome]]:
    """Trains one task after the other in this process; yields each with its result or DivergedError.

    `stop` is called after every step; the generator raises Stopped if it returns true.
    """
    for task in tasks:
        try:
            outcome = train(task, stop)
        except DivergedError as error:
            outcome = error
        yield task, outcome


def run_at_once(
    tasks: Sequence[Task],
    client: Any,
    wanted: Mapping[str, str],
    stop: Callable[[], bool],
    tell: Callable[[str], object],
) -> Iterator[tuple[Task, Outcome]]:
    """Trains a task on each worker of a Dask client at a time; yields each with its outcome, in the order of finishing.

    Dask begins a task anew when its worker is lost, up to three times. The outcome is then a LostError. `client` is of
    `local_workers` or `cluster_workers`, and `wanted` the `identity` that every worker must have, empty for workers of
    this machine. `stop` is called ten times a second, `tell` with a line when a worker is lost.

    Raises KeyboardInterrupt if `stop` returns true, LostError if the scheduler is lost, InputError if a worker of a
    cluster has another version of the package or other data.
    """
    import distributed

    waiting, running, workers, asked = [*tasks], {}, set(), -math.inf
    try:
        while waiting or running:
            if time.monotonic() - asked > 1:  # Asked ten times a second, the scheduler takes 5% of a core.
                before, workers, asked = workers, set(client.nthreads()), time.monotonic()
                if running and before - workers:
                    tell("a worker is lost; Dask trains again what it had begun")
            while waiting and len(running) < len(workers):
                task = waiting.pop(0)
                running[client.submit(_train, task, wanted, pure=False)] = task
            for future in [future for future in running if future.done()]:
                try:
                    outcome = future.result()
                except DivergedError as error:
                    outcome = error
                except distributed.KilledWorker:
                    outcome = LostError("its workers died; is there too little memory?")
                yield running.pop(future), outcome
            if stop():
                raise KeyboardInterrupt
            time.sleep(0.1)
    except (CancelledError, OSError) as error:
        raise LostError("the scheduler is lost; the same command continues after the finished trials") from error


def _train(task, wanted):
    """Trains on a worker, until the client has gone or cancels the task."""
    import distributed

    worker: Any = distributed.get_worker()
    os.environ.setdefault("NPROC", str(worker.state.nthreads))  # XLA's number of threads, before JAX is used.
    if wanted:
        _require_same(worker.address, identity(task.config), wanted)
    elif hasattr(os, "sched_setaffinity"):  # Kept to its cores, a worker of this machine takes 6% less time.
        mine, share = cores(), int(os.environ["NPROC"])
        os.sched_setaffinity(0, {mine[(worker.name * share + i) % len(mine)] for i in range(share)})
    this = worker.state.tasks[worker.get_current_task()]
    return train(task, stop=lambda: this.state != "executing")


def default_jobs(archs: Sequence[str]) -> int:
    """One training per core, or fewer if memory, or a container's limit, is short."""
    from distributed.system import MEMORY_LIMIT

    each = 1.2e9 if "basic" in archs else 0.7e9  # Bytes of a worker.
    return max(1, min(len(cores()), int(MEMORY_LIMIT / each)))


@contextlib.contextmanager
def local_workers(count: int) -> Iterator[Any]:
    """A Dask client of `count` processes of this machine, each with its share of the cores; they end with the block."""
    import dask.config
    import distributed

    _silence()
    # In place of Dask's own settings, which would take the allocator's from the package.
    environment = {"NPROC": str(max(1, len(cores()) // count)), "DASK_LOGGING__DISTRIBUTED": "critical"}
    with dask.config.set({"distributed.nanny.pre-spawn-environ": environment}), _without_sigint():
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address="127.0.0.1:0",  # Without a dashboard it would want the port of every other cluster.
        )
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield client


@contextlib.contextmanager
def _without_sigint() -> Iterator[None]:
    """Threads and processes that start in the block inherit the mask, so that only this one handles Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows has none.
        yield
        return
    resource_tracker.ensure_running()  # When it starts, it unblocks the signal.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def cluster_workers(address: str, config: Config) -> Iterator[Any]:
    """A Dask client of a scheduler's workers.

    Raises LostError if the scheduler cannot be reached; InputError if `distributed` is not installed, or a worker has
    another version of this package or other data than this process.
    """
    if importlib.util.find_spec("distributed") is None:
        raise InputError(f"--scheduler cannot be used: {MISSING}")
    import distributed

    _silence()
    try:
        client: Any = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise LostError(f"scheduler {address!r} cannot be reached ({error}); is it running there?") from error
    with client:
        for worker, theirs in client.run(identity, config, on_error="return").items():
            _require_same(worker, theirs, identity(config))
        yield client


def _silence() -> None:
    """Dask's log would repeat errors that are told in one line."""
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _require_same(worker, theirs, wanted):
    if isinstance(theirs, Exception):
        raise InputError(f"worker {worker} cannot take part ({theirs}); install the same there") from theirs
    for name, value in wanted.items():
        if theirs[name] != value:
            raise InputError(f"worker {worker} has {name} {theirs[name]}, but this process {value}; give both the same")


def identity(config: Config) -> dict[str, str]:
    """Version and sources of this package, and hash of the data: equal for all workers of a series."""
    return {"mnist-jax": sources(), "data": dataset(config).sha256[:12]}
