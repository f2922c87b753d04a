"""Fill in Jinja templates."""

import base64
from typing import Any

import jinja2


def render(package: str, template: str, **values: Any) -> str:
    """Return a template in the folder templates/ of a package, filled in with `values`; only HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package), autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(values)


def png_uri(png: bytes) -> str:
    """Return a PNG file as an address that a page can show without another file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()
