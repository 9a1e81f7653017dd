"""The pages of one run and of many, and their pictures."""

import base64
import dataclasses
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import (
    PREPARED,
    as_trained,
    assert_accessible,
    assert_refused,
    finished_run,
    initial_variables,
    part,
    refused,
    wrong,
)
from PIL import Image

from mnist_jax import compare, load_dataset, load_pretrained, make_config, make_model, predict
from mnist_jax.reports import figures
from mnist_jax.reports.comparison import Run, group
from mnist_jax.reports.page import small_images
from mnist_jax.reports.report import write_report
from mnist_jax.statistics import confusion

ODD = ("US$", r"$\foo$", "[b]", "七", "<b>", "{{ x }}", "_x", "a & b", "'\"", "$a$ and $b$")


def parsed(page):
    """The elements of a page, which is whole in itself: well-formed, but for the tags that HTML does not close."""
    assert_accessible(page)
    assert not re.search(r"https?:|@import|url\(|<script", page)
    return ElementTree.fromstring(re.sub(r"<((?:meta|img)\b[^>]*)>", r"<\1/>", page.replace("<!doctype html>", "")))


def tables(page):
    """The texts of the cells of every table."""
    return [[["".join(cell.itertext()) for cell in row] for row in table] for table in page.iter("table")]


def test_the_report_shows_what_the_weights_do_and_names_as_they_are(mnist, tmp_path):
    trained, data = load_pretrained("bn_dropout"), dataclasses.replace(part(mnist, 200, 2500), classes=ODD)
    run_dir = finished_run(tmp_path / "run", trained.variables, [0.99] * 3, data)
    page = parsed(write_report(run_dir, data, "mnist-jax train --arch '<own>'").read_text(encoding="utf-8"))
    assert "mnist-jax train --arch '<own>'" in [line.text for line in page.iter("p")]
    conditions, matrix, errors, layers, settings, environment = tables(page)
    recorded = json.loads((run_dir / "summary.json").read_text())["objective"]
    assert [row[:3] for row in conditions[1:]] == [[each["name"], each["value"], each["target"]] for each in recorded]
    guesses, missed = predict(trained, data.test.images).argmax(-1), wrong(trained, data.test)
    counts = confusion(data.test.labels, guesses, 10)
    assert matrix[0][1:] == [row[0] for row in matrix[1:]] == [*ODD]
    assert [[int(cell or 0) for cell in row[1:]] for row in matrix[1:]] == counts.tolist()
    expected = {(str(i), ODD[data.test.labels[i]], ODD[guesses[i]]) for i in missed}
    assert {tuple(row[:3]) for row in errors[1:]} == expected
    shares = [float(row[3].rstrip("%")) for row in errors[1:]]
    assert shares == sorted(shares, reverse=True)
    assert (layers[-1][3], settings[1], environment[1]) == (
        "9,920",
        ["arch", "bn_dropout"],
        ["cpu", "<b>odd & named</b>"],
    )
    images = [base64.b64decode(image.get("src").partition(";base64,")[2]) for image in page.iter("img")]
    assert sum(image.startswith(b"\x89PNG") for image in images) == len(missed) + 16
    assert sum(image.startswith(b"<?xml") for image in images) == 4
    refused("holds no run", write_report, tmp_path, data)


