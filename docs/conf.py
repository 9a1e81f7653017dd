"""The documentation's site: `sphinx-build -W docs docs/_build` with the extra `docs`; nothing is fetched."""

import contextlib
import io
import os
import shutil
from pathlib import Path
from unittest import mock

from sphinx.application import Sphinx

import mnist_jax
from mnist_jax import cli
from mnist_jax.deploy import export, reading

HERE = Path(__file__).parent
MADE = HERE / "made"  # What is made for the site; git ignores it.

project = "mnist_jax"
author = copyright = "The mnist_jax developers"  # noqa: A001
version = release = mnist_jax.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["jupyter_execute", "_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"
default_role = "py:obj"
autodoc_typehints = "none"  # The text of the arguments has shapes and dtypes.
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]

html_theme = "furo"
html_title = "mnist_jax"
html_static_path = []
html_extra_path = ["made/draw"]
html_theme_options = {
    "source_repository": "https://github.com/mnist-jax/mnist_jax/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def help_of(command: str) -> str:
    """What `mnist-jax COMMAND --help` prints."""
    said = io.StringIO()
    columns = mock.patch.dict(os.environ, COLUMNS="80")
    with columns, contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([command, "--help"])
    return said.getvalue()


def make_commands() -> str:
    """The page of the commands, in Markdown."""
    head = "# Commands\n\n`mnist-jax COMMAND`. With uv, after `uv run`.\n"
    parts = (f"## {name}\n\n```text\n{help_of(name).strip()}\n```\n" for name in cli.COMMANDS)
    return "\n".join([head, *parts])


def make_page() -> str:
    """The page to draw on, with three networks."""
    names = ("accurate-held-out", "small", "swift")
    networks = [mnist_jax.load_pretrained(name) for name in names]
    image = mnist_jax.load_dataset("mnist").test.images[0]
    return export.to_page(networks, image, [reading.load_doubts().get(name) for name in names])


(MADE / "draw").mkdir(parents=True, exist_ok=True)
(MADE / "commands.md").write_text(make_commands(), encoding="utf-8")
(MADE / "draw" / "draw.html").write_text(make_page(), encoding="utf-8")
shutil.copy(HERE.parent / "notebooks" / "tour.ipynb", MADE / "tour.ipynb")


def reachable(app: Sphinx, name: str, template: str, context: dict, doctree: object) -> None:
    """Lets the keyboard reach what scrolls sideways, and gives the captions of the menu a level."""
    tree, body = context.get("furo_navigation_tree", ""), context.get("body", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    scrolls = 'class="table-wrapper'
    context["body"] = body.replace("<pre>", '<pre tabindex="0">').replace(scrolls, f'tabindex="0" {scrolls}')


def setup(app: Sphinx) -> None:
    """Connects the hook, after the theme's own."""
    app.connect("html-page-context", reachable, priority=900)
