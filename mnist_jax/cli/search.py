"""Tries settings on held-out training images and keeps every trial in `results/`."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from mnist_jax.cli.program import require_at_least
from mnist_jax.cli.series import Workers, run_trials
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.lab import jobs, records, tables
from mnist_jax.models import ARCHS
from mnist_jax.recipes.config import Config
from mnist_jax.statistics import mean_text


@dataclasses.dataclass(frozen=True)
class Options:
    """Tries every combination of settings, or of networks, on held-out training images.

    Trains on the first 50,000 training images and scores the last 10,000; the test images are never looked at. Each
    finished trial is appended to the log at once; trials in the log are not run again. Prints the combinations, the
    best first.

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
    """Number of seeds per combination, from 1001 on; the final runs use other seeds."""
    log: Path | None = None
    """File to append to. If not given: results/search-ARCH.jsonl, or search-layouts.jsonl for layouts."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache directory for the next start."""


def main(options: Options) -> None:
    """Runs what is missing, then prints the ranking."""
    require_at_least(1, options, "seeds")
    base = dataclasses.replace(options.config, held_out=options.config.held_out or 10_000)
    settings = dict(map(parse, options.vary))
    values = itertools.product(*settings.values())
    configs = [dataclasses.replace(base, **dict(zip(settings, each, strict=True))) for each in values]
    named = base.arch if "arch" not in settings and base.arch in ARCHS else "layouts"
    log = options.log or Path("results") / f"search-{named}.jsonl"
    with records.only_writer(log):
        run_missing(options, log, base, configs, settings)


def run_missing(
    options: Options, log: Path, base: Config, configs: list[Config], settings: dict[str, list[Any]]
) -> None:
    """Runs the trials that the log lacks, appends each, and prints the ranking."""
    records.prepare_trials(log)  # Ahead of the first training, whether it can be written.
    try:
        data = jobs.dataset(base)  # Whether it can be had.
    except InputError as error:
        raise InputError(f"{error}{' by --held-out' if 'cannot hold out' in str(error) else ''}") from error
    known = (trial for trial in records.read_trials(log) if records.is_of(trial, data))
    ran = {records.settings(trial.config): trial for trial in known}
    seeds = range(1001, 1001 + options.seeds)
    wanted = [dataclasses.replace(config, seed=seed) for config, seed in itertools.product(configs, seeds)]
    keys = {config: records.settings(dataclasses.asdict(config)) for config in wanted}
    finished = {config: ran[key] for config, key in keys.items() if key in ran}
    tasks = [jobs.Task(config, (config.seed,)) for config in wanted if config not in finished]

    def name(task: jobs.Task) -> str:
        return f"{label(task.config, settings)}  seed {task.config.seed}"

    def record(task: jobs.Task, result: jobs.Result | DivergedError) -> tuple[str, str]:
        config = task.config
        if isinstance(result, DivergedError):
            finished[config] = records.Trial(
                records.placeless(config), diverged=str(result), dataset=data.name, sha256=data.sha256
            )
            records.append_trials(log, finished[config])
            return f"{name(task)}: {result}", f"{label(config, settings)}: diverged"
        ((finished[config], _),) = result
        records.append_trials(log, finished[config])
        (accuracy,) = tables.last_epoch([finished[config]])
        alike = [finished.get(dataclasses.replace(config, seed=seed)) for seed in seeds]
        mean = mean_text(tables.last_epoch([trial for trial in alike if trial and trial.history]))
        return (
            f"{name(task)}: {accuracy:.2%}  {finished[config].seconds:.0f} s",
            f"{label(config, settings)}: {mean}",
        )

    run_trials(tasks, options.workers, name, record)

    columns = ("setting", "accuracy", "loss", "training accuracy", "seeds", "seconds", "parameters")
    table = Table(*columns, "million multiply-adds", box=box.SIMPLE_HEAD)
    rows = []
    for config in configs:
        done = [finished[dataclasses.replace(config, seed=seed)] for seed in seeds]
        if not any(trial.diverged for trial in done):
            figures = [
                (trial.history[-1].test_accuracy, trial.history[-1].test_loss, trial.train_accuracy, trial.seconds)
                for trial in done
            ]
            rows.append((*map(statistics.fmean, zip(*figures, strict=True)), done[0], label(config, settings)))
    for accuracy, loss, train, seconds, trial, setting in sorted(rows, key=lambda row: (-row[0], row[1])):
        figures = (f"{accuracy:.3%}", f"{loss:.5f}", f"{train:.3%}", str(options.seeds), f"{seconds:.0f}")
        table.add_row(setting, *figures, f"{trial.parameters:,}", f"{(trial.multiply_adds or 0) / 1e6:.2f}")
    Console(highlight=False, soft_wrap=True).print(table)


def parse(text: str) -> tuple[str, list[Any]]:
    """`learning_rate=0.01,0.02` as a name and its values, each of the setting's type."""
    name, _, values = text.partition("=")
    fields = dataclasses.fields(Config)
    types: dict[str, Any] = {field.name: field.type if field.type in (bool, int, float) else str for field in fields}
    name = name.replace("-", "_")
    if name not in types or name == "seed":
        raise InputError(f"unknown setting {name!r} in --vary {text!r}; choose from {', '.join(types)}")
    try:
        kind: Any = {bool: {"True": True, "False": False}.__getitem__}.get(types[name], types[name])
        return name, [kind(value) for value in values.split(",")]
    except (ValueError, KeyError):
        raise InputError(
            f"cannot use --vary {text!r}; write {name}=VALUE,VALUE with {types[name].__name__} values"
        ) from None


def label(config: Config, settings: Iterable[str]) -> str:
    """What sets a config apart, in words."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in settings) or f"{config.arch}, {config.recipe}"