def test_runs_side_by_side(call, tmp_path):
    """Two seeds of the shipped weights and a network that has learnt nothing."""
    source = {"data_source": "tfds", "data_dir": str(PREPARED)}
    scored = load_dataset("mnist", data_dir=PREPARED, source="tfds").test
    trained, fresh = load_pretrained("swift"), initial_variables(make_model("4-pool"))
    runs = [
        finished_run(tmp_path / "one", trained.variables, [0.98, 0.994], arch="swift", seed=1, **source),
        finished_run(tmp_path / "two", trained.variables, [0.98, 0.996], arch="swift", seed=2, **source),
        finished_run(tmp_path / "fresh", fresh, [0.1, 0.2], arch="4-pool", recipe="reference", **source),
    ]
    assert call("compare", *runs) == (0, "compare.html: 3 runs\n", "")
    page = parsed((tmp_path / "compare.html").read_text(encoding="utf-8"))
    ((_, *rows),) = tables(page)
    assert rows == [
        ["swift, default", "99.50 ± 0.14", "99.40", "99.60", "97.00", "9,910", "2", "1, 2", "18"],
        ["4-pool, reference", "20.00", "20.00", "20.00", "97.00", "80", "2", "1", "18"],
    ]
    missed, others = (set(wrong(each, scored)) for each in (trained, as_trained(make_model("4-pool"), fresh)))
    (line,) = [line.text for line in page.iter("p") if "every run" in line.text]
    counts = [len(missed & others), len(scored.labels), len(missed | others)]
    assert [int(number) for number in re.findall(r"\d+", line)][:3] == counts
    assert len([*page.iter("img")]) == len(missed & others) + 1
    status, out, err = call("compare", runs[0], "--out", "absent/x.html")
    assert (status, out, err.count("\n"), "absent/x.html" in err) == (4, "", 1, True)
    held_out = finished_run(tmp_path / "held_out", trained.variables, [0.9], arch="swift", held_out=10)
    assert_refused(call("compare", runs[0], held_out, "--dataset", "mnist"), "holds out 10 images")


def test_seeds_are_one_group_and_other_settings_are_named():
    config = make_config()
    others = [
        dataclasses.replace(config, seed=2, run_dir="elsewhere", eval_batch_size=100),
        dataclasses.replace(config, learning_rate=0.5),
        make_config("reference", arch="gap"),
    ]
    groups = group([Run(each, [], 9920, np.array([])) for each in (config, *others)])
    assert {name: len(members) for name, members in groups.items()} == {
        "bn_dropout, default, learning_rate 0.02": 2,
        "bn_dropout, default, learning_rate 0.5": 1,
        "gap, reference": 1,
    }


@pytest.mark.parametrize(("channels", "scale"), [(1, 1), (3, np.float32(255))])
def test_images_are_shown_one_channel_as_ink_on_paper_three_as_they_are(channels, scale):
    images = np.random.default_rng(0).integers(0, 256, (203, 5, 4, channels), np.uint8)
    pictures = small_images(images if scale == 1 else images / scale, list(map(str, range(203))))
    assert [each.caption for each in pictures] == [str(i) for i in range(200)]
    for each, image in zip(pictures, images, strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(each.address.partition(",")[2]))))
        np.testing.assert_array_equal(pixels, 255 - image[..., 0] if channels == 1 else image)
        assert each.drawn == (channels == 1)


RANDOM = np.random.default_rng(0)
CURVES = {name: RANDOM.uniform(0.9, 0.99, (2, 3)) for name in ODD if not name.startswith("_")}
COMPARED = {name: compare(RANDOM.uniform(0.9, 1, 5), RANDOM.uniform(0.9, 1, 5)) for name in ODD}


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda: figures.losses(CURVES), CURVES),
        (lambda: figures.accuracies(CURVES, 0.994), CURVES),
        (lambda: figures.seed_dots({name: 100 * RANDOM.uniform(0.9, 1, 5) for name in ODD}), ODD),
        (lambda: figures.differences(COMPARED | {"same": compare([0.9] * 2, [0.9] * 2)}), ODD),
    ],
)
def test_figures_write_names_as_they_are(draw, names):
    with figures.style():
        drawn = draw()
    texts = ["".join(element.itertext()) for element in ElementTree.fromstring(figures.svg(drawn)).iter()]
    assert {*names} <= {*texts}


def test_curves_and_dots_show_every_value():
    with figures.style():
        axis = figures.accuracies({"train": np.array([[0.9, 0.95]]), "test": np.array([[0.8, 0.9], [0.6, 0.8]])}, 0.994)
        dots = figures.seed_dots({"a": np.array([99.0, 98.0, 99.0])})
    train, scored, target = axis.axes[0].lines
    np.testing.assert_allclose(train.get_ydata(), [0.9, 0.95])
    np.testing.assert_allclose(scored.get_ydata(), [0.7, 0.85])
    assert target.get_ydata()[0] == 0.994
    places = dots.axes[0].lines[0].get_xydata()
    assert sorted(places[:, 0]) == [98, 99, 99]
    assert len({*map(tuple, places)}) == 3
