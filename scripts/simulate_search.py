"""Simulates how many trainings `search --until` needs, against the same number of seeds for each setting."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from mnist_jax.cli import run
from mnist_jax.lab import racing
from mnist_jax.lab.records import Races

STD, DIFFERENCE, IMAGES, MOST = 0.0005, 0.0005, 10_000, 16
CASES = {
    "each 0.05% behind the one before": 0.995 - DIFFERENCE * np.arange(8),
    "seven 0.05% behind the best": 0.995 - DIFFERENCE * (np.arange(8) > 0),
}
ERRORS = (0.03, racing.ERROR, 0.1, 0.2, 0.25, 0.275, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclasses.dataclass(frozen=True)
class Options:
    """Simulates searches for the best of eight settings and writes how often it is found, with how many trainings.

    Accuracies of seeds are normal, with standard deviation 0.05%, and rounded to whole images of 10,000.

    Example: python scripts/simulate_search.py --repetitions 100 --out search-until.json
    """

    repetitions: int = 4000
    """Number of simulated searches of each kind."""
    seed: int = 1
    """Of the random numbers."""
    out: Path = Path("results/search-until.json")
    """File to write."""


def main(options: Options) -> None:
    """Simulates and writes."""
    rng, cases = np.random.default_rng(options.seed), {}
    for name, accuracies in CASES.items():
        # Every setting in a random place, so that the first of equal ones is anyone.
        order = rng.permuted(np.tile(np.arange(8), (options.repetitions, 1)), axis=1)
        seeds = drawn(rng, accuracies[order][..., None], (*order.shape, MOST))
        means = seeds.cumsum(2) / np.arange(1, MOST + 1)
        equal = (np.take_along_axis(order[..., None], means.argmax(1)[:, None], 1) == 0).mean((0, 1))
        search = []
        for error in ERRORS:
            ran = [race(rng, accuracies[each], error) for each in order]
            found = np.mean([each[best] == 0 for each, (best, _) in zip(order, ran, strict=True)])
            counts = [count for _, count in ran]
            figures = (error, float(found), float(np.mean(counts)), float(np.percentile(counts, 90)))
            search.append(dict(zip(("error", "found", "trainings", "trainings_90"), figures, strict=True)))
            print(name, search[-1], flush=True)
        cases[name] = {"accuracies": accuracies.round(6).tolist(), "equal": equal.tolist(), "search": search}
    record = Races(cases, STD, DIFFERENCE, IMAGES, options.repetitions, options.seed)
    options.out.write_text(json.dumps(record._asdict(), indent=1) + "\n", encoding="utf-8")


def drawn(rng: np.random.Generator, accuracies: np.ndarray, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Accuracies of seeds."""
    return np.round(rng.normal(accuracies, STD, shape or None) * IMAGES) / IMAGES


def race(rng: np.random.Generator, accuracies: np.ndarray, error: float) -> tuple[int, int]:
    """One search: the place of the setting that it calls the best, and its number of trainings."""
    seeds: list[list[float]] = [[] for _ in accuracies]
    while (i := racing.next_setting(seeds, DIFFERENCE, IMAGES, error)) is not None:
        seeds[i].append(float(drawn(rng, accuracies[i])))
    return int(np.argmax([np.mean(each) for each in seeds])), sum(map(len, seeds))


if __name__ == "__main__":
    run(main, Options, sys.argv[1:], "simulate-search")
