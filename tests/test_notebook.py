"""The notebooks, from top to bottom, on the package as it is checked out."""

import hashlib
import importlib.util
import json
import re
import sys
import tomllib
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from conftest import ROOT, part

import mnist_jax

NAMES = ("tour", "colab_tpu")
PATHS = {name: ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES}
BOOKS = {name: json.loads(path.read_text("utf-8")) for name, path in PATHS.items()}
CELLS = {name: [cell for cell in book["cells"] if cell["cell_type"] == "code"] for name, book in BOOKS.items()}


def source(cell):
    return "".join(cell["source"])


def run(name):
    """Runs a notebook's cells, and gives its names and, for each cell, the figures that it leaves open."""
    names, figures = {"__name__": "__main__"}, []
    with mpl.rc_context({"backend": "template"}):  # It draws nothing.
        for i, cell in enumerate(CELLS[name]):
            exec(compile(source(cell), f"{name}, cell {i}", "exec"), names)
            figures.append([plt.figure(number) for number in plt.get_fignums()])
            plt.close("all")
    return names, figures


@pytest.mark.slow
def test_the_tour_runs_from_top_to_bottom(mnist, monkeypatch, capsys):
    monkeypatch.setattr(mnist_jax, "load_dataset", lambda name: part(mnist, 128, 128))
    names, figures = run("tour")
    printed = capsys.readouterr().out
    assert "parameters: 9,910 (fewer than 10,000), met" in printed
    assert re.search(r"^375 ", printed, re.MULTILINE)
    assert {name: len(values) for name, values in names["accuracies"].items()} == {"cross-entropy": 5, "focal loss": 5}
    assert sum(map(len, figures)) == 7
    for cell, drawn in zip(CELLS["tour"], figures, strict=True):
        assert all(figure.get_suptitle() or figure.axes[0].get_title() for figure in drawn)
        shown = [output for output in cell["outputs"] if "image/png" in output.get("data", {})]
        assert len(shown) == len(drawn)
        for output in shown:
            assert output["metadata"]["image/png"]["alt"] == cell["metadata"]["mystnb"]["image"]["alt"]


def test_the_tours_outputs_are_those_of_its_code():
    """`scripts/execute_tour.py` writes them."""
    cells = CELLS["tour"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    code = "\n".join(source(cell) for cell in cells)
    assert BOOKS["tour"]["metadata"]["executed_code_sha256"] == hashlib.sha256(code.encode()).hexdigest()
    outputs = [output for cell in cells for output in cell["outputs"]]
    printed = "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert len(re.findall(r"\), met$", printed, re.MULTILINE)) == 4
    assert not re.findall(r"(?:^|[\s'\"(])/\w|\r|\x1b|Warning", printed)  # A path of whoever ran it, a progress bar.
    assert PATHS["tour"].stat().st_size < 700_000


@pytest.mark.slow
def test_the_colab_notebook_runs_from_top_to_bottom(mnist, monkeypatch, tmp_path, capsys):
    """On few images too it learns, says how far it is, and shows figures with texts."""
    shown = []
    stub = SimpleNamespace(publish_display_data=lambda data: shown.append(data["text/html"]))
    monkeypatch.setitem(sys.modules, "IPython.display", stub)
    monkeypatch.setattr(mnist_jax, "load_dataset", lambda name: part(mnist, 256, 200))
    for name, value in {"EPOCHS": "1", "SEEDS": "2", "IMAGES": "256"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    names, figures = run("colab_tpu")
    printed = capsys.readouterr().out
    assert len(re.findall(r"^(?:seed +\d  )?epoch  1  test accuracy", printed, re.MULTILINE)) == 4
    assert "parameters: 9,910 (fewer than 10,000), met" in printed
    assert len(names["accuracies"]) == 2
    assert names["swift_history"][-1].test_accuracy > 0.3
    assert (tmp_path / "runs" / "colab" / "accurate.safetensors").exists()
    assert not any(figures)  # They are shown by `show`.
    assert len(shown) == 4
    assert all(re.match(r'<img alt="[^"]+\." src="data:image/png;base64,iVBOR', image) for image in shown)


def test_it_has_no_outputs_its_address_is_the_projects_and_one_that_fails_says_what_to_set(monkeypatch, tmp_path):
    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    path = f"{address.removeprefix('https://')}/blob/main/{PATHS['colab_tpu'].relative_to(ROOT)}"
    assert path.replace("github.com", "colab.research.google.com/github") in (ROOT / "README.md").read_text("utf-8")
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS["colab_tpu"])
    first = source(CELLS["colab_tpu"][0])
    assert f'"git+{address}"' in first
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"cannot be installed from {absent}: set SOURCE above"):
        exec(first.replace(f"git+{address}", absent), {})
