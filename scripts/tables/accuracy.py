"""Tables of accuracies in Markdown, line by line, made from the trials in `results/`."""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.timings import head
from tables.exercise import NOTEBOOKS, PUBLIC

from mnist_jax.models import ARCHS, make_model
from mnist_jax.objective import PARAMETER_LIMIT, epoch_line
from mnist_jax.recipes.config import RECIPES
from mnist_jax.series.records import Trial, best_epoch, last_epoch, read_trials, settings
from mnist_jax.statistics import error_counts, seed_statistics
from mnist_jax.summary import abstract_variables, count_params


class Point(NamedTuple):
    """A network on the frontier of accuracy against parameters, with one trial per seed."""

    arch: str
    parameters: int
    seeds: list[Trial]
    recipe: str = "default"


def frontier(results: Path) -> list[Point]:
    """The networks below 10,000 parameters that have a file `default-ARCH.jsonl` or `patient-ARCH.jsonl`; by size."""
    points = []
    for recipe in ("default", "patient"):
        for path in results.glob(f"series/{recipe}-*.jsonl"):
            if seeds := read_trials(path):
                arch = seeds[0].config["arch"]
                points.append(Point(arch, parameters_of(arch), seeds, recipe))
    points = [point for point in points if point.parameters < PARAMETER_LIMIT]
    return sorted(points, key=lambda point: (point.parameters, point.arch, point.recipe))


def seeds_of(results: Path, arch: str, recipe: str = "default") -> list[Trial]:
    """The trials of a network by its name; none if there is no file."""
    return read_trials(results / "series" / f"{recipe}-{arch}.jsonl")


def parameters_of(arch: str) -> int:
    """The number of parameters of a network."""
    return count_params(abstract_variables(make_model(arch))["params"])


