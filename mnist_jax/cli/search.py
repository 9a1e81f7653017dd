"""Tries settings on held-out training images and keeps every trial in `results/search/`."""

import ast
import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mnist_jax.cli.options import SearchOptions
from mnist_jax.cli.series import default_file, run_trials
from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError, require_whole
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
    require_whole(options.seeds, "seeds", 1)
    base = dataclasses.replace(options.config, held_out=options.config.held_out or 10_000)
    settings: dict[str, list[Any]] = {}
    for text in itertools.chain(*options.vary):
        name, values = parse(text)
        settings[name] = [*settings.get(name, ()), *values]
    configs = {}
    for values in itertools.product(*settings.values()):
        config = dataclasses.replace(base, **dict(zip(settings, values, strict=True)))
        configs[label(config, settings)] = config
    named = base.arch if "arch" not in settings and base.arch in ARCHS else "layouts"
    log = options.log or default_file("search", f"{named}.jsonl", f"search-{named}.jsonl")
    with records.only_writer(log):
        records.prepare_trials(log)  # Ahead of the first training, whether it can be written.
        data = dataset(base)  # Whether it can be had.
        trials = run_missing(options, log, configs, data)
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

    def record(task: Task, result: Result | DivergedError) -> tuple[str, str]:
        name = names[_settings(task.config)]
        if isinstance(result, DivergedError):
            settings = records.placeless(task.config)
            trial = Trial(settings, diverged=str(result), dataset=data.name, sha256=data.sha256)
            outcome, note = str(result), "diverged"
        else:
            ((trial, _),) = result
            outcome = f"{trial.history[-1].test_accuracy:.2%}  {trial.seconds:.0f} s"
            note = mean_text(last_epoch(one for one in (*trials[name], trial) if one.history))
        trials[name].append(trial)
        records.append_trials(log, trial)
        return f"{name}  seed {task.config.seed}: {outcome}", f"{name}: {note}"

    run_trials(tasks, options.workers, log, record)
    return trials


def _settings(config: Config) -> frozenset[tuple[str, Any]]:
    return records.settings(dataclasses.asdict(config), seed=0)


def parse(text: str) -> tuple[str, list[Any]]:
    """`learning_rate=0.01,0.02` as a name and its values, each of the setting's type."""
    name, _, values = text.partition("=")
    name = name.replace("-", "_")
    kinds = {field.name: field.type for field in dataclasses.fields(Config) if field.name != "seed"}
    if name not in kinds:
        raise InputError(f"unknown setting {name!r} in --vary {text!r}; choose from {', '.join(kinds)}")
    return name, [_value(value, kinds[name]) for value in values.split(",")]


def _value(text: str, kind: Any) -> Any:
    """A number or truth value; text that is none stays, and `Config` refuses it."""
    try:
        return ast.literal_eval(text) if kind in (bool, int, float) else text
    except (ValueError, SyntaxError):
        return text


def label(config: Config, settings: Iterable[str]) -> str:
    """What sets a config apart, in words."""
    return ", ".join(f"{name} {getattr(config, name)}" for name in settings) or f"{config.arch}, {config.recipe}"
