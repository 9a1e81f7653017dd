"""Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import tyro

from mnist_jax.cli.program import report, require_at_least, require_folder, telling
from mnist_jax.lab import tables, tpu
from mnist_jax.lab.records import TpuEstimates, only_writer
from mnist_jax.recipes.config import Config
from mnist_jax.runtime import environment


@dataclasses.dataclass(frozen=True)
class Options:
    """Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers.

    Needs no TPU, but the package libtpu. What it prints are the compiler's estimates, not times: cycles of a step, of a
    step of many seeds, of scoring a batch; memory on each device; seconds to compile.

    Exit status: 0 done, 2 bad input, 4 cannot write, 5 another process writes the file of --json.

    Example: mnist-jax estimate-tpu --arch gap --topology v5e:1x1
    """

    UNUSED: ClassVar = (
        *("dataset", "data_source", "data_dir", "held_out", "run_dir"),
        *("epochs", "plain_epochs", "kernel_init", "seed"),
    )

    config: tyro.conf.OmitArgPrefixes[Config]
    topology: str = "v5e:1x1"
    """TPU to compile for: v5e:1x1 as on Colab, v5e:2x2, or the name of another topology."""
    seeds: int = 8
    """Number of seeds that one program trains."""
    json: Path | None = None
    """File for all estimates."""


def main(options: Options) -> None:
    """Compiles, prints and writes."""
    require_at_least(1, options, "seeds")
    require_folder(options.json, "--json")
    mesh, config = tpu.make_mesh(options.topology), options.config
    programs = {"epoch": 0, f"epoch of {options.seeds} seeds": options.seeds, "scoring": 0}
    found = {}
    with only_writer(options.json), telling() as tell:
        for name, seeds in programs.items():
            found[name] = {}
            for key, layers in tpu.LAYERS.items():
                tell(f"compiling {name}, {key}")
                found[name][key] = tpu.estimate(name.split()[0], config, mesh, seeds, layers)
    settings = dataclasses.asdict(config)
    result = TpuEstimates(settings, options.topology, options.seeds, found, environment(("libtpu",)))
    report(tables.tpu_table([result]), result, options.json)
