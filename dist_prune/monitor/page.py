"""Pages from jinja2 templates."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from dist_prune.monitor.formatting import NOT_MEASURED, percent

_SHARED_TEMPLATES = Path(__file__).parent  # base.html.j2, which every page extends


def render(template: Path, **values: Any) -> str:
    """Fill in a template, which may extend `base.html.j2`; a missing value is an error.

    HTML pages escape every value: names of recipes, classes, sites and folders may come from untrusted files.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED_TEMPLATES]),
        autoescape=lambda name: name is not None and not name.endswith(".md.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["NOT_MEASURED"] = NOT_MEASURED
    environment.filters |= {"percent": percent, "base64": lambda data: base64.b64encode(data).decode()}
    return environment.get_template(template.name).render(values)
