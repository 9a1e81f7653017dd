"""Many trainings at once on a Dask cluster, which repeats the tasks of dead workers."""

import collections
import functools
import importlib.util
import itertools
import logging
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import Any

from mnist_jax.errors import InputError, LostError, StorageError
from mnist_jax.lab.jobs import Pool, Task, share_cache, train
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import load_data
from mnist_jax.runtime import sources

_CONNECT_SECONDS = 10
_LOST = "the scheduler is lost; the same command continues after the finished trials"


@contextmanager
def connect(address: str, config: Config, cached: bool) -> Iterator[Pool]:
    """The workers of a Dask scheduler. Each takes one task at a time, with all its threads.

    Raises LostError if the scheduler cannot be reached; InputError if `distributed` is not installed, or a worker has
    another version of this package or other data than this process.
    """
    if importlib.util.find_spec("distributed") is None:
        raise InputError("--scheduler needs distributed, which is not installed: pip install 'mnist-jax[cluster]'")
    import distributed.versions

    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # The errors below are one line.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", distributed.versions.VersionMismatchWarning)  # Trials record versions.
            client: Any = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LostError(f"scheduler {address!r} cannot be reached ({reason}); is it running there?") from error

    series, numbers, wanted = f"mnist_jax-{uuid.uuid4()}", itertools.count(), identity(config)
    workers: set[str] = set()
    deaths: collections.deque[str] = collections.deque()

    def hear(event: tuple[float, dict[str, Any]]) -> None:
        message = event[1]
        if message.get("action") in ("add-worker", "remove-worker"):
            workers.clear()
        if message.get("action") == "remove-worker" and not message["expected"]:
            deaths.extend(message["processing-tasks"])

    def size() -> int:
        if not workers:
            workers.update(client.nthreads())
        return len(workers)

    def submit(task: Task) -> distributed.Future:
        key = f"{series}-{next(numbers)}"
        return client.submit(_train_on_cluster, task, wanted, cached, key=key)

    def died(futures: Iterable[distributed.Future]) -> list[distributed.Future]:
        if client.status != "running":
            raise LostError(_LOST)
        keys = [deaths.popleft() for _ in range(len(deaths))]
        return [future for future in futures if future.key in keys]

    with client:
        for worker, found in client.run(identity, config, on_error="return").items():
            _require(worker, found, wanted)
        client.subscribe_topic("all", hear)
        try:
            yield Pool(submit, size, distributed.KilledWorker, died)
        except StorageError:  # An OSError of this process, not of the cluster.
            raise
        except (CancelledError, OSError) as error:
            raise LostError(_LOST) from error


def _train_on_cluster(task, wanted, cached):
    import distributed

    worker = distributed.get_worker()
    os.environ.setdefault("NPROC", str(worker.state.nthreads))
    share_cache(cached)
    _require(worker.address, identity(task.config), wanted)
    this = worker.state.tasks[worker.get_current_task()]
    return train(task, stop=lambda: this.state != "executing")  # Cancelled, or its client is gone.


def _require(worker, found, wanted):
    if isinstance(found, Exception):
        raise InputError(f"worker {worker} cannot take part: {' '.join(str(found).split())[:300]}") from found
    for name, value in wanted.items():
        if found[name] != value:
            raise InputError(f"worker {worker} has {name} {found[name]}, but this process {value}; give both the same")


def identity(config: Config) -> dict[str, str]:
    """Version and sources of this package, and hash of the data: equal for all workers of a series."""
    return _identity(Config(dataset=config.dataset, data_source=config.data_source, data_dir=config.data_dir))


@functools.cache
def _identity(config):
    return {"mnist-jax": sources(), "data": load_data(config).sha256[:12]}
