"""Runs notebooks/tour.ipynb and stores its outputs in it."""

import dataclasses
import hashlib
from pathlib import Path

from mnist_jax.cli import run


@dataclasses.dataclass(frozen=True)
class Options:
    """Runs the tour and stores its outputs in it, for readers who do not run it. Needs the extra docs.

    A test asks that the outputs belong to the code.

    Example: python scripts/execute_tour.py --notebook notebooks/tour.ipynb
    """

    notebook: Path = Path(__file__).parent.parent / "notebooks" / "tour.ipynb"
    """File to run and write."""


def main(options: Options) -> None:
    """Executes every cell; writes the notebook if none failed or warned."""
    import nbclient  # Help is there without these.
    import nbformat

    notebook = nbformat.read(options.notebook, as_version=4)
    settings = {"timeout": None, "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, kernel_name="python3", **settings).execute()
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
    nbformat.write(notebook, options.notebook)


if __name__ == "__main__":
    run(main, Options)
