"""The Colab notebook, from top to bottom, on the package as it is checked out."""

import importlib.util
import json
import tomllib

import matplotlib as mpl
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "colab_tpu.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]
CODE = ["".join(cell["source"]) for cell in CELLS]


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(monkeypatch, tmp_path, capsys):
    for name, value in {"EPOCHS": "1", "SEEDS": "2", "IMAGES": "256"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "template"}):  # It draws nothing.
        for i, code in enumerate(CODE):
            exec(compile(code, f"cell {i}", "exec"), names)
    said = capsys.readouterr().out
    assert "epoch  1  test accuracy" in said
    assert "parameters: 9,920 (fewer than 10,000) - met" in said
    assert "2 seeds in" in said
    assert (tmp_path / "runs" / "colab" / "bn_dropout.safetensors").exists()


def test_it_has_no_outputs_its_address_is_the_projects_and_one_that_fails_says_what_to_set(monkeypatch, tmp_path):
    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    path = f"{address.removeprefix('https://')}/blob/main/{NOTEBOOK.relative_to(ROOT)}"
    assert path.replace("github.com", "colab.research.google.com/github") in (ROOT / "README.md").read_text("utf-8")
    assert CONTENT["metadata"]["accelerator"] == "TPU"
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CELLS)
    first = CODE[0]
    assert f'"git+{address}"' in first
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"cannot be installed from {absent}: set SOURCE above"):
        exec(first.replace(f"git+{address}", absent), {})
