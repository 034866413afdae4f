"""Templates become pages: escaped, style and script inside, with a policy that says so."""

import base64
import hashlib
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, *, script: str | None = None, **values: Any) -> str:
    """A page as HTML text.

    Args:
        template: a file of `templates/`.
        script: another one, the page's JavaScript; None for a page that runs none.
        values: what the template shows; texts are escaped.
    """
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    code = None if script is None else _source(script)
    if code is not None:
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
    page = _environment().get_template(template)
    return page.render(policy=policy, style=Markup(_source("style.css")), script=code, **values)


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("pipeline.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(name: str) -> Markup:
    """A file of `templates/` as it is: our own, nothing in it comes from data."""
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])
