import dataclasses
import re

import numpy as np
import pytest
from conftest import as_trained, assert_accessible, finished_run, initial_variables, part, refused, wrong

from mnist_jax import load_pretrained, make_config, make_model
from mnist_jax.reports import comparison
from mnist_jax.reports.comparison import Run, group


@pytest.fixture(scope="module")
def scored(mnist):
    return part(mnist, 1, 500)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, scored):
    """Two seeds of the shipped weights and a network that has learnt nothing; what each gets wrong."""
    root = tmp_path_factory.mktemp("runs")
    trained = load_pretrained("bn_dropout")
    fresh = initial_variables(make_model("gap"))
    missed = [set(wrong(network, scored.test)) for network in (trained, as_trained(make_model("gap"), fresh))]
    good = trained.variables
    directories = [
        finished_run(root / "one", good, [0.98, 0.994], seed=1),
        finished_run(root / "two", good, [0.98, 0.996], seed=2),
        finished_run(root / "gap", fresh, [0.1, 0.2], arch="gap", recipe="reference"),
    ]
    return directories, missed


def test_seeds_are_one_group_and_other_settings_are_named():
    config = make_config()
    others = [
        dataclasses.replace(config, seed=2, run_dir="elsewhere", eval_batch_size=100),
        dataclasses.replace(config, learning_rate=0.5),
        make_config("reference", arch="gap"),
    ]
    found = group([Run(each, [], 9920, np.array([])) for each in (config, *others)])
    assert {name: len(members) for name, members in found.items()} == {
        "bn_dropout, default, learning_rate 0.02": 2,
        "bn_dropout, default, learning_rate 0.5": 1,
        "gap, reference": 1,
    }


def test_the_page_is_of_runs_scored_on_the_same_images(runs, scored, tmp_path):
    directories, missed = runs
    out = comparison.write_comparison(directories, scored, tmp_path / "ladder.html")
    text = out.read_text(encoding="utf-8")
    assert (tmp_path / "ladder.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert_accessible(text)
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    rows = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in rows]
    assert rows[1:] == [
        "bn_dropout, default 99.50 ± 0.14 99.40 99.60 9,920 2 1, 2 97.00 18",
        "gap, reference 20.00 20.00 20.00 9,752 2 1 97.00 18",
    ]
    everywhere, anywhere = len(missed[0] & missed[1]), len(missed[0] | missed[1])
    assert f"{everywhere} of 500 images are got wrong by every run, and {anywhere} by at least one" in text
    held_out = finished_run(tmp_path / "held_out", load_pretrained("bn_dropout").variables, [0.99], held_out=100)
    both = [runs[0][0], held_out]
    refused("holds out 100 images", comparison.write_comparison, both, scored, tmp_path / "x.html")


def test_the_script(optimizing, call, runs, tmp_path):
    status, out, err = call("compare", *runs[0])
    assert (status, err) == (0, "")
    assert out.startswith("compare.html: 3 runs")
    assert (tmp_path / "compare.html").exists()
    status, out, err = call("compare", runs[0][0], "--out", "absent/x.html")
    assert (status, out, err.count("\n"), "absent/x" in err) == (4, "", 1, True)
