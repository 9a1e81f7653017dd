"""The Colab notebook, from top to bottom, on the package as it is checked out."""

import importlib.util
import tomllib

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "colab_tpu.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own.
def test_it_runs_from_top_to_bottom(monkeypatch, tmp_path):
    for name, value in {"EPOCHS": "1", "SEEDS": "2", "IMAGES": "256", "MPLBACKEND": "agg"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(tmp_path))
    said = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert "epoch  1  test accuracy" in said
    assert "parameters: 9,920 (fewer than 10,000) - met" in said
    assert "2 seeds in" in said
    assert (tmp_path / "runs" / "colab" / "bn_dropout.safetensors").exists()


def test_it_is_committed_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata.accelerator == "TPU"
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


def test_its_address_is_the_projects_and_one_that_fails_says_what_to_set(monkeypatch, tmp_path):
    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    path = f"{address.removeprefix('https://')}/blob/main/{NOTEBOOK.relative_to(ROOT)}"
    assert path.replace("github.com", "colab.research.google.com/github") in (ROOT / "README.md").read_text("utf-8")
    first = next(cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code")
    assert f'"git+{address}"' in first
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"cannot be installed from {absent}: set SOURCE above"):
        exec(first.replace(f"git+{address}", absent), {})