def percent(accuracies: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, for instance `99.41 ± 0.05`, in percent."""
    result = seed_statistics(accuracies)
    spread = "" if result.std is None else f" ± {100 * result.std:.2f}"
    return f"{100 * result.mean:.2f}{spread}"


def front_table(results: Path) -> Iterator[str]:
    """The three networks that push a limit each, and the command that trains one."""
    groups = {arch: seeds_of(results, arch) for arch in ("swift", "small", "accurate")}
    environments = [seed.environment or {} for seeds in groups.values() for seed in seeds]
    ((cpu, cores),) = {(each["cpu"], each["cpu_cores"]) for each in environments}
    columns = f"test accuracy, % | seeds | parameters | epochs | seconds, {cores} core of {cpu}"
    yield from head(f"| network | {columns} | command |")
    for arch, seeds in groups.items():
        yield (
            f"| `{arch}` | {percent(last_epoch(seeds))} | {len(seeds)} | {parameters_of(arch):,} "
            f"| {len(seeds[0].history)} | {statistics.median(seed.seconds for seed in seeds):.0f} "
            f"| `uv run scripts/train.py --arch {arch}` |"
        )


def ladder_table(results: Path) -> Iterator[str]:
    """Each network with the notebook's recipe and ours, accuracies in percent."""
    yield from head(
        "| network | recipe | test, last epoch | parameters | seeds | epochs | standard error | min to max "
        "| seeds at 99.40 or above | best epoch | train | train less test | seconds |"
    )
    for arch in ARCHS:
        parameters = parameters_of(arch)
        if arch in NOTEBOOKS:
            best, last, train = NOTEBOOKS[arch]
            yield (
                f"| `{arch}` | notebook | {last:.2f} | {parameters:,} | 1 | 15 | | | "
                f"| {best:.2f} | {train:.2f} | {train - last:+.2f} | |"
            )
        for recipe in RECIPES:
            seeds = seeds_of(results, arch, recipe)
            if not seeds:
                continue
            result = seed_statistics(last_epoch(seeds))
            error = "" if result.stderr is None else f"{100 * result.stderr:.3f}"
            trained = [seed.train_accuracy for seed in seeds]
            yield (
                f"| `{arch}` | {recipe} | {percent(last_epoch(seeds))} | {parameters:,} | {result.n} "
                f"| {len(seeds[0].history)} | {error} | {100 * result.min:.2f} to {100 * result.max:.2f} "
                f"| {result.share:.0%} | {percent(best_epoch(seeds))} | {percent(trained)} "
                f"| {100 * (statistics.fmean(trained) - result.mean):+.2f} "
                f"| {statistics.median(seed.seconds for seed in seeds):.0f} |"
            )


def result_table(arch: str, results: Path) -> Iterator[str]:
    """The rows of one network in the ladder, with fewer columns."""
    rows = [row.split("|") for row in ladder_table(results)]
    mine = rows[:2] + [row for row in rows if row[1].strip() == f"`{arch}`"]
    yield from ("|".join(row[i] for i in (0, 2, 3, 5, 6, 8, 9, 10, 11, 14)) for row in mine)


def errors_table(results: Path) -> Iterator[str]:
    """The number of test images that the seeds of a recipe get wrong, alone and together.

    The mean of a seed is split: images that most seeds of every network get wrong with `default`, others that most
    seeds of this row get wrong, and the rest.
    """
    yield from head(
        "| network | recipe | seeds | wrong, mean of a seed | by every network | by this one | by the seed "
        "| wrong in every seed | in more than half | in any |"
    )
    runs = [(arch, recipe) for arch in ARCHS for recipe in RECIPES]
    errors = {run: [seed.errors for seed in seeds_of(results, *run)] for run in runs}
    times = {key: error_counts(wrong) for key, wrong in errors.items() if len(wrong) > 1}
    often = {key: {i for i, count in times[key].items() if 2 * count > len(errors[key])} for key in times}
    by_all = set.intersection(*([images for (_, recipe), images in often.items() if recipe == "default"] or [set()]))
    for (arch, recipe), counts in times.items():
        seeds = len(errors[arch, recipe])
        parts = [sum(counts.get(i, 0) for i in part) for part in (by_all, often[arch, recipe] - by_all)]
        parts = [sum(counts.values()), *parts, sum(counts.values()) - sum(parts)]
        numbers = sum(count == seeds for count in counts.values()), len(often[arch, recipe]), len(counts)
        yield (
            f"| `{arch}` | {recipe} | {seeds} | {' | '.join(f'{part / seeds:.1f}' for part in parts)} "
            f"| {' | '.join(map(str, numbers))} |"
        )


def frontier_table(results: Path) -> Iterator[str]:
    """Mean accuracy against parameters, ours and the best public runs, by size."""
    yield from head(
        "| parameters | test accuracy, last epoch | best epoch of a public run | our best mean up to this size "
        "| network | seeds | epochs | min to max |"
    )
    points = frontier(results)
    rows = []
    for arch, parameters, seeds, _ in points:
        last = last_epoch(seeds)
        reached = (
            f"| `{arch}` | {len(seeds)} | {len(seeds[0].history)} | {100 * min(last):.2f} to {100 * max(last):.2f} |"
        )
        row = f"| {parameters:,} | {percent(last)} | | {reached}"
        rows.append((parameters, row))
    for parameters, accuracy, epochs, source in PUBLIC:
        ours = [statistics.fmean(last_epoch(point.seeds)) for point in points if point.parameters <= parameters]
        best = f"{100 * max(ours):.2f}" if ours else "none so small"
        rows.append((parameters, f"| {parameters:,} | | {accuracy:.2f} | {best} | {source} | 1 | {epochs or ''} | |"))
    yield from (row for _, row in sorted(rows))


def other_data_table(results: Path) -> Iterator[str]:
    """The networks on other data than MNIST, with the recipe `default` for MNIST."""
    yield from head("| data | network | parameters | seeds | epochs | test, last epoch | min to max | train |")
    for arch in ARCHS:
        for path in sorted(results.glob(f"series/*-default-{arch}.jsonl")):
            if seeds := read_trials(path):
                one, last, train = seeds[0], last_epoch(seeds), [seed.train_accuracy for seed in seeds]
                yield (
                    f"| {one.dataset} | `{arch}` | {one.parameters:,} | {len(seeds)} | {len(one.history)} "
                    f"| {percent(last)} | {100 * min(last):.2f} to {100 * max(last):.2f} | {percent(train)} |"
                )


def devices_table(results: Path) -> Iterator[str]:
    """The networks trained on other devices, from a folder for each, and on a CPU."""
    yield from head(
        "| network | trained on | seeds | in one program | test, last epoch | min to max | at 99.40 or above |"
    )
    for path in sorted(results.glob("series/*/default-*.jsonl")):
        arch = path.stem.removeprefix("default-")
        for seeds in filter(None, map(read_trials, (path, path.parents[1] / path.name))):
            environment, result = seeds[0].environment or {}, seed_statistics(last_epoch(seeds))
            device = environment["devices"][0] if environment["platform"] != "cpu" else environment["cpu"]
            yield (
                f"| `{arch}` | {device} | {result.n} | {seeds[0].together or 1} | {percent(last_epoch(seeds))} "
                f"| {100 * result.min:.2f} to {100 * result.max:.2f} | {result.share:.0%} |"
            )


def trials_table(results: Path) -> Iterator[str]:
    """The cost of choosing settings and layouts, from `ARCH.jsonl` and `attempts-ARCH.jsonl`."""
    yield from head("| network | settings tried | trainings | hours |")
    for arch in (*ARCHS, "layouts", "patient", "fashion-mnist"):
        files = (results / "search" / f"{name}.jsonl" for name in (arch, f"attempts-{arch}"))
        ran = [trial for file in files for trial in read_trials(file)]
        if ran:
            tried = {(settings(trial.config, seed=0), json.dumps(trial.attempt)) for trial in ran}
            hours = sum(trial.seconds for trial in ran) / 3600
            yield f"| `{arch}` | {len(tried)} | {len(ran)} | {hours:.1f} |"


def pictures_table(results: Path) -> Iterator[str]:
    """How each network reads pictures by people, small digits, rows, and what is no digit."""
    measured = json.loads((results / "tried" / "pictures.json").read_text("utf-8"))
    yield from head(
        "| weights | right, % (95% over people) | photographs, % | 8x8 digits, % | rows of 100 | sure and wrong "
        "| calibration error, % | not a digit, AUROC | MNIST as files, % |"
    )
    for name, found in measured["networks"].items():
        people, (low, high) = found["people"], found["people"]["interval"]
        yield (
            f"| `{name}` | {100 * people['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f}) "
            f"| {100 * found['kinds']['photo']['accuracy']:.1f} | {100 * found['small_digits']:.1f} "
            f"| {found['rows_read']} | {people['sure_and_wrong']} | {100 * people['calibration_error']:.1f} "
            f"| {found['auroc']['all']:.3f} | {100 * found['test_accuracy_of_files']:.2f} |"
        )


def run_text(results: Path) -> Iterator[str]:
    """The lines that `scripts/train.py` prints per epoch, for seed 1 of `swift`."""
    trials = seeds_of(results, "swift")
    history = next(trial.history for trial in trials if trial.config["seed"] == 1)
    yield from ("```", *(epoch_line(metrics, len(history), "test") for metrics in history), "```")
