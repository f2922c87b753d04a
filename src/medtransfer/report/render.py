"""Fill in Jinja templates."""

from typing import Any

import jinja2


def render(package: str, template: str, **values: Any) -> str:
    """Return a template in the folder templates/ of a package, filled in with `values`; only HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package), autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(values)
