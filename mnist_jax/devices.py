"""Devices and processes: a mesh with one axis, which splits batches or seeds."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnist_jax import errors
from mnist_jax.errors import InputError, LostError, refusing
from mnist_jax.runtime import backend, versions

AXIS = "devices"
_HEARTBEAT_SECONDS = 30


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def join_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    *,
    tell: Callable[[str], object] = _to_stderr,
) -> None:
    """Joins several processes that train together. Call it before JAX is first used.

    Without arguments, the process is the only one, or a TPU pod, Slurm step or MPI job tells JAX about the others. JAX
    waits five minutes for missing processes. When a process is lost, the others end within a minute.

    Args:
      coordinator: HOST:PORT, where process 0 listens; or None.
      num_processes: number of processes; or None.
      process_id: number of this process, from 0; or None.
      tell: called with a line before the wait.

    Raises:
      InputError: only some of the three are given, one is out of range, the port is taken, or JAX cannot join.

    Example:
      >>> devices.join_processes(None, None, None)
    """
    arguments = coordinator, num_processes, process_id
    if arguments == (None, None, None):
        if not _of_a_cluster():
            return
    elif coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            "several processes need coordinator (HOST:PORT), number of processes and process id; give all three"
        )
    elif num_processes < 1 or not 0 <= process_id < num_processes:
        found = f"process id {process_id} of {num_processes} processes"
        raise InputError(f"{found} cannot be used; choose 0 to one less than the number of processes")
    else:
        _require_address(coordinator, process_id)
    tell("waiting for the other processes; JAX gives up after five minutes")
    with refusing("this process cannot join the others: ", ""):
        jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)


def _require_address(coordinator, process_id):
    """Raises InputError unless it is HOST:PORT and, in process 0, the port is free: JAX would abort."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"coordinator {coordinator!r} cannot be used; give HOST:PORT, as localhost:1234")
    if process_id == 0:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise InputError(
                f"process 0 cannot listen at {coordinator} ({error.strerror}); give all processes another port"
            ) from error


def _of_a_cluster() -> bool:
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or any(size.isdecimal() and int(size) > 1 for size in sizes)


def make_mesh(count: int | None = None) -> Mesh:
    """Makes a mesh with one axis over devices.

    Args:
      count: number of devices, the first of all processes; None for all.

    Returns:
      The mesh.

    Raises:
      InputError: there are fewer devices, or a process would have none.

    Example:
      >>> mesh = devices.make_mesh(1)  # for `mj.fit(config, data, mesh=mesh)`
      >>> mesh.size
      1
    """
    backend()
    devices = jax.devices()
    count = len(devices) if count is None else count
    if not 1 <= count <= len(devices):
        raise InputError(f"devices {count} cannot be used; choose 1 to {len(devices)}, or all")
    if jax.process_count() > 1 and count < len(devices):
        raise InputError(f"devices {count} of {len(devices)} would leave a process without any; choose all")
    # With automatic axes the compiler splits the work. With explicit ones every layer would have to say how.
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count])


def choose_mesh(count: str | None) -> Mesh | None:
    """The mesh of `--devices COUNT`: a number, `all`, or None for all GPUs or TPU cores, or one CPU.

    Returns None for a single device. Raises InputError as `make_mesh`, or if `count` is none of these.
    """
    if count is not None and count != "all" and not count.isdecimal():
        raise InputError(f"devices {count!r} cannot be used; choose a number or all")
    platform, several = backend(), jax.process_count() > 1
    if count is None and platform == "cpu" and not several:
        return None
    mesh = make_mesh(int(count) if count and count != "all" else None)
    return mesh if mesh.size > 1 or several else None


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError, with the nearest usable sizes, unless the devices divide a batch evenly."""
    below, above = (batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size)
    if below != above:
        nearest = f"{below} or {above}" if below else str(above)
        raise InputError(f"batch size {batch_size} cannot be split over {mesh.size} devices; choose {nearest}")


def put(tree: Any, mesh: Mesh | None, axis: int | None = None) -> Any:
    """Places arrays on the devices of a mesh, split along an axis or copied; without mesh, on the default device.

    Every process passes the same whole arrays, and its devices take their part.
    """
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * (axis or 0), AXIS) if axis is not None else PartitionSpec())

    def put_leaf(leaf):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(put_leaf, tree)


@contextlib.contextmanager
def synchronized() -> Iterator[dict[str, Any]]:
    """A block that ends in the same way in every process; each has to enter it.

    Yields a dict for what has to be equal in all processes: JSON values by name.

    Raises:
      InputError: a value differs from that of process 0.
      LostError: another process is lost, or failed for a reason that nobody foresaw.
      InputError: what the block raised in another process, with its number.
    """
    facts: dict[str, Any] = {}
    backend()
    if jax.process_count() == 1:
        yield facts
        return
    error = None
    try:
        yield facts
    except Exception as raised:
        error = raised
    described = error and [type(error).__name__, str(error)[:1000]]
    if isinstance(error, OSError):
        described = ["OSError", error.errno, error.strerror, error.filename]
    records = _gather({"error": described, "facts": versions() | facts})
    if error:
        raise error
    for process, record in enumerate(records):
        if record["error"]:
            kind, *rest = record["error"]
            if kind == "OSError":
                number, text, filename = rest
                raise OSError(number, f"process {process}: {text}", filename)
            raise getattr(errors, kind, LostError)(f"process {process}: {rest[0]}")
    for process, record in enumerate(records):
        if message := difference(record["facts"], records[0]["facts"], process):
            raise InputError(message)


def difference(facts: Mapping[str, Any], first: Mapping[str, Any], process: int) -> str:
    """One line that names what differs in a process from the first one, process 0; empty if nothing does."""
    differing = "; ".join(
        f"process {process} has {name} {facts.get(name)}, but process 0 {first.get(name)}"
        for name in {**first, **facts}
        if facts.get(name) != first.get(name)
    )
    return differing and f"{differing}; give all processes the same"


def _gather(record):
    """The JSON values that all processes pass, in their order."""
    content = np.frombuffer(json.dumps(record).encode(), np.uint8)
    try:
        sizes = multihost_utils.process_allgather(np.int32(content.size))
        padded = np.zeros(sizes.max(), np.uint8)
        padded[: content.size] = content
        rows = multihost_utils.process_allgather(padded)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise LostError("another process is lost; it has said why, or start all of them again") from error
    contents = (np.asarray(row)[:size].tobytes() for row, size in zip(rows, sizes, strict=True))
    return [json.loads(content) for content in contents]


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process has to call it."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def from_writer(tree: Any) -> Any:
    """The arrays of the writing process, for every process; the others pass arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def is_writer() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0
