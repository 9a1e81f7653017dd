"""What a person looks at: the report of a run, several runs side by side, README's figures."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

import jinja2

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("mnist_jax.reports"), autoescape=True, undefined=jinja2.StrictUndefined
)


def render(template: str, **values: Any) -> str:
    """A page of `templates/`, filled in."""
    return _PAGES.get_template(template).render(**values)


@contextlib.contextmanager
def any_backend() -> Iterator[None]:
    """Lets matplotlib be imported where the environment names a backend that is not installed; figures need none."""
    named, imported = os.environ.pop("MPLBACKEND", None), "matplotlib" in sys.modules
    try:
        yield
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
            if not imported:
                with contextlib.suppress(ValueError):  # Else matplotlib would have refused to be imported.
                    sys.modules["matplotlib"].rcParams["backend"] = named
