"""Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers."""

import dataclasses
from pathlib import Path
from typing import Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mnist_jax.cli.program import require_at_least, require_folder, write_json
from mnist_jax.lab import tpu
from mnist_jax.recipes.config import Config
from mnist_jax.runtime import environment


@dataclasses.dataclass(frozen=True)
class Options:
    """Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers.

    Needs no TPU, but the package libtpu. What it prints are the compiler's estimates, not times: cycles of a step, of a
    step of many seeds, of scoring a batch; memory on each device; seconds to compile; and the dearest operations.

    Exit status: 0 done, 2 bad input, 4 cannot write.

    Example: mnist-jax estimate-tpu --arch gap --topology v5e:1x1
    """

    config: tyro.conf.OmitArgPrefixes[Config]
    topology: str = "v5e:1x1"
    """What to compile for: v5e:1x1 as on Colab, v5e:2x2, or others by their name."""
    seeds: int = 8
    """How many seeds to train in one program."""
    operations: int = 10
    """How many of the dearest operations of our step to show."""
    json: Path | None = None
    """File to write every estimate to."""


def main(options: Options) -> None:
    """Compiles, prints and writes."""
    require_at_least(1, options, "seeds")
    require_at_least(0, options, "operations")
    require_folder(options.json, "--json")
    mesh, config = tpu.make_mesh(options.topology), options.config
    programs = {
        "epoch": ("epoch", 0),
        f"epoch of {options.seeds} seeds": ("epoch", options.seeds),
        "scoring": ("scoring", 0),
    }
    console = Console(highlight=False, width=100)
    result: dict[str, dict[str, Any]] = {}
    with console.status("compiling") as status:
        for name, (program, seeds) in programs.items():
            result[name] = {}
            for layers in tpu.LAYERS:
                status.update(f"compiling {name}, {layers}")
                result[name][layers] = tpu.estimate(program, config, mesh, seeds, tpu.LAYERS[layers])

    title = f"{config.arch}, {config.recipe}, batch {config.batch_size}, {options.topology}: the compiler's estimates"
    table = Table("a step of", "layers", "cycles", "times flax", "arguments", "temporaries", "compiled in", title=title)
    table.box = box.SIMPLE_HEAD
    for column in table.columns[2:]:
        column.justify = "right"
    for name, estimates in result.items():
        for layers, found in estimates.items():
            times = f"{found.cycles / estimates['flax'].cycles:.2f}"
            memory = (f"{size / 1e6:.0f} MB" for size in (found.argument_bytes, found.temporary_bytes))
            table.add_row(name, layers, f"{found.cycles:,}", times, *memory, f"{found.compile_seconds:.0f} s")
    console.print(table)
    dearest = Table("cycles", "operation", "gives", box=box.SIMPLE_HEAD, title="the dearest of our step")
    for operation in result["epoch"]["ours"].operations[: options.operations]:
        dearest.add_row(f"{operation.cycles:,}", operation.place[-60:], operation.result)
    console.print(dearest)
    programs = {
        name: {
            layers: found._asdict() | {"operations": [operation._asdict() for operation in found.operations[:20]]}
            for layers, found in estimates.items()
        }
        for name, estimates in result.items()
    }
    record = {"config": dataclasses.asdict(config), "topology": options.topology, "seeds": options.seeds}
    write_json(options.json, record | {"programs": programs, "environment": environment(("libtpu",))})
