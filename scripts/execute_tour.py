"""Runs notebooks/tour.ipynb and stores its outputs in it, for who reads it without running it.

Wants the extra `docs`. A test asks that the outputs belong to the code.
"""

import hashlib
from pathlib import Path

import nbclient
import nbformat

TOUR = Path(__file__).parent.parent / "notebooks" / "tour.ipynb"


def main() -> None:
    """Executes every cell; writes the notebook if none failed or warned."""
    notebook = nbformat.read(TOUR, as_version=4)
    options = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, kernel_name="python3", **options).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise SystemExit(f"cell {cell.id} says on standard error: {output.text}")
            if "image/png" in output.get("data", {}):  # For JupyterLab and nbconvert; Sphinx reads the cell's.
                output.metadata["image/png"] = {"alt": cell.metadata["mystnb"]["image"]["alt"]}
    code = "\n".join(cell.source for cell in cells)
    notebook.metadata = {
        "kernelspec": notebook.metadata.kernelspec,
        "language_info": {"name": "python"},
        "executed_code_sha256": hashlib.sha256(code.encode()).hexdigest(),
    }
    nbformat.write(notebook, TOUR)


if __name__ == "__main__":
    main()
