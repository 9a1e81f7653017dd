import json
from math import nan

import numpy as np
import pytest
from conftest import ROOT

from mnist_jax.lab import racing
from mnist_jax.lab.racing import next_setting
from mnist_jax.lab.records import Trial
from mnist_jax.training import EpochMetrics

SINGLE = [[0.995], [0.993], [0.994], [0.9]]


@pytest.mark.parametrize(
    ("seeds", "chosen"),
    [
        ([[0.99], [], [0.98]], 1),
        ([[0.99], [nan], [0.98]], 0),  # The first has not finished; a worker is free.
        (SINGLE, 0),
        ([[0.995, nan], *SINGLE[1:]], 2),
        ([[0.995, nan], SINGLE[1], [0.994, nan], SINGLE[3]], 0),
        ([[0.99]], None),
        ([], None),
    ],
)
def test_of_the_best_and_its_rival_the_one_with_fewer_seeds_is_next(seeds, chosen):
    assert (next_setting(seeds, 0.0005, 10_000) if seeds else None) == chosen


def test_the_best_is_resolved_at_the_odds_of_the_error():
    """Variance 5e-7 of a lead of 0.002 on 2 degrees of freedom: odds of 1 to 5, a probability of 1/6."""
    seeds = [[0.995, 0.994], [0.993, 0.992]]
    assert next_setting(seeds, 0.0005, 10_000, 0.17) is None
    assert next_setting(seeds, 0.0005, 10_000, 0.16) == 0
    assert next_setting([[0.9, 0.9], [0.8, 0.8]], 0.01, 10_000) is None
    assert next_setting([[0.9, 0.9], [0.8, 0.8]], 0.01, 10) == 0  # All may be rounding.


def test_the_simulated_searches_are_those_of_today():
    """As often right, with as many trainings, as `results/search-until.json` says; 5 standard errors of 100."""
    said = json.loads((ROOT / "results" / "search-until.json").read_text())
    rng, case = np.random.default_rng(2), said["cases"]["seven 0.05% behind the best"]
    (expected,) = (each for each in case["search"] if each["error"] == 0.2)
    counts, right = [], 0
    for _ in range(100):
        seeds = [[] for _ in case["accuracies"]]
        while (i := next_setting(seeds, said["difference"], said["images"], 0.2)) is not None:
            seeds[i].append(round(rng.normal(case["accuracies"][i], said["std"]), 4))
        right += max(range(8), key=lambda i: np.mean(seeds[i])) == 0
        counts.append(sum(map(len, seeds)))
    assert abs(right / 100 - expected["found"]) < 5 * 0.04
    assert abs(np.mean(counts) - expected["trainings"]) < 5 * np.std(counts) / 10


def test_a_ranking_is_whole_and_tells_what_cannot_be_told():
    spread, names = (0.0, 0.0004, -0.0004), ["arch " + "16-s24-pool-" * 8 + str(i) for i in range(5)]
    means = dict(zip(names, (0.99, 0.9949, 0.995, 0.9948, 0.993), strict=True))

    def trial(accuracy):
        return Trial({}, 9752, 2_000_000, (EpochMetrics(1, 0.1, 0.98, 0.1, accuracy, 1.0),), 0.1, 0.98)

    trials = {name: [trial(mean + each) for each in spread] for name, mean in means.items()}
    trials[names[3]] = trials[names[3]][:1]
    trials[names[4]] = [Trial({}, diverged="at step 3")]
    head, *lines = racing.ranking(trials)
    rows = list(zip(lines[:8:2], lines[1:8:2], strict=True))
    assert [title.partition(";")[0] for title, _ in rows] == [names[i] for i in (2, 1, 3, 0)]
    assert [figures[0] for _, figures in rows] == [" ", "=", "?", " "]
    assert {len(line) for line in (head, *(figures for _, figures in rows))} == {80}
    assert "99.490%  0.040%     3  -0.010%   -0.139% to +0.119%" in rows[1][1]
    assert lines[8:] == [
        "= cannot be told from the best (Welch, p > 0.05; pairs corrected by Holm: 3)",
        "? cannot be told: it or the best has one seed",
    ]
    assert list(racing.ranking({})) == [head]
