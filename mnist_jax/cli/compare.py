"""Compares trained networks: files of trials, with their uncertainty, or runs side by side on one page."""

import statistics
import sys
import textwrap
from collections.abc import Iterator, Mapping

from mnist_jax.cli.options import CompareOptions
from mnist_jax.cli.program import counted, writing
from mnist_jax.data import Dataset, hold_out, load_dataset
from mnist_jax.differences import Comparison, Series, against_best, mcnemar
from mnist_jax.errors import InputError
from mnist_jax.recipes.values import part_of
from mnist_jax.reports import comparison, verdict
from mnist_jax.runs import directory
from mnist_jax.series.comparing import interval, p_text, read_series, sentence
from mnist_jax.series.records import read_trials


def main(options: CompareOptions) -> None:
    """Compares the files, or reads the runs; writes the page."""
    files = [path for path in options.runs if path.suffix == ".jsonl" or path.is_file()]
    if not options.runs:
        raise InputError("no run or file to compare; name files of trials, or the directories of finished runs")
    if not files:
        compare_runs(options)
    elif len(files) < len(options.runs):
        (run, *_) = [path for path in options.runs if path not in files]
        raise InputError(f"cannot compare file {str(files[0])!r} with run {str(run)!r}; name files or runs, not both")
    else:
        compare_files(options)


def compare_runs(options: CompareOptions) -> None:
    """Writes the page of finished runs."""
    if options.paired or options.images != "fixed":
        raise InputError("--paired and --images are for files of trials, and these are runs; leave them out")
    first, *others = options.runs
    named = options.dataset, options.data_dir, options.data_source
    data, remark = directory.load_run_data(first, directory.load_run(first), *named)
    remedy = "compare runs of the same data, or name with --dataset what to score all of them on"
    for other in others if options.dataset is None else ():
        directory.require_same_data(other, data, remedy)
    if remark:
        print(f"note: {remark}", file=sys.stderr)
    with writing(options.out, "--out"):
        comparison.write_comparison(options.runs, part_of(directory.load_config(first), data), options.out)
    print(f"{options.out}: {counted(len(options.runs), 'run')}")


def compare_files(options: CompareOptions) -> None:
    """Prints the comparison of the series in files, and writes their page."""
    found = {name: each for path in options.runs for name, each in read_series(path).items()}
    series = {name: each for name, each in found.items() if len(each.accuracies) > 1}
    if lone := len(found) - len(series):
        print(f"note: {counted(lone, 'setting')} with one seed, which has no spread: left out", file=sys.stderr)
    if len(series) < 2:
        raise InputError(f"{counted(len(series), 'series')} to compare; name files that have two, of two seeds or more")
    best, others = against_best(series, images=options.images, paired=options.paired)
    pairs = len(series) * (len(series) - 1) // 2
    first = best, series[best]
    texts = [sentence(first, (name, series[name]), each, pairs) for name, each in others.items()]
    known = all(each.errors is not None for each in series.values())
    differing = {name: mcnemar(series[best], series[name]) for name in others} if known else {}
    print(*(fill(line) for line in told(series, best, others, options)), sep="\n")
    data = scored_data(options)
    with writing(options.out, "--out"):
        verdict.write_verdict(series, best, others, differing, texts, data, options.out)
    print(*(f"\n{fill(text)}" for text in texts), sep="\n")
    print(f"\n{options.out}")


def fill(line: str) -> str:
    """A line in 80 columns; a longer one goes on under its indent."""
    indent = " " * (len(line) - len(line.lstrip()))
    line = line.replace("p = ", "p\u00a0=\u00a0")
    filled = textwrap.fill(line, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return filled.replace("\u00a0", " ")


def told(
    series: Mapping[str, Series], best: str, others: Mapping[str, Comparison], options: CompareOptions
) -> Iterator[str]:
    """The lines that are printed."""
    yield f"accuracy on {series[best].scored}, and differences in percentage points"
    for name, each in series.items():
        mean = 100 * statistics.fmean(each.accuracies.values())
        yield f"{name}: mean {mean:.3f}%, {counted(len(each.accuracies), 'seed')}"
    if len(others) > 1:
        yield "All pairs are corrected for, as the same data chose the best: p by Holm, intervals by Bonferroni."
    known = all(each.errors is not None for each in series.values())
    _, sampled = against_best(series, images="sampled", paired=options.paired) if known else ("", {})
    for name, result in others.items():
        yield ""
        yield f"{best} less {name}: {100 * result.difference:.3f}"
        corrected = " (Holm)" if len(others) > 1 else ""
        what = "seeds random, images fixed" if result.images == "fixed" else "seeds and images random"
        yield f"  {what}: 95% {interval(result)}, {p_text(result.p_value)}{corrected}"
        if both := sampled.get(name):
            yield f"  of the variance, seeds {1 - both.image_share:.0%} and images {both.image_share:.0%}" + (
                f"; both random: 95% {interval(both)}, {p_text(both.p_value)}" if result.images == "fixed" else ""
            )
            images = mcnemar(series[best], series[name])
            yield (
                f"  images that most seeds get right: {len(images.only_a)} by the first alone, {len(images.only_b)} by "
                f"the second (McNemar's {p_text(images.p_value)})"
            )
        yield f"  a seed of the first beats one of the second in {result.chance:.0%} of cases"
        if result.correlation is not None:
            paired = "paired" if result.paired else "not paired"
            yield f"  correlation of the seeds in both: {result.correlation:.2f} ({paired})"
        needed = (f"{100 * d:g}: {result.seeds_needed(d) or 'none is enough'}" for d in (0.001, 0.0005, 0.0002))
        yield f"  seeds a side for a difference at 80% power: {', '.join(needed)}"


def scored_data(options: CompareOptions) -> Dataset | None:
    """The data that the first file was scored on; None, and a note, where it cannot be had."""
    trial = read_trials(options.runs[0])[0]
    name, place = options.dataset or trial.dataset, options.data_dir or trial.config.get("data_dir")
    try:
        data = load_dataset(
            trial.config.get("dataset", name) if options.dataset is None else name,
            data_dir=place,
            source=options.data_source or trial.config.get("data_source", "bundled"),
        )
        if trial.sha256 not in (None, data.sha256):
            raise InputError(f"data set {data.name!r} is not that of the trials; name theirs with --dataset")
    except InputError as error:
        print(f"note: images are told by their indices alone: {error}", file=sys.stderr)
        return None
    held_out = trial.config.get("held_out", 0)
    return hold_out(data, held_out) if held_out else data
