"""Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine."""

import dataclasses
import importlib.util
from pathlib import Path

from mnist_jax.cli.program import report, require_at_least, require_folder, telling
from mnist_jax.errors import InputError
from mnist_jax.lab import benchmark, records, tables
from mnist_jax.recipes.config import make_config
from mnist_jax.runtime import cores


@dataclasses.dataclass(frozen=True)
class Options:
    """Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine.

    Batches of real images, SGD with momentum, dropout and batch norm on, float32. Each contender is a process of its
    own; ratios are taken round by round. Run it with nothing else running.

    Exit status: 0 done, 2 bad input, 4 cannot write, 5 another process writes the file of --json.

    Example: mnist-jax benchmark --arch gap --json results/benchmark-gap.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    batch_size: int = 128
    """Images per training step."""
    contenders: tuple[str, ...] = ()
    """Any of ours, "ours augmented", flax, torch, "torch channels-last". If not given: all that can run here."""
    rounds: int = 15
    """Number of turns of each contender."""
    steps: int = 20
    """Training steps in a turn."""
    threads: int = len(cores())
    """Cores each contender may use."""
    json: Path | None = None
    """File for all measurements."""


def main(options: Options) -> None:
    """Measures, prints the table and writes the file."""
    config = make_config("reference", arch=options.arch, batch_size=options.batch_size)
    require_at_least(1, options, "rounds", "steps", "threads")
    require_folder(options.json, "--json")
    have_torch = importlib.util.find_spec("torch") is not None
    possible = [name for name in benchmark.CONTENDERS if have_torch or not name.startswith("torch")]
    for name in options.contenders:
        if name not in possible:
            raise InputError(f"contender {name!r} cannot run here; choose from {', '.join(possible)}")
    names = [name for name in possible if not options.contenders or name in options.contenders or name == "ours"]

    with records.only_writer(options.json), telling() as tell:
        result = benchmark.run(config, names, options.rounds, options.steps, options.threads, tell)
    report(tables.speed_table([result]), result, options.json)
