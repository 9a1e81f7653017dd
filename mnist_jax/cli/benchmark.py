"""Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine."""

import importlib.util

from mnist_jax.cli.lab_options import BenchmarkOptions
from mnist_jax.cli.program import report, require_at_least, require_folder, telling
from mnist_jax.errors import InputError
from mnist_jax.lab import benchmark, records, timings
from mnist_jax.recipes.config import make_config
from mnist_jax.runtime import backend, cores


def main(options: BenchmarkOptions) -> None:
    """Measures, prints the table and writes the file."""
    config = make_config("reference", arch=options.arch, batch_size=options.batch_size)
    require_at_least(1, options, "rounds", "steps", "threads")
    require_folder(options.json, "--json")
    threads = options.threads or len(cores())
    have_torch = importlib.util.find_spec("torch") is not None
    possible = [name for name in benchmark.CONTENDERS if have_torch or not name.startswith("torch")]
    for name in options.contenders:
        if name not in possible:
            raise InputError(f"contender {name!r} cannot run here; choose from {', '.join(possible)}")
    with records.only_writer(options.json), benchmark.sharing(options.device), telling() as tell:
        on_cpu = backend() == "cpu"
        chosen = options.contenders or [name for name in possible if not (on_cpu and name == "ours, 30 seeds")]
        names = [name for name in possible if name in chosen or name == "ours"]
        steps = options.steps or (20 if on_cpu else 60_000 // options.batch_size)
        result = benchmark.run(config, names, options.rounds, steps, threads, tell)
    report(timings.speed_table([result]), result, options.json)
