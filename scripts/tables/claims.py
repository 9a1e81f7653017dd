"""Claims about accuracy with their uncertainty: sentences, and tables of the documentation."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.timings import head

from mnist_jax.differences import Series, compare_series
from mnist_jax.models import ARCHS
from mnist_jax.series.comparing import interval, p_text, sentence, series_of

# What the pages call different, A and B by their files in `results/series/`.
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
    yield from head("| A | B | seeds | A less B, points | 95%, these images | p | 95%, digits like them | p |")
    for claim in CLAIMS:
        (a, one), (b, other) = _claimed(claim, results)
        fixed, sampled = (compare_series(one, other, images=images) for images in ("fixed", "sampled"))
        cells = (cell for each in (fixed, sampled) for cell in (interval(each), p_text(each.p_value)[2:].strip("= ")))
        seeds = " and ".join(map(str, fixed.seeds))
        yield f"| {a} | {b} | {seeds} | {100 * fixed.difference:.3f} | {' | '.join(cells)} |"


def means_table(results: Path) -> Iterator[str]:
    """The mean accuracy of every network's seeds, in percent, with both kinds of uncertainty."""
    yield from head("| network | seeds | mean | 95%, these 10,000 images | 95%, digits like them |")
    for arch in ARCHS:
        series = series_of(results / "series" / f"default-{arch}.jsonl")
        if len(series.accuracies) < 2:
            continue
        perfect = Series({1: 1.0, 2: 1.0}, {1: (), 2: ()}, series.count, series.scored)
        found = [compare_series(series, perfect, images=images) for images in ("fixed", "sampled")]
        cells = (f"{100 + 100 * each.low:.2f} to {100 + 100 * each.high:.2f}" for each in found)
        yield f"| `{arch}` | {len(series.accuracies)} | {100 + 100 * found[0].difference:.2f} | {' | '.join(cells)} |"


def simulated_table(results: Path) -> Iterator[str]:
    """How often each verdict was right in the simulated comparisons, in percent."""
    found = json.loads((results / "series" / "comparisons.json").read_text("utf-8"))
    yield from head(
        "| random | paired | seeds a side | the interval has the truth | the difference is found "
        "| two equal recipes called different | any of ten |"
    )
    for case in found["cases"]:
        names = ("coverage", "found", "equal_different", "any_of_ten_different")
        cells = " | ".join(f"{100 * case[name]:.1f}" for name in names)
        random = "seeds" if case["images"] == "fixed" else "seeds and images"
        yield f"| {random} | {'yes' if case['paired'] else 'no'} | {case['seeds']} | {cells} |"


def _claimed(claim: Sequence[str], results: Path) -> Iterator[tuple[str, Series]]:
    """The names and the series of a claim."""
    for file in claim:
        recipe, _, arch = file.partition("-")
        yield arch if recipe == "default" else f"{arch}, {recipe}", series_of(results / "series" / f"{file}.jsonl")
