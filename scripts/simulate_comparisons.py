"""Simulates comparisons whose truth is known, and counts how often each verdict is right."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.cli import run
from mnist_jax.differences import Series, against_best, compare_series, wrong_images
from mnist_jax.runtime import environment
from mnist_jax.series.comparing import series_of

TEN = 10
SERIES = Path(__file__).parents[1] / "results" / "series"
FILES = [SERIES / f"default-{arch}.jsonl" for arch in ("accurate", "bn_dropout")]


@dataclasses.dataclass(frozen=True)
class Options:
    """Simulates comparisons whose truth is known, and writes how often each verdict is right.

    The two recipes are accurate and bn_dropout. A simulated seed gets each image right or wrong as one of two of the
    recipe's twenty seeds does, which are drawn for it; of a pair, both sides draw alike. For sampled images, as many
    are drawn as there are, with replacement. So the true difference is that of the twenty. Equal recipes are both
    accurate; as pairs, both recipes with sides swapped at random.

    Example: python scripts/simulate_comparisons.py --out results/series/comparisons.json
    """

    out: Path
    """File to write."""
    times: int = 2000
    """Number of simulated comparisons in each case."""
    seeds: tuple[int, ...] = (3, 5, 10, 20)
    """Numbers of seeds a side."""


def main(options: Options) -> None:
    """Simulates every case and writes."""
    both = [series_of(path) for path in FILES]
    truth, cases = float(np.subtract(*(np.mean([*each.accuracies.values()]) for each in both))), []
    count, pools = _pools(both)
    for images, paired, seeds in itertools.product(("fixed", "sampled"), (False, True), options.seeds):
        rng = np.random.default_rng([seeds, paired, images == "sampled"])
        how: dict[str, Any] = {"images": images, "paired": paired}
        counts = np.zeros(5)
        for _ in range(options.times):
            for i, right in enumerate((truth, 0.0)):
                result = compare_series(*_two(count, pools, rng, seeds, equal=i == 1, **how), **how)
                counts[i] += result.low <= right <= result.high
                counts[2 + i] += result.p_value < 0.05
            ten = (_seeds(pools[:1], rng, seeds)[0] for _ in range(TEN))
            _, others = against_best(dict(enumerate(_drawn(count, [*ten], rng, images))), **how)
            counts[4] += min(result.p_value for result in others.values()) < 0.05
        names = "coverage", "equal_coverage", "found", "equal_different", "any_of_ten_different"
        cases.append(how | {"seeds": seeds} | dict(zip(names, (counts / options.times).tolist(), strict=True)))
        print(json.dumps(cases[-1]), flush=True)
    record = {"cases": cases, "difference": truth, "comparisons": options.times}
    record |= {"files": [path.name for path in FILES], "environment": environment(), "version": 1}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _pools(both: list[Series]) -> tuple[int, list[np.ndarray]]:
    """The number of images, and whether each seed gets each one wrong that any does, bool [seeds, some images]."""
    wrong = wrong_images(*both, [sorted(series.accuracies) for series in both])
    some = np.concatenate(wrong).any(0)
    return len(some), [table[:, some] > 0 for table in wrong]


def _seeds(pools: list[np.ndarray], rng: np.random.Generator, seeds: int) -> list[np.ndarray]:
    """As many new seeds of each pool, drawn alike."""
    one, other = rng.integers(min(map(len, pools)), size=(2, seeds))
    either = rng.random((seeds, pools[0].shape[1])) < 0.5
    return [np.where(either, pool[one], pool[other]) for pool in pools]


def _two(
    count: int, pools: list[np.ndarray], rng: np.random.Generator, seeds: int, *, equal: bool, paired: bool, images: str
) -> Iterator[Series]:
    """Two recipes, or the same twice."""
    if paired:
        a, b = _seeds(pools, rng, seeds)
        swapped = (rng.random((seeds, 1)) < 0.5) & equal
        a, b = np.where(swapped, b, a), np.where(swapped, a, b)
    else:
        a, b = (_seeds([pool], rng, seeds)[0] for pool in (pools[0], pools[0 if equal else 1]))
    return _drawn(count, [a, b], rng, images)


def _drawn(count: int, sides: list[np.ndarray], rng: np.random.Generator, images: str) -> Iterator[Series]:
    """The sides on the same images, drawn with replacement if they are sampled."""
    drawn = rng.integers(count, size=count) if images == "sampled" else np.arange(count)
    drawn = drawn[drawn < sides[0].shape[1]]  # All seeds get the others right.
    for side in sides:
        errors = {seed: np.flatnonzero(row) for seed, row in enumerate(side[:, drawn])}
        yield Series({seed: 1 - len(each) / count for seed, each in errors.items()}, errors, count)


if __name__ == "__main__":
    run(main, Options)
