"""Devices and processes: one mesh axis, over which batches, or seeds, are split."""

import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnist_jax.errors import InputError, refusing

AXIS = "devices"
_HEARTBEAT_SECONDS = 30


def join_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Makes this process one of several that train together; call it before JAX is first used.

    With no argument this process is the only one, or one of a TPU pod, a Slurm step or an MPI job, which tell JAX the
    rest; else process 0 listens at `coordinator`, HOST:PORT. When a process is lost, the others end within a minute.

    Raises InputError if some but not all of the three are given, one is out of range, or the others cannot be reached.
    """
    if coordinator is None and num_processes is None and process_id is None:
        if _of_a_cluster():
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
        return
    if coordinator is None or num_processes is None or process_id is None:
        raise InputError(
            "several processes need coordinator (HOST:PORT), number of processes and process id, all three; give them"
        )
    if num_processes < 1 or not 0 <= process_id < num_processes:
        found = f"process id {process_id} of {num_processes} processes"
        raise InputError(f"{found} cannot be; choose 0 to one less than all")
    timeouts: dict[str, Any] = {"heartbeat_timeout_seconds": _HEARTBEAT_SECONDS, "initialization_timeout": 60}
    with refusing(f"process {process_id} cannot join the others at {coordinator}: ", ""):
        jax.distributed.initialize(coordinator, num_processes, process_id, **timeouts)


def _of_a_cluster() -> bool:
    sizes = (os.environ.get(name, "1") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    return "," in hosts or any(size.isdecimal() and int(size) > 1 for size in sizes)


def make_mesh(count: int | None = None) -> Mesh:
    """A mesh of one axis over the first `count` devices of all processes; over all of them if None.

    Raises InputError if there are not so many, or if several processes are not to use all.
    """
    devices = jax.devices()
    count = len(devices) if count is None else count
    if not 1 <= count <= len(devices):
        raise InputError(f"devices {count} cannot be used; choose 1 to {len(devices)}, or all")
    if jax.process_count() > 1 and count < len(devices):
        raise InputError(f"devices {count} of {len(devices)} would leave a process without any; choose all")
    # Automatic axes: the compiler splits the work; explicit ones would have every layer say how.
    return jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices[:count])


def choose_mesh(count: str | None) -> Mesh | None:
    """The mesh that `--devices COUNT` asks for: a number, `all`, or None for all GPUs or TPU cores and one CPU.

    None where a single device needs no mesh. Raises InputError as `make_mesh`, or if `count` is neither.
    """
    if count is not None and count != "all" and not count.isdecimal():
        raise InputError(f"devices {count!r} cannot be used; choose a number or all")
    several = jax.process_count() > 1
    if count is None and jax.default_backend() == "cpu" and not several:
        return None
    mesh = make_mesh(int(count) if count and count != "all" else None)
    return mesh if mesh.size > 1 or several else None


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Raises InputError, with the nearest sizes that do, unless every device gets as many images of a batch."""
    below, above = (batch_size // mesh.size * mesh.size, -(-batch_size // mesh.size) * mesh.size)
    if below != above:
        nearest = f"{below} or {above}" if below else str(above)
        raise InputError(f"batch size {batch_size} cannot be split over {mesh.size} devices; choose {nearest}")


def put(tree: Any, mesh: Mesh | None, axis: int | None = None) -> Any:
    """Places arrays on the devices of a mesh, split along an axis, or whole on each; on the default one without mesh.

    Every process gives the same whole arrays, and its devices take their part.
    """
    if mesh is None:
        return jax.device_put(tree)
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * (axis or 0), AXIS) if axis is not None else PartitionSpec())

    def place(leaf):
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(place, tree)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; every process has to ask."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if jax.process_count() > 1 else flag


def from_writer(tree: Any) -> Any:
    """The arrays of the process that writes, for every process; the others give arrays of the same shapes."""
    return multihost_utils.broadcast_one_to_all(tree) if jax.process_count() > 1 else tree


def is_writer() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0
