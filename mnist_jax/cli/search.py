"""Tries settings on held-out training images and keeps every trial in `results/search/`."""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mnist_jax.cli.options import SearchOptions
from mnist_jax.cli.program import require_at_least
from mnist_jax.cli.series import default_file, run_trials
from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.models import ARCHS
from mnist_jax.recipes.config import Config
from mnist_jax.series import records
from mnist_jax.series.ranking import ranking
from mnist_jax.series.records import Trial, last_epoch
from mnist_jax.series.workers import Result, Task, dataset
from mnist_jax.statistics import mean_text

SEED = 1001  # The first.


def main(options: SearchOptions) -> None:
    """Runs what is missing, then prints the ranking."""
    require_at_least(1, options, "seeds")
    base = dataclasses.replace(options.config, held_out=options.config.held_out or 10_000)
    settings = dict(map(parse, options.vary))
    values = itertools.product(*settings.values())
    configs = [dataclasses.replace(base, **dict(zip(settings, each, strict=True))) for each in values]
    named = base.arch if "arch" not in settings and base.arch in ARCHS else "layouts"
    log = options.log or default_file("search", f"{named}.jsonl", f"search-{named}.jsonl")
    with records.only_writer(log):
        records.prepare_trials(log)  # Ahead of the first training, whether it can be written.
        try:
            data = dataset(base)  # Whether it can be had.
        except InputError as error:
            raise InputError(f"{error}{' by --held-out' if 'cannot hold out' in str(error) else ''}") from error
        trials = run_missing(options, log, {label(config, settings): config for config in configs}, data)
    print(*ranking(trials), sep="\n")


def run_missing(
    options: SearchOptions, log: Path, configs: Mapping[str, Config], data: Dataset
) -> dict[str, list[Trial]]:
    """Trains the seeds that the log lacks, and appends each; returns the trials of every combination, by name."""
    names = {_settings(config): name for name, config in configs.items()}
    trials: dict[str, list[Trial]] = {name: [] for name in configs}
    for trial in records.read_trials(log):
        name = names.get(records.settings(trial.config, seed=0))
        if name and trial.config.get("seed", 0) >= SEED and records.is_of(trial, data):
            trials[name].append(trial)
    tasks = []
    for (name, config), seed in itertools.product(configs.items(), range(SEED, SEED + options.seeds)):
        if seed not in [trial.config["seed"] for trial in trials[name]]:
            tasks.append(Task(dataclasses.replace(config, seed=seed), (seed,)))

    def title(task: Task) -> str:
        return f"{names[_settings(task.config)]}  seed {task.config.seed}"

    def record(task: Task, result: Result | DivergedError) -> tuple[str, str]:
        name = names[_settings(task.config)]
        if isinstance(result, DivergedError):
            settings = records.placeless(task.config)
            trial = Trial(settings, diverged=str(result), dataset=data.name, sha256=data.sha256)
            outcome, note = str(result), "diverged"
        else:
            ((trial, _),) = result
            outcome = f"{trial.history[-1].test_accuracy:.2%}  {trial.seconds:.0f} s"
            note = mean_text(last_epoch(each for each in (*trials[name], trial) if each.history))
        trials[name].append(trial)
        records.append_trials(log, trial)
        return f"{title(task)}: {outcome}", f"{name}: {note}"

    run_trials(tasks, options.workers, log, title, record)
    return trials


def _settings(config: Config) -> frozenset[tuple[str, Any]]:
    return records.settings(dataclasses.asdict(config), seed=0)


def parse(text: str) -> tuple[str, list[Any]]:
    """`learning_rate=0.01,0.02` as a name and its values, each of the setting's type."""
    name, _, values = text.partition("=")
    fields = dataclasses.fields(Config)
    types: dict[str, Any] = dict.fromkeys((field.name for field in fields), str)
    types |= {field.name: field.type for field in fields if field.type in (bool, int, float)}
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
