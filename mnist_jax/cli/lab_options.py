"""The flags of the commands that search, reproduce and measure; all commands by name."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import tyro

from mnist_jax.cli.options import CompareOptions, EvaluateOptions, ExportOptions, PredictOptions, TrainOptions
from mnist_jax.recipes.config import Config


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who trains: flags of the commands that train many times."""

    jobs: int | None = None
    """Number of trainings at the same time. If not given: one per CPU core, fewer if memory is short; one on a GPU or
    TPU."""
    scheduler: str | None = None
    """HOST:PORT of a Dask scheduler; its workers train, one network each. Needs the extra cluster."""


@dataclasses.dataclass(frozen=True)
class SearchOptions:
    """Tries every combination of settings, or of networks, on held-out training images.

    Trains on the first 50,000 training images and scores the last 10,000; the test images are never looked at. Each
    finished trial is appended to the log at once; trials in the log are not run again. Prints the combinations, the
    best first, each with its difference from the best and what cannot be told from it.

    With --until 0.05% it then trains the best and its closest rival with more seeds, until no other combination is
    better by 0.05 percentage points or more, at 95% confidence, or --trainings are spent.

    Exit status: 0 done, 2 bad input, 4 cannot write, 5 a worker or the scheduler lost, or another process
    writes the log, 130 interrupted, 143 terminated.

    Networks may be written as layouts: --vary arch=16-pool-s24p-pool-32,16-s24-pool-32 tries two.

    Example: mnist-jax search --arch gap --vary learning_rate=0.01,0.02 weight_decay=0,0.01 --seeds 2
    """

    UNUSED: ClassVar = ("run_dir", "seed")

    config: tyro.conf.OmitArgPrefixes[Config]
    workers: tyro.conf.OmitArgPrefixes[Workers] = dataclasses.field(default_factory=Workers)
    vary: tuple[str, ...] = ()
    """Settings with the values to try, as learning_rate=0.01,0.02. Every combination is tried."""
    seeds: int = 1
    """Number of seeds per combination, from 1001 on; the final runs use other seeds. With --until: the first ones."""
    until: str | None = None
    """Difference to resolve between the best combination and the others, as 0.05%."""
    trainings: int | None = None
    """Number of trainings to end --until with, those in the log included. If not given: 20 times the first ones."""
    log: Path | None = None
    """File to append to. If not given: results/search-ARCH.jsonl, or search-layouts.jsonl for layouts."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """Trains a recipe over many seeds, keeps every seed's history, and summarizes them.

    Each finished seed is appended to the results file at once, and seeds in the file are not trained again: the same
    command continues an interrupted series, also on other cores or machines.

    Exit status: 0 done, 2 bad input, 3 training diverged, 4 cannot write, 5 a worker or the scheduler
    lost, or another process writes the file, 130 interrupted, 143 terminated.

    Example: mnist-jax reproduce --recipe reference --arch gap --seeds 5
    """

    UNUSED: ClassVar = ("run_dir",)

    config: tyro.conf.OmitArgPrefixes[Config]
    workers: tyro.conf.OmitArgPrefixes[Workers] = dataclasses.field(default_factory=Workers)
    seeds: int = 5
    """Number of seeds, from --seed on."""
    out: Path | None = None
    """File to append to. If not given: results/RECIPE-ARCH.jsonl, or DATA-RECIPE-ARCH.jsonl for other data."""
    together: int | None = None
    """Number of seeds that one program trains. If not given: one on a CPU, all on a GPU or TPU."""
    weights_dir: Path | None = None
    """Directory for each seed's final weights, RECIPE-ARCH-SEED.safetensors."""
    table: bool = False
    """Train nothing; write the tables of README.md and docs/, and the figures in results/, of the current directory."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """Times a training step and scoring against plain Flax and PyTorch, in turns on the same machine.

    Batches of real images, SGD with momentum, dropout and batch norm on, float32. Each contender is a process of its
    own; ratios are taken round by round. Run it with nothing else running. PyTorch computes where JAX does.

    Exit status: 0 done, 2 bad input, 4 cannot write, 5 another process writes the file of --json.

    Example: mnist-jax benchmark --arch gap --json results/benchmark-gap.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    batch_size: int = 128
    """Images per training step."""
    contenders: tuple[str, ...] = ()
    """Any of ours, "ours augmented", "ours, 30 seeds", flax, torch, "torch channels-last". If not given: all that can
    run here; those of 30 seeds on a GPU or TPU only."""
    device: str | None = None
    """Where to compute: cpu, gpu or tpu. If not given: where JAX does."""
    rounds: int = 15
    """Number of turns of each contender."""
    steps: int | None = None
    """Training steps in a turn. If not given: 20 on a CPU, an epoch's on a GPU or TPU."""
    threads: int | None = None
    """Number of cores that each contender may use. If not given: all of this process."""
    json: Path | None = None
    """File for all measurements."""


@dataclasses.dataclass(frozen=True)
class TimeToTargetOptions:
    """Times the `fast` recipe, from the start of the process to its report, against the notebook's recipe in PyTorch.

    Ours is the whole of `train --recipe fast`, with the compilation cache empty (cold) and filled (warm).
    The notebook's 15 epochs are scaled from one: a training epoch through its data loader and a pass over the test
    images; the start of its process is not counted. They take turns; run it with nothing else running. A network that
    is not in the notebooks is timed against the last of theirs, bn_dropout. Needs PyTorch.

    Exit status: 0 done, 2 bad input, 4 cannot write, 5 another process writes the file of --json.

    Example: mnist-jax time-to-target --arch swift --json results/time-to-target-swift.json
    """

    arch: str = "bn_dropout"
    """Network, by name or by its layout."""
    rounds: int = 3
    """Number of turns of each side."""
    json: Path | None = None
    """File for all measurements."""


@dataclasses.dataclass(frozen=True)
class EstimateTpuOptions:
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


OPTIONS: dict[str, type] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictOptions,
    "export": ExportOptions,
    "compare": CompareOptions,
    "search": SearchOptions,
    "reproduce": ReproduceOptions,
    "benchmark": BenchmarkOptions,
    "time-to-target": TimeToTargetOptions,
    "estimate-tpu": EstimateTpuOptions,
}
