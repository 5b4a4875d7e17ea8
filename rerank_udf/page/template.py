"""A view → HTML. Everything is escaped: texts come from anywhere."""

from __future__ import annotations

from importlib import resources

import jinja2

from rerank_udf.page.view import View


def html_of(view: View) -> str:
    """The whole page, its style sheet inside."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(view=view)


def _source(name: str) -> str:
    """A file beside this one; the package may lie in a zip."""
    return resources.files("rerank_udf.page").joinpath(name).read_text(encoding="utf-8")
