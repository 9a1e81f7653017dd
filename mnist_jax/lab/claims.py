"""Claims about accuracy with their uncertainty: sentences, and tables of the documentation."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from mnist_jax.differences import Comparison, Series, compare_series
from mnist_jax.lab.comparing import Simulated, series_of
from mnist_jax.lab.records import Races
from mnist_jax.models import ARCHS
from mnist_jax.runs.directory import read_record

# What the pages call different, A and B by their files in `results/`.
CLAIMS = (
    ("default-accurate", "default-bn_dropout"),
    ("default-bn_dropout", "default-swift"),
    ("default-bn_dropout", "default-small"),
    ("default-bn_dropout", "reference-bn_dropout"),
    ("default-bn_dropout", "fast-bn_dropout"),
    ("default-gap", "reference-gap"),
    ("default-lighter", "reference-lighter"),
    ("reference-bn_dropout", "reference-gap"),
    ("default-bn_dropout", "default-gap"),
    ("default-gap", "default-lighter"),
)


def sentence(a: tuple[str, Series], b: tuple[str, Series], result: Comparison, pairs: int = 1) -> str:
    """A comparison as a sentence that a paper can print.

    `a` and `b` are names and series; `pairs` is the number of pairs that Holm's method corrected for.
    """
    (name, one), (other_name, other) = a, b
    shared = one.accuracies.keys() & other.accuracies.keys()
    means = [
        statistics.fmean(each.accuracies[seed] for seed in (shared if result.paired else each.accuracies))
        for each in (one, other)
    ]
    count = [f"{n} {'pairs' if result.paired else 'seeds'}" for n in result.seeds]
    first, second = (f"{100 * mean:.3f}%, {n}" for mean, n in zip(means, count, strict=True))
    fixed = result.images == "fixed"
    test = "a mixed model of seeds and images" if not fixed else "paired t-test" if result.paired else "Welch's t-test"
    corrected = f", corrected by Holm's method for {pairs} pairs" if pairs > 1 else ""
    together = "simultaneous " if pairs > 1 else ""
    told = (
        f"({together}95% confidence interval {interval(result)}, {p_text(result.p_value)}{corrected}, {test}; "
        f"{'seeds are random, images fixed' if fixed else 'seeds and images are random'})."
    )
    where = f"On {one.scored}, " if one.scored else ""
    by = f"{100 * abs(result.difference):.3f} percentage points"
    if result.p_value < 0.05:
        more = "more" if result.difference > 0 else "less"
        return f"{where}{name} (mean accuracy {first}) is {more} accurate than {other_name} ({second}) by {by} {told}"
    return (
        f"{where}{name} (mean accuracy {first}) and {other_name} ({second}) cannot be told apart: "
        f"they differ by {by} {told}"
    )


def interval(result: Comparison) -> str:
    """The 95% interval in percentage points."""
    return f"{100 * result.low:.3f} to {100 * result.high:.3f}" if result.stderr else "unbounded"


def p_text(p_value: float) -> str:
    """A p-value with two digits."""
    return f"p = {p_value:.2g}" if p_value >= 1e-4 else "p < 0.0001"


def sentences(results: Path) -> Iterator[str]:
    """The first claim as two sentences, one for each kind of uncertainty."""
    (a, one), (b, other) = (series for series in _claimed(CLAIMS[0], results))
    for images in ("fixed", "sampled"):
        result = compare_series(one, other, images=images)
        yield f"- {sentence((f'`{a}`', one), (f'`{b}`', other), result)}"


def claim_line(results: Path) -> Iterator[str]:
    """The first claim in short."""
    (a, one), (b, other) = _claimed(CLAIMS[0], results)
    fixed, sampled = (compare_series(one, other, images=images) for images in ("fixed", "sampled"))
    yield (
        f"The mean of `{a}` is {100 * fixed.difference:.3f} percentage points above that of `{b}` (seeds: "
        f"{' and '.join(map(str, fixed.seeds))})."
    )
    yield f"The 95% interval is {interval(fixed)} on these images, and {interval(sampled)} with the images random too."


def claims_table(results: Path) -> Iterator[str]:
    """Every difference that the pages speak of, in percentage points, with both kinds of uncertainty."""
    yield "| A | B | seeds | A less B, points | 95%, these images | p | 95%, digits like them | p |"
    yield "|---|---|---|---|---|---|---|---|"
    for claim in CLAIMS:
        (a, one), (b, other) = _claimed(claim, results)
        fixed, sampled = (compare_series(one, other, images=images) for images in ("fixed", "sampled"))
        cells = (cell for each in (fixed, sampled) for cell in (interval(each), p_text(each.p_value)[2:].strip("= ")))
        seeds = " and ".join(map(str, fixed.seeds))
        yield f"| {a} | {b} | {seeds} | {100 * fixed.difference:.3f} | {' | '.join(cells)} |"


def means_table(results: Path) -> Iterator[str]:
    """The mean accuracy of every network's seeds, in percent, with both kinds of uncertainty."""
    yield "| network | seeds | mean | 95%, these 10,000 images | 95%, digits like them |"
    yield "|---|---|---|---|---|"
    for arch in ARCHS:
        series = series_of(results / f"default-{arch}.jsonl")
        if len(series.accuracies) < 2:
            continue
        perfect = Series({1: 1.0, 2: 1.0}, {1: (), 2: ()}, series.count, series.scored)
        found = [compare_series(series, perfect, images=images) for images in ("fixed", "sampled")]
        cells = (f"{100 + 100 * each.low:.2f} to {100 + 100 * each.high:.2f}" for each in found)
        yield (f"| `{arch}` | {len(series.accuracies)} | {100 + 100 * found[0].difference:.2f} | {' | '.join(cells)} |")


