import json
import re
from xml.etree import ElementTree

from conftest import assert_accessible, finished_run, part, refused, wrong

from mnist_jax import load_pretrained, predict
from mnist_jax.reports.report import commit, write_report


def test_the_page_is_whole_in_itself_and_says_what_the_weights_do(mnist, tmp_path):
    trained, data, run_dir = load_pretrained("bn_dropout"), part(mnist, 200, 2500), tmp_path / "run"
    finished_run(run_dir, trained.variables, [0.99] * 3)
    text = write_report(run_dir, data, "mnist-jax train --arch '<own>'").read_text(encoding="utf-8")
    assert_accessible(text)
    assert "<code>mnist-jax train --arch &#39;&lt;own&gt;&#39;</code>" in text
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d[+-]\d\d:\d\d", text)
    assert (f", commit {commit()}" in text) == (commit() is not None)
    # Well-formed, but for the tags that HTML does not close.
    ElementTree.fromstring(re.sub(r"<!doctype html>|<(meta|img|source)[^>]*>", "", text))
    assert len(re.findall(r'<img [^>]*alt="[^"]+"', text)) == text.count("<img ") == 7
    addresses = re.findall(r' (?:src|srcset|href)="([^"]*)"', text)
    assert all(address.startswith("data:image/png;base64,") for address in addresses)
    assert not re.search(r"https?:|@import|url\(|<script", text)
    assert "<b>odd" not in text
    assert "&lt;b&gt;odd &amp; named&lt;/b&gt;" in text
    names = sorted(path.name for path in (run_dir / "figures").iterdir())
    assert len(names) == 14
    assert "errors-dark.png" in names
    missed, guesses = wrong(trained, data.test), predict(trained, data.test.images).argmax(-1)
    assert f"All {len(missed)} of them" in text
    rows = re.findall("<tr>" + r'<td class="number">(\d+)</td>' * 3, text)
    assert {tuple(map(int, row)) for row in rows} == {(i, data.test.labels[i], guesses[i]) for i in missed}
    probabilities = [float(value) for value in re.findall(r'<td class="number">([\d.]+) %</td>', text)]
    assert probabilities == sorted(probabilities, reverse=True)
    for condition in json.loads((run_dir / "summary.json").read_text())["objective"]:
        assert condition["value"] in text
    refused("holds no run", write_report, run_dir / "figures", data)  # Nor is one finished there.
