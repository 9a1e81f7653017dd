import dataclasses
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import finished_run, part

from mnist_jax import InputError, load_pretrained, make_config, predict
from mnist_jax.reports.report import write_report


@pytest.fixture(scope="module")
def run(mnist, tmp_path_factory):
    """A finished run with the shipped weights, scored on 500 test images; its directory and what was scored."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    return finished_run(run_dir, load_pretrained("bn_dropout").variables, [0.99] * 3), part(mnist, 0, 2500)


def test_the_page_is_whole_in_itself(run):
    run_dir, data = run
    text = write_report(run_dir, data).read_text(encoding="utf-8")
    # Well-formed, but for the tags that HTML does not close.
    ElementTree.fromstring(re.sub(r"<!doctype html>|<(meta|img|source)[^>]*>", "", text))
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == text.count("<img ") == 6
    addresses = re.findall(r' (?:src|srcset|href)="([^"]*)"', text)
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "<b>odd" not in text
    assert "&lt;b&gt;odd &amp; named&lt;/b&gt;" in text
    names = sorted(path.name for path in (run_dir / "figures").iterdir())
    assert len(names) == 12
    assert "errors-dark.png" in names


def test_the_page_says_what_the_weights_do(run):
    run_dir, data = run
    text = write_report(run_dir, data).read_text(encoding="utf-8")
    scored = data.test
    predictions = predict(load_pretrained("bn_dropout"), scored.images).argmax(-1)
    wrong = np.flatnonzero(predictions != scored.labels)
    assert f"All {len(wrong)} of them" in text
    rows = re.findall(
        r'<tr><td class="number">(\d+)</td><td class="number">(\d)</td><td class="number">(\d)</td>', text
    )
    assert {(int(i), int(true), int(guess)) for i, true, guess in rows} == {
        (i, scored.labels[i], predictions[i]) for i in wrong
    }
    probabilities = [float(value) for value in re.findall(r'<td class="number">([\d.]+) %</td>', text)]
    assert probabilities == sorted(probabilities, reverse=True)
    for condition in json.loads((run_dir / "summary.json").read_text())["objective"]:
        assert condition["value"] in text
    for name, value in dataclasses.asdict(make_config(epochs=3)).items():
        assert re.search(
            rf'<th scope="row">{name}</th><td>{re.escape(str("-" if value is None else value))}</td>', text
        )
    assert "9,920" in text


def test_no_report_of_a_run_that_is_not_finished(tmp_path, mnist):
    with pytest.raises(InputError, match="holds no run"):
        write_report(tmp_path, mnist)
