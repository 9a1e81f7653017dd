"""The Colab notebook, from top to bottom, on the package as it is checked out."""

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
