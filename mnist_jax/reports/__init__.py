"""What a person looks at: the report of a run, several runs side by side, a comparison of series."""

from typing import Any

import jinja2

_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("mnist_jax.reports"), autoescape=True, undefined=jinja2.StrictUndefined
)


def render(template: str, **values: Any) -> str:
    """A page of `templates/`, filled in."""
    return _PAGES.get_template(template).render(**values)
