"""Compares trained networks: files of trials, with their uncertainty, or runs side by side on one page."""

import dataclasses
import statistics
import sys
import textwrap
from collections.abc import Iterator

from mnist_jax.cli.options import CompareOptions
from mnist_jax.cli.program import counted
from mnist_jax.data import Dataset, hold_out, load_dataset
from mnist_jax.differences import Comparison, against_best, mcnemar
from mnist_jax.errors import InputError, require_path
from mnist_jax.recipes.values import part_of
from mnist_jax.reports import comparison, verdict
from mnist_jax.runs import directory
from mnist_jax.series.comparing import interval, p_text, read_series, sentence
from mnist_jax.series.records import read_trials


def main(options: CompareOptions) -> None:
    """Compares the files, or reads the runs; writes the page."""
    if not options.runs:
        raise InputError("no run or file to compare; name files of trials, or the directories of finished runs")
    options = dataclasses.replace(options, runs=tuple(require_path(path, "run") for path in options.runs))
    files = [path for path in options.runs if path.suffix == ".jsonl" or path.is_file()]
    runs = [path for path in options.runs if path not in files]
    if files and runs:
        file, run = str(files[0]), str(runs[0])
        raise InputError(f"cannot compare file {file!r} with run {run!r}; name files or runs, not both")
    if files:
        compare_files(options)
    else:
        compare_runs(options)


def compare_runs(options: CompareOptions) -> None:
    """Writes the page of finished runs."""
    if options.paired or options.images != "fixed":
        raise InputError("--paired and --images are for files of trials, and these are runs; leave them out")
    first, *others = options.runs
    data, remark = directory.load_run_data(first, directory.load_run(first), options.dataset, options.data_dir)
    remedy = "compare runs of the same data, or name with --dataset what to score all of them on"
    for other in others if options.dataset is None else ():
        directory.require_same_data(other, data, remedy)
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    comparison.write_comparison(options.runs, part_of(directory.load_config(first), data), options.out)
    print(f"{options.out}: {counted(len(options.runs), 'run')}")


def compare_files(options: CompareOptions) -> None:
    """Prints the comparison of the series in files, and writes their page."""
    read = {name: series for path in options.runs for name, series in read_series(path).items()}
    series = {name: one for name, one in read.items() if len(one.accuracies) > 1}
    if lone := len(read) - len(series):
        print(f"note: {counted(lone, 'setting')} with one seed, which has no spread: left out", file=sys.stderr)
    if len(series) < 2:
        raise InputError(f"{counted(len(series), 'series')} to compare; name files that have two, of two seeds or more")
    best, others = against_best(series, images=options.images, paired=options.paired)
    pairs = len(series) * (len(series) - 1) // 2
    texts = [sentence((best, series[best]), (name, series[name]), result, pairs) for name, result in others.items()]
    known = all(one.errors is not None for one in series.values())
    differing = {name: mcnemar(series[best], series[name]) for name in others} if known else {}
    sampled = against_best(series, images="sampled", paired=options.paired)[1] if known else {}
    print(f"accuracy on {series[best].scored}, and differences in percentage points")
    for name, one in series.items():
        mean = 100 * statistics.fmean(one.accuracies.values())
        print(f"{name}: mean {mean:.3f}%, {counted(len(one.accuracies), 'seed')}")
    if len(others) > 1:
        print("All pairs are corrected for, as the same data chose the best: p by Holm, intervals by Bonferroni.")
    for name, result in others.items():
        print(f"\n{best} less {name}: {100 * result.difference:.3f}")
        for line in details(result, sampled.get(name)):
            print(textwrap.fill(f"  {line}", 80, subsequent_indent="  ", break_on_hyphens=False))
    verdict.write_verdict(series, best, others, differing, texts, scored_data(options), options.out)
    for text in texts:
        print("\n" + textwrap.fill(text, 80, break_on_hyphens=False))
    print(f"\n{options.out}")


def details(result: Comparison, sampled: Comparison | None) -> Iterator[str]:
    """The lines about a difference: its intervals, what its uncertainty comes from, and how many seeds it needs."""
    random = "seeds random, images fixed" if result.images == "fixed" else "seeds and images random"
    yield f"{random}: 95% {interval(result)}, {p_text(result.p_value)}"
    if sampled:
        shares = f"of the variance, seeds {1 - sampled.image_share:.0%} and images {sampled.image_share:.0%}"
        wider = f"; both random: 95% {interval(sampled)}, {p_text(sampled.p_value)}"
        yield shares + (wider if result.images == "fixed" else "")
    yield f"a seed of the first beats one of the second in {result.chance:.0%} of cases"
    if result.correlation is not None:
        how = "paired" if result.paired else "not paired"
        yield f"correlation of the seeds in both: {result.correlation:.2f} ({how})"
    needed = (f"{100 * d:g}: {result.seeds_needed(d) or 'none is enough'}" for d in (0.001, 0.0005, 0.0002))
    yield f"seeds a side for a difference at 80% power: {', '.join(needed)}"


def scored_data(options: CompareOptions) -> Dataset | None:
    """The data that the first file was scored on; None, and a note, where it cannot be had."""
    trial = read_trials(options.runs[0])[0]
    try:
        data = load_dataset(
            options.dataset or trial.config.get("dataset", trial.dataset),
            data_dir=options.data_dir or trial.config.get("data_dir"),
            source=trial.config.get("data_source", "bundled"),
        )
        if trial.sha256 not in (None, data.sha256):
            raise InputError(f"data set {data.name!r} is not that of the trials; name theirs with --dataset")
    except InputError as error:
        print(f"note: images are told by their indices alone: {error}", file=sys.stderr)
        return None
    held_out = trial.config.get("held_out", 0)
    return hold_out(data, held_out) if held_out else data
