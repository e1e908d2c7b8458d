"""The package's templates of pages: what comes into one is escaped, unless it is said to be markup."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from chainlift.report import style

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2 import Template


def template(name: str, **filters: Callable[..., object]) -> Template:
    """Return a template; with ``inline``, which puts a picture into the page, and more filters by their names."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("chainlift.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = lambda picture: Markup(style.svg_inline(picture))  # what style escapes
    environment.filters.update(filters)
    return environment.get_template(name)


def template_file(*names: str) -> str:
    """Return the text of files beside the templates."""
    directory = files("chainlift.report").joinpath("templates")
    return "".join(directory.joinpath(name).read_text(encoding="utf-8") for name in names)
