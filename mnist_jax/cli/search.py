"""Tries settings on held-out training images and keeps every trial in `results/`."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mnist_jax.cli.lab_options import SearchOptions, Workers
from mnist_jax.cli.program import require_at_least
from mnist_jax.cli.series import run_trials
from mnist_jax.data import Dataset
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.lab import jobs, racing, records, tables
from mnist_jax.models import ARCHS
from mnist_jax.recipes.config import Config
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
    log = options.log or Path("results") / f"search-{named}.jsonl"
    first, difference = len(configs) * options.seeds, parse_difference(options.until)
    if options.trainings is not None and not difference:
        raise InputError(f"trainings {options.trainings} end what --until begins, which is missing; give both")
    if options.trainings is not None and options.trainings < first:
        raise InputError(f"trainings {options.trainings} are fewer than the first seeds, {first}; choose more")
    with records.only_writer(log):
        records.prepare_trials(log)  # Ahead of the first training, whether it can be written.
        try:
            data = jobs.dataset(base)  # Whether it can be had.
        except InputError as error:
            raise InputError(f"{error}{' by --held-out' if 'cannot hold out' in str(error) else ''}") from error
        by_name = {label(config, settings): config for config in configs}
        search = Search(log, by_name, data, {name: {} for name in by_name})
        search.read()
        search.run(options.workers, options.seeds, difference, options.trainings or 20 * first)
    lines = [*racing.ranking({name: [*filter(None, trials.values())] for name, trials in search.trials.items()})]
    print(*lines, sep="\n")
    if difference and len(lines) > 1:  # Not all have diverged.
        said = f"resolved to {options.until} at {1 - racing.ERROR:.0%} confidence after {search.count} trainings"
        print("the best is", f"not {said}; a larger --trainings goes on" if search.next_name(difference) else said)


@dataclasses.dataclass(frozen=True)
class Search:
    """The combinations of a search by name, and the trials of each by seed, None for one in training."""

    log: Path
    configs: dict[str, Config]
    data: Dataset
    trials: dict[str, dict[int, records.Trial | None]]

    @functools.cached_property
    def names(self) -> dict[frozenset[tuple[str, Any]], str]:
        """The names of the combinations by their settings."""
        return {_settings(config): name for name, config in self.configs.items()}

    @property
    def count(self) -> int:
        """The number of trainings, those begun included."""
        return sum(map(len, self.trials.values()))

    def read(self) -> None:
        """Takes the trials of the log that are of these combinations, seeds and data."""
        for trial in records.read_trials(self.log):
            name, seed = self.names.get(records.settings(trial.config, seed=0)), trial.config.get("seed", 0)
            if name and seed >= SEED and records.is_of(trial, self.data):
                self.trials[name][seed] = trial

    def run(self, workers: Workers, seeds: int, difference: float | None, most: int) -> None:
        """Trains the first seeds of each; given a difference, goes on until it is resolved or there are `most`."""
        wanted = itertools.product(self.configs, range(SEED, SEED + seeds))
        tasks = [self._begin(name, seed) for name, seed in wanted if seed not in self.trials[name]]

        def further() -> jobs.Task | None:
            if not difference or self.count >= most or (name := self.next_name(difference)) is None:
                return None
            return self._begin(name, next(seed for seed in itertools.count(SEED) if seed not in self.trials[name]))

        if not tasks and (task := further()):
            tasks = [task]
        spare = max(most - self.count, 0) if difference else 0
        run_trials(tasks, workers, self._title, self._record, further, len(tasks) + spare)

    def next_name(self, difference: float) -> str | None:
        """The combination to train next; None if the best is resolved. What diverged once is out."""
        seeds = {
            name: [trial.history[-1].test_accuracy if trial else math.nan for trial in trials.values()]
            for name, trials in self.trials.items()
            if not any(trial and trial.diverged for trial in trials.values())
        }
        chosen = racing.next_setting([*seeds.values()], difference, len(self.data.test.labels))
        return None if chosen is None else [*seeds][chosen]

    def _begin(self, name: str, seed: int) -> jobs.Task:
        self.trials[name][seed] = None
        return jobs.Task(dataclasses.replace(self.configs[name], seed=seed), (seed,))

    def _title(self, task: jobs.Task) -> str:
        return f"{self.names[_settings(task.config)]}  seed {task.config.seed}"

    def _record(self, task: jobs.Task, result: jobs.Result | DivergedError) -> tuple[str, str]:
        name = self.names[_settings(task.config)]
        if isinstance(result, DivergedError):
            settings, data = records.placeless(task.config), self.data
            trial = records.Trial(settings, diverged=str(result), dataset=data.name, sha256=data.sha256)
            said, note = str(result), "diverged"
        else:
            ((trial, _),) = result
            said = f"{trial.history[-1].test_accuracy:.2%}  {trial.seconds:.0f} s"
            alike = [other for other in (*self.trials[name].values(), trial) if other and other.history]
            note = mean_text(tables.last_epoch(alike))
        self.trials[name][task.config.seed] = trial
        records.append_trials(self.log, trial)
        return f"{self._title(task)}: {said}", f"{name}: {note}"


def _settings(config: Config) -> frozenset[tuple[str, Any]]:
    return records.settings(dataclasses.asdict(config), seed=0)


def parse_difference(text: str | None) -> float | None:
    """`0.05%` as a fraction; None for None."""
    if text is None:
        return None
    with contextlib.suppress(ValueError):
        if text.endswith("%") and 0 < (difference := float(text[:-1]) / 100) < 1:
            return difference
    raise InputError(f"cannot use --until {text!r}; write a difference of accuracies, as 0.05%")


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
