"""Asks the TPU's compiler how many cycles a training step and scoring take, against Flax's own layers."""

import dataclasses

from mnist_jax.cli.lab_options import EstimateTpuOptions
from mnist_jax.cli.program import report, require_at_least, require_folder, telling
from mnist_jax.lab import timings, tpu
from mnist_jax.lab.records import TpuEstimates, only_writer
from mnist_jax.runtime import environment


def main(options: EstimateTpuOptions) -> None:
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
                found[name][key] = tpu.estimate(tpu.lower_program(name.split()[0], config, mesh, seeds, layers))
    settings = dataclasses.asdict(config)
    result = TpuEstimates(settings, options.topology, options.seeds, found, environment(("libtpu",)))
    report(timings.tpu_table([result]), result, options.json)
