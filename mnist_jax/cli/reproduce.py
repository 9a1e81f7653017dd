"""Trains a recipe over many seeds and keeps every seed's history in `results/series/`."""

import dataclasses
from pathlib import Path

import jax

from mnist_jax.cli.options import ReproduceOptions
from mnist_jax.cli.program import counted
from mnist_jax.cli.series import default_file, run_trials
from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError, require_whole
from mnist_jax.objective import TARGET_ACCURACY
from mnist_jax.recipes.values import make_setup
from mnist_jax.runs import weights
from mnist_jax.series import records
from mnist_jax.series.records import best_epoch, last_epoch
from mnist_jax.series.workers import Result, Task, dataset
from mnist_jax.statistics import mean_text, seed_statistics


def main(options: ReproduceOptions) -> None:
    """Trains what is missing, then prints the statistics."""
    require_whole(options.seeds, "seeds", 1)
    require_whole(1 if options.together is None else options.together, "together", 1)
    config, data = options.config, dataset(options.config)  # Ahead of the first training, whether it can be had.
    name = f"{config.recipe}-{config.arch}.jsonl"
    if data.name != "mnist":
        name = f"{data.name}-{name}"
    out = options.out or default_file("series", name, name)
    with records.only_writer(out):
        train_missing(options, out, data)


def train_missing(options: ReproduceOptions, out: Path, data: Dataset) -> None:
    """Trains the seeds that the file lacks, appends each, and prints the statistics."""
    config, finished = options.config, {}
    for trial in records.read_trials(out):
        if not records.is_of(trial, data):
            raise InputError(f"results {str(out)!r} are of other data of that name; name another file with --out")
        if records.settings(trial.config, seed=config.seed) != records.settings(dataclasses.asdict(config)):
            raise InputError(f"results {str(out)!r} are of another config; name another file with --out")
        finished[trial.config["seed"]] = trial

    if options.weights_dir:
        options.weights_dir.mkdir(parents=True, exist_ok=True)
    records.prepare_trials(out)  # Ahead of the first training, whether it can be written.
    seeds = range(config.seed, config.seed + options.seeds)
    missing = [seed for seed in seeds if seed not in finished]
    one = options.workers.scheduler or jax.default_backend() == "cpu"
    together = options.together or (1 if one else max(len(missing), 1))
    tasks = [Task(config, tuple(missing[i : i + together])) for i in range(0, len(missing), together)]
    diverged = []

    def record(task: Task, result: Result | DivergedError) -> tuple[str, str]:
        if isinstance(result, DivergedError):
            diverged.append(f"seed {', '.join(map(str, task.seeds))}: {result}")
            return diverged[-1], ""
        lines = []
        for seed, (trial, variables) in zip(task.seeds, result, strict=True):
            if options.weights_dir:
                network = config.arch.replace("=", "r")
                path = options.weights_dir / f"{config.recipe}-{network}-{seed}.safetensors"
                weights.save_weights(path, make_setup(config, data).with_variables(variables))
            records.append_trials(out, trial)
            finished[seed] = trial
            lines.append(f"seed {seed}  test accuracy {trial.history[-1].test_accuracy:.2%}  {trial.seconds:.0f} s")
        return "\n".join(lines), mean_text(last_epoch([finished[i] for i in seeds if i in finished]))

    run_trials(tasks, options.workers, out, record)
    if diverged:
        raise DivergedError("; ".join(diverged))
    chosen = [finished[seed] for seed in seeds]
    result = seed_statistics(last_epoch(chosen))
    spread = "" if result.std is None else f" +- {result.std:.2%} (standard error {result.stderr:.3%})"
    print(
        f"{config.arch}, {config.recipe}, last of {config.epochs} epochs, {counted(result.n, 'seed')}: "
        f"mean {result.mean:.3%}{spread}, min {result.min:.2%}, max {result.max:.2%}, "
        f"{result.share:.0%} at or above {TARGET_ACCURACY:.2%}; "
        f"best epoch, for comparison: mean {seed_statistics(best_epoch(chosen)).mean:.3%}"
    )