def simulated_table(results: Path) -> Iterator[str]:
    """How often each verdict was right in the simulated comparisons, in percent."""
    found = read_record(results / "comparisons.json", Simulated)
    yield (
        "| random | paired | seeds a side | the interval has the truth | the difference is found "
        "| two equal recipes called different | any of ten |"
    )
    yield "|---|---|---|---|---|---|---|"
    for case in found.cases:
        names = ("coverage", "found", "equal_different", "any_of_ten_different")
        cells = " | ".join(f"{100 * case[name]:.1f}" for name in names)
        random = "seeds" if case["images"] == "fixed" else "seeds and images"
        yield f"| {random} | {'yes' if case['paired'] else 'no'} | {case['seeds']} | {cells} |"


def races_table(results: Path) -> Iterator[str]:
    """The trainings to find the best of several settings, by `search --until` and by as many seeds for each."""
    yield (
        "| settings | found in | seeds of each | trainings | `--until`, permitted error | found in "
        "| trainings, mean (90% have no more) | share |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for name, case in read_record(results / "search-until.json", Races).cases.items():
        for owed in (0.8, 0.95):
            seeds = next(i for i, found in enumerate(case["equal"], 1) if found >= owed)
            race = min((race for race in case["search"] if race["found"] >= owed), key=lambda race: race["trainings"])
            same, mean, most = seeds * len(case["accuracies"]), race["trainings"], race["trainings_90"]
            figures = f"{seeds} | {same} | {100 * race['error']:g}% | {race['found']:.1%} | {mean:.1f} ({most:.0f})"
            yield f"| {name} | {case['equal'][seeds - 1]:.1%} | {figures} | {mean / same:.0%} |"


def _claimed(claim: Sequence[str], results: Path) -> Iterator[tuple[str, Series]]:
    """The names and the series of a claim."""
    for file in claim:
        recipe, _, arch = file.partition("-")
        yield arch if recipe == "default" else f"{arch}, {recipe}", series_of(results / f"{file}.jsonl")
