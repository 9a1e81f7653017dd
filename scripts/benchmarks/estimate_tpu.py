"""The TPU compiler's estimates of a program, without a TPU.

The package `libtpu` compiles for a named topology on any Linux machine. The compiled text has an estimate of the cycles
of each operation. Nothing is timed.
"""

import collections
import dataclasses
import hashlib
import importlib.util
import os
import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import timings
import tyro
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mnist_jax import devices, training
from mnist_jax.cli import run
from mnist_jax.data import Dataset, Split
from mnist_jax.data.bundled import FULL_SIZE, MEAN, STD
from mnist_jax.errors import InputError
from mnist_jax.layers import FAST, FLAX, Layers
from mnist_jax.models import IMAGE_SHAPE
from mnist_jax.recipes.config import Config
from mnist_jax.recipes.values import make_setup
from mnist_jax.runtime import environment
from mnist_jax.steps import Metrics, Trained, eval_step, init_state, train_step
from mnist_jax.summary import abstract_variables

LAYERS = {"ours": FAST, "flax": FLAX}


@dataclasses.dataclass(frozen=True)
class Options:
    """Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers.

    Needs no TPU, but the package libtpu. What it prints are the compiler's estimates, not times: cycles of a step, of a
    step of many seeds, of scoring a batch; memory on each device; seconds to compile.

    Example: python scripts/benchmarks/estimate_tpu.py --arch gap --topology v5e:1x1
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    topology: str = "v5e:1x1"
    """TPU to compile for: v5e:1x1 as on Colab, v5e:2x2, or the name of another topology."""
    seeds: int = 8
    """Number of seeds that one program trains."""
    json: Path | None = None
    """File for all estimates."""


def main(options: Options) -> None:
    """Compiles, prints and writes."""
    mesh, config = make_mesh(options.topology), options.config
    programs = {"epoch": 0, f"epoch of {options.seeds} seeds": options.seeds, "scoring": 0}
    found = {name: {} for name in programs}
    for name, seeds in programs.items():
        for key, layers in LAYERS.items():
            timings.tell(f"compiling {name}, {key}")
            found[name][key] = estimate(lower_program(name.split()[0], config, mesh, seeds, layers))
    record = {
        "config": dataclasses.asdict(config),
        "topology": options.topology,
        "seeds": options.seeds,
        "programs": found,
        "environment": environment(("libtpu",)),
        "version": 1,
    }
    timings.report(timings.tpu_table([record]), record, options.json)


def make_mesh(topology: str) -> Mesh:
    """The devices of a topology such as `v5e:1x1` or `v5e:2x2`, for compiling only; call it before JAX is first used.

    Raises InputError if `libtpu` is not installed or does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError("the TPU's compiler is not installed: pip install libtpu (0.5 GB, Linux)")
    jax.config.update("jax_platforms", "cpu")
    # Without these, libtpu waits for an answer from the network, and only one process may load it.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:  # The kind depends on the version.
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"topology {topology!r} cannot be compiled for ({reason}); try v5e:1x1 or v5e:2x2") from error
    return Mesh(np.array(described.devices), (devices.AXIS,), axis_types=(AxisType.Auto,))


def lower_program(
    program: str, config: Config, mesh: Mesh, seeds: int = 0, layers: Layers = FAST
) -> jax.stages.Lowered:
    """Lowers a program that `fit` runs on a TPU for MNIST, so that it can be compiled.

    Args:
      program: "epoch" of training, or "scoring" of the test images.
      config: the config of the run.
      mesh: devices to compile for; they share the batches, or the seeds.
      seeds: length of the axis of seeds; 0 for none.
      layers: the network's layers.
    """
    lead, split = ((seeds,), 0) if seeds else ((), None)

    def place(tree: Any, axis: int | None = None, lead: tuple[int, ...] = ()) -> Any:
        spec = PartitionSpec(*[None] * (axis or 0), devices.AXIS) if axis is not None else PartitionSpec()
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(lead + leaf.shape, leaf.dtype, sharding=sharding), tree)

    def order(steps: int, batch_size: int) -> Any:
        indices = jax.ShapeDtypeStruct((steps, batch_size), np.int32)
        return place(indices, 0 if seeds else 1, lead)

    train, test = (Split(np.empty((n, *IMAGE_SHAPE), np.uint8), np.zeros(n, np.int32)) for n in FULL_SIZE.values())
    setup = make_setup(config, Dataset(train, test, (MEAN,), (STD,), tuple("0123456789"), "mnist"))
    setup = setup._replace(model=setup.model.clone(layers=layers))
    totals = place(jax.eval_shape(Metrics.zeros), split, lead)
    if program == "scoring":
        batch_size = -(-config.eval_batch_size // mesh.size) * mesh.size
        steps = -(-len(test.labels) // batch_size)
        trained = place(setup.with_variables(abstract_variables(setup.model)))
        batches = (((*IMAGE_SHAPE,), np.uint8), ((), np.int32), ((), np.bool_))
        arrays = [jax.ShapeDtypeStruct((steps, batch_size, *shape), dtype) for shape, dtype in batches]

        def score(trained: Trained, batches: Any, totals: Metrics) -> Metrics:
            def body(i: Any, totals: Metrics) -> Metrics:
                return totals + eval_step(trained, *(array[i] for array in batches))

            return jax.lax.fori_loop(0, steps, body, totals)

        return jax.jit(score).lower(trained, [place(array, 1) for array in arrays], totals)
    bare = setup._replace(mean=None, deviation=None)
    steps = training.steps_per_epoch(len(train.labels), config.batch_size)
    state = place(jax.eval_shape(lambda: init_state(bare, jax.random.key(0))), split, lead)
    key = place(jax.eval_shape(lambda: jax.random.key(0)), split, lead)
    strength, mean = place(jax.ShapeDtypeStruct((), np.float32)), place(jax.ShapeDtypeStruct((1,), np.float32))
    epoch = training.Epoch(place(train), order(steps, config.batch_size), key, strength, mean, mean, None)
    static = ("setup", "step", "vary")
    function = jax.jit(training.loop(bool(seeds), whole=True), static_argnames=static, donate_argnames="state")
    first = place(jax.ShapeDtypeStruct((), np.int32))
    return function.lower(first, state, totals, epoch, bare, train_step, None)


def estimate(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """Compiles a program of `lower_program`; returns the compiler's estimates: cycles of a step, bytes of a device."""
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    return {
        "cycles": _step_cycles(compiled.as_text() or ""),
        "temporary_bytes": memory.temp_size_in_bytes,
        "compile_seconds": seconds,
        "program_sha256": program_sha256(lowered),
    }


def program_sha256(lowered: jax.stages.Lowered) -> str:
    """SHA-256, in hexadecimal, of a program's text: of two that are equal, one compiler makes the same."""
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()


def _step_cycles(text: str) -> int:
    """Cycles of the loop over the steps, the loop body with the most cycles in a compiled text."""
    cycles, name = collections.Counter(), ""
    for line in text.splitlines():
        if begins := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$", line):
            name = begins[1]
        elif found := re.search(r' = .*"estimated_cycles":"(\d+)"', line):
            cycles[name] += int(found[1])
    return max(cycles[body] for body in re.findall(r" while\(.*?body=%?([\w.-]+)", text))


if __name__ == "__main__":
    run(main, Options)
