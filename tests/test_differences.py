"""`compare` against scipy.stats, closed forms and simulations; the command and its page."""

import json
import re

import numpy as np
import pytest
from conftest import ROOT, assert_accessible, refused, run_script
from scipy import stats

from mnist_jax import EpochMetrics, compare
from mnist_jax.differences import Series, against_best, compare_series, mcnemar
from mnist_jax.series import records
from mnist_jax.series.comparing import read_series, sentence, series_of

RNG = np.random.default_rng(28)
A = dict(enumerate(RNG.normal(0.995, 0.0005, 7)))
B = dict(enumerate(RNG.normal(0.9945, 0.0009, 5)))
FILES = [str(ROOT / "results" / "series" / f"default-{arch}.jsonl") for arch in ("accurate", "bn_dropout", "swift")]


@pytest.mark.parametrize("paired", [False, True])
def test_fixed_images_are_the_t_tests_of_scipy(paired):
    a, b = np.array([*A.values()])[: 5 if paired else 7], np.array([*B.values()])
    expected = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    result = compare(A, B, paired=paired)
    assert (result.p_value, result.df) == pytest.approx((expected.pvalue, expected.df))
    assert (result.low, result.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert result.chance == pytest.approx(stats.mannwhitneyu(a, b).statistic / len(a) / len(b))
    assert result.correlation == pytest.approx(stats.pearsonr(a[:5], b).statistic)
    swapped = compare(B, A, paired=paired)
    assert (swapped.difference, swapped.low) == pytest.approx((-result.difference, -result.high))


def series(wrong):
    """A series from what each seed gets wrong, bool [seeds, images]."""
    errors = {seed: np.flatnonzero(row).tolist() for seed, row in enumerate(wrong)}
    return Series({seed: 1 - len(each) / wrong.shape[1] for seed, each in errors.items()}, errors, wrong.shape[1])


@pytest.mark.parametrize("paired", [False, True])
def test_sampled_images_are_the_mixed_model(paired):
    """Mean squares of seeds, images and their interaction, from the whole table of both."""
    wrong = [RNG.random((6, 300)) < np.clip(RNG.beta(0.1, 2, 300) + RNG.normal(0, 0.06, (6, 1)), 0, 1) for _ in "ab"]
    expected = np.var(wrong[0].mean(0) - wrong[1].mean(0), ddof=1) / 300
    for table in [wrong[0] * 1.0 - wrong[1]] if paired else [each * 1.0 for each in wrong]:
        residual = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
        interaction = (residual**2).sum() / 5 / 299
        assert interaction / 300 < table.mean(1).var(ddof=1)
        expected += table.mean(1).var(ddof=1) / 6 - interaction / 6 / 300
    result = compare_series(*map(series, wrong), images="sampled", paired=paired)
    assert result.stderr**2 == pytest.approx(expected)
    fixed = compare_series(*map(series, wrong), paired=paired)
    assert result.image_share == pytest.approx(1 - (fixed.stderr / result.stderr) ** 2)
    # Seeds that agree leave the images alone.
    alike = [np.tile(RNG.random(300) < 0.2, (3, 1)) for _ in range(2)]
    result = compare_series(*map(series, alike), images="sampled", paired=paired)
    expected = stats.ttest_1samp(alike[1][0] * 1.0 - alike[0][0], 0)
    assert result.p_value == pytest.approx(expected.pvalue, rel=0.05)
    assert result.image_share == pytest.approx(1)


def test_seeds_that_do_not_spread_tell_nothing():
    result = compare({1: 0.99, 2: 0.99}, {1: 0.98, 2: 0.98})
    assert (result.p_value, result.low, result.high) == (1, -np.inf, np.inf)
    assert compare(A, A, paired=True).p_value == 1


def test_seeds_needed_has_the_power_asked_for():
    """64 a side for half a deviation, and 34 pairs, as in Cohen's tables."""
    one = compare(A, B)
    unpaired, pairs = (one._replace(seed_variances=(0.01,) * n) for n in (2, 1))
    assert (unpaired.seeds_needed(0.05), pairs.seeds_needed(0.05), unpaired.seeds_needed(5)) == (64, 34, 2)
    assert unpaired._replace(image_variance=1e-3).seeds_needed(0.05) is None
    refused("difference 0 cannot", unpaired.seeds_needed, 0)
    refused("power 1 cannot", unpaired.seeds_needed, 0.1, 1)


def test_all_against_the_best_are_corrected_for_all_pairs():
    means = {"a": 0.9, "b": 0.94, "c": 0.91}
    many = {name: Series(dict(enumerate(RNG.normal(mean, 0.01, 5)))) for name, mean in means.items()}
    best, others = against_best(many)
    assert (best, list(others)) == ("b", ["a", "c"])
    pairs = {pair: compare_series(many[pair[0]], many[pair[1]]) for pair in ("ba", "bc", "ca")}
    raw = sorted(pair.p_value for pair in pairs.values())
    stepped = dict(zip(raw, np.minimum(np.maximum.accumulate(np.array(raw) * [3, 2, 1]), 1), strict=True))
    for name, corrected in others.items():
        assert corrected.p_value == pytest.approx(stepped[pairs["b" + name].p_value])
        assert corrected.low < pairs["b" + name].low
    assert against_best({"a": many["a"], "b": many["b"]})[1]["a"] == pairs["ba"]
    refused("1 series", against_best, {"a": many["a"]})
    refused("b and d: a series has fewer than two seeds", against_best, {"b": many["b"], "d": Series({1: 0.9})})


def test_mcnemar_by_the_majority_of_seeds():
    one = Series(dict.fromkeys((1, 2, 3), 0.9), {1: [1, 2, 9], 2: [1, 2], 3: [3, 1]}, 100)
    other = Series(dict.fromkeys((1, 2), 0.9), {1: [2, 5, 6, 7], 2: [2, 5, 6, 8]}, 100)
    refused("seed 1 has errors beyond its 9 images", mcnemar, *(series._replace(count=9) for series in (one, other)))
    result = mcnemar(one, other)
    assert (result.only_a, result.only_b) == ([5, 6], [1])
    assert result.p_value == pytest.approx(stats.binomtest(1, 3).pvalue)


def test_verdicts_are_right_as_often_as_they_say():
    """In the stored simulation, whose limits are those of its page; and in one of normal seeds, here."""
    found = json.loads((ROOT / "results" / "series" / "comparisons.json").read_text("utf-8"))
    assert found["comparisons"] >= 2000
    assert {(case["images"], case["paired"]) for case in found["cases"]} == {
        (images, paired) for images in ("fixed", "sampled") for paired in (False, True)
    }
    assert {case["seeds"] for case in found["cases"]} >= {3, 20}
    for case in found["cases"]:
        assert 0.93 <= case["coverage"] <= 0.97, case
        assert max(case["equal_different"], case["any_of_ten_different"]) <= 0.06, case
    drawn = RNG.normal(0.995, 0.0005, (400, 2, 4))
    results = [compare(dict(enumerate(a)), dict(enumerate(b + 0.001))) for a, b in drawn]
    assert 0.92 < np.mean([result.low <= -0.001 <= result.high for result in results]) < 0.99


def test_the_simulation_counts(tmp_path):
    out = tmp_path / "c.json"
    assert run_script("simulate_comparisons.py", "--times", "8", "--seeds", "4", "--out", out)[0] == 0
    found = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert found["difference"] == pytest.approx(compare(*FILES[:2]).difference)
    assert [case["coverage"] > 0.4 and case["equal_different"] < 0.6 for case in found["cases"]] == [True] * 4


def trial(seed, accuracy, errors=(), **config):
    history = (EpochMetrics(1, 0.1, 0.99, 0.1, accuracy, 1.0),) if accuracy else ()
    config = {"arch": "gap", "recipe": "default", "seed": seed, **config}
    return records.Trial(config, history=history, errors=errors, diverged=None if accuracy else "at once")


def write(path, *trials):
    records.prepare_trials(path)
    records.append_trials(path, *trials)
    return path


def test_trials_files_and_accuracies_are_the_same_series(tmp_path):
    one = [trial(seed, 0.98, (seed, 5)) for seed in (1, 2)]
    assert series_of(one) == series_of(write(tmp_path / "one.jsonl", *one))
    assert (series_of(one).count, series_of(one).scored) == (100, "100 test images of mnist")
    assert series_of({1: 0.98, 2: 0.98}).accuracies == series_of(one).accuracies
    both = write(tmp_path / "both.jsonl", *one, *(trial(seed, 0.97, learning_rate=0.5) for seed in (1, 2)))
    assert list(read_series(both)) == ["both, learning_rate 0.005", "both, learning_rate 0.5"]
    far = [trial(seed, 0.98, (seed, 5), held_out=10) for seed in (1, 2)]
    for said, a, options in (
        ("hold 2 settings", str(both), {}),
        ("seed 1 twice", [*one, *one], {}),
        ("seed 3, which diverged", [*one, trial(3, None)], {}),
        ("10 held-out images of mnist", far, {}),
        ("fewer than two seeds", {1: 0.5}, {}),
        ("errors of each seed by image", {1: 0.5, 2: 0.6}, {"images": "sampled"}),
        ("share 1 of their seeds", {1: 0.5, 9: 0.6}, {"paired": True}),
    ):
        refused(said, compare, a, one, **options)


def test_the_command_says_it_in_a_sentence_and_on_a_page(call, tmp_path):
    status, out, err = call("compare", *FILES[:2])
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    words = " ".join(out.split())
    a, b = ((f"default-{arch}", series_of(path)) for arch, path in zip(("accurate", "bn_dropout"), FILES, strict=False))
    assert sentence(a, b, compare(*FILES[:2])) in words
    assert re.search(r"seeds 4\d% and images 5\d%; both random: 95% 0\.0", words)
    assert "at 80% power: 0.1: 5, 0.05: 16, 0.02: 92" in words
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert_accessible(page)
    assert not re.search(r"https?:|@import|url\(|<script", page)
    images = mcnemar(a[1], b[1])
    assert page.count("data:image/png") == len(images.only_a) + len(images.only_b)
    assert page.count("data:image/svg") == 2
    few = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for i, path in enumerate(few):
        write(path, *(trial(seed, 0.98, (seed, 5 + i), dataset="x") for seed in (1, 2, 3)))
    status, out, err = call("compare", *few, "--images", "sampled", "--paired", "--out", "all.html")
    assert (status, out.count("Holm's method for 3 pairs")) == (0, 2)
    assert err.startswith("note: images are told by their indices alone: ")
    assert "a alone, not c" in (tmp_path / "all.html").read_text(encoding="utf-8")
    lone = write(tmp_path / "lone.jsonl", trial(1, 0.9))
    status, _, err = call("compare", lone, FILES[0])
    assert (status, err.splitlines()[0]) == (2, "note: 1 setting with one seed, which has no spread: left out")
    assert "error: 1 series to compare" in err
