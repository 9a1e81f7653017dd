"""Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine."""

import dataclasses
import importlib.util
import os
import statistics
from pathlib import Path
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.table import Table

from mnist_jax.cli.program import require_at_least, require_folder, write_json
from mnist_jax.data import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.lab import benchmark
from mnist_jax.models import Stack
from mnist_jax.recipes.config import make_config
from mnist_jax.recipes.values import network_of
from mnist_jax.runtime import cores, environment
from mnist_jax.statistics import ratios, seed_statistics, spread
from mnist_jax.summary import layers_of


@dataclasses.dataclass(frozen=True)
class Options:
    """Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine.

    Batches of real images, SGD with momentum, dropout and batch norm on, float32. Each contender is a process of its
    own; ratios are taken round by round. Run it with nothing else running.

    With --device gpu, on a GPU or TPU: seconds of an epoch, with Flax's layers too; of whole runs; of seeds together.

    Exit status: 0 done, 2 bad input, 4 cannot write.

    Example: mnist-jax benchmark --arch gap --json results/benchmark-gap.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    device: str = "cpu"
    """What to measure on: cpu, or gpu for whatever accelerator JAX has."""
    seeds: int = 30
    """With --device gpu, how many seeds to train together."""
    batch_size: int = 128
    """Images per training step."""
    contenders: tuple[str, ...] = ()
    """Which to compare: ours, "ours augmented", flax, torch, "torch channels-last"; if none, all that can run."""
    rounds: int = 15
    """How often each contender has its turn."""
    steps: int = 20
    """Training steps in a turn."""
    threads: int = len(cores())
    """Cores each contender may use."""
    json: Path | None = None
    """File to write every measurement to."""


def main(options: Options) -> None:
    """Measures, prints the table and writes the file."""
    config = make_config("reference", arch=options.arch, batch_size=options.batch_size)
    if options.device not in ("cpu", "gpu"):
        raise InputError(f"unknown device {options.device!r}; choose from cpu, gpu")
    require_at_least(1, options, "rounds", "steps", "threads", "seeds")
    require_folder(options.json, "--json")
    if options.device == "gpu":
        on_accelerator(options)
        return
    have_torch = importlib.util.find_spec("torch") is not None
    possible = [name for name in benchmark.CONTENDERS if have_torch or not name.startswith("torch")]
    for name in options.contenders:
        if name not in possible:
            raise InputError(f"contender {name!r} cannot run here; choose from {', '.join(possible)}")
    names = [name for name in possible if not options.contenders or name in options.contenders or name == "ours"]

    console = Console(highlight=False, width=104)
    with console.status("starting") as status:
        result = benchmark.run(
            config,
            names,
            options.rounds,
            options.steps,
            options.threads,
            on_round=lambda i: status.update(f"round {i} of {options.rounds}"),
        )
    model = network_of(config)
    multiply_adds = [layer.multiply_adds for layer in layers_of(model) if layer.multiply_adds]
    first = int(isinstance(model, Stack) and model.blocks[0].fixed)  # The first that is trained.
    # Forward; the gradients in the kernels; those in the inputs, which the first that is trained does without.
    products = sum(multiply_adds) + sum(multiply_adds[first:]) + sum(multiply_adds[first + 1 :])
    flops = 2 * products * config.batch_size
    result |= {"arch": config.arch, "batch_size": config.batch_size, "steps": options.steps}
    result |= {"threads": options.threads, "step_flops": flops}
    console.print(table(result))
    low, matmul, high = spread(result["matmul_flops"])
    achieved = [
        flops / seconds / rate
        for seconds, rate in zip(result["contenders"]["ours"]["step_seconds"], result["matmul_flops"], strict=True)
    ]
    console.print(
        f"float32 matmul {matmul / 1e9:.0f} GFLOP/s ({low / 1e9:.0f} to {high / 1e9:.0f}); ours runs at "
        f"{spread(achieved)[1]:.0%} of that, counting {flops / 1e9:.2f} GFLOP a step, "
        "two for each multiply-add of the convolutions and of the gradients that are taken"
    )
    console.print(f"{options.threads} of {os.cpu_count()} cores, {options.rounds} rounds of {options.steps} steps")
    save(options, result)


def on_accelerator(options: Options) -> None:
    """What there is to say about a GPU or TPU."""
    if jax.default_backend() == "cpu":
        raise InputError("JAX finds no GPU or TPU here; install the extra cuda or tpu, or leave --device cpu")
    data = load_dataset("mnist")
    result = benchmark.accelerator(options.arch, data, options.seeds)
    console = Console(highlight=False, soft_wrap=True)
    for batch_size, seconds in result["epoch_seconds"].items():
        ours, flax = (statistics.median(seconds[name]) for name in ("ours", "flax"))
        times = statistics.median(b / a for a, b in zip(seconds["ours"], seconds["flax"], strict=True))
        steps = len(data.train.labels) // batch_size
        console.print(
            f"an epoch at batch {batch_size}: {ours:.3f} s, a step {1e3 * ours / steps:.3f} ms; "
            f"with Flax's layers {flax:.3f} s, {times:.2f} times ours"
        )
    for recipe, run in result["runs"].items():
        times = f"{run['again']:.2f} s, {run['first']:.2f} s with compilation"
        console.print(f"{recipe}: {times}, accuracy {run['test_accuracy']:.2%}")
    together, alone = result["seeds"], result["runs"]["default"]["again"]
    times = f"{together['again']:.2f} s, {together['first']:.2f} s with compilation"
    console.print(
        f"{together['count']} seeds of default together: {times}, {together['again'] / alone:.1f} times one; "
        f"mean accuracy {seed_statistics(together['test_accuracies']).mean:.3%}"
    )
    if result["torch_step_seconds"]:
        console.print(f"a step of PyTorch: {1e3 * result['torch_step_seconds']:.2f} ms")
    save(options, result)


def save(options: Options, record: dict[str, Any]) -> None:
    """Writes what was measured, and where, to the file asked for, if any."""
    write_json(options.json, record | {"environment": environment() | {"load_average": os.getloadavg()}})


def table(result: dict[str, Any]) -> Table:
    """A row per contender; times are medians over the rounds, and ratios medians of the rounds' ratios."""
    columns = ("step", "range", "images/s", "x ours", "score", "x ours", "start", "compile", "peak")
    made = Table(
        "contender", *columns, width=104, title=f"{result['arch']}, batch {result['batch_size']}", box=box.SIMPLE_HEAD
    )
    for column in made.columns:
        column.justify, column.no_wrap = "right", True
    made.columns[0].justify = "left"
    for name, record in result["contenders"].items():
        low, step, high = (1e3 * value for value in spread(record["step_seconds"]))
        made.add_row(
            name,
            f"{step:.1f}",
            f"{low:.0f}-{high:.0f}",
            f"{1e3 * result['batch_size'] / step:,.0f}",
            f"{spread(ratios(result, 'step_seconds', name))[1]:.2f}",
            f"{spread(record['score_seconds'])[1]:.2f}",
            f"{spread(ratios(result, 'score_seconds', name))[1]:.2f}",
            f"{record['start']['first_step']:.1f}",
            f"{record['start']['compile']:.1f}",
            f"{record['peak_bytes'] / 1e6:.0f}",
        )
    made.caption = (
        "step: milliseconds; score: seconds for 10,000 images; start: seconds from the start of the process\n"
        "to the end of its first step; compile: seconds of that first step; peak: megabytes"
    )
    return made
