"""Pages of tables and pictures, one HTML file each, from the jinja2 template `page.html.j2`."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from dist_prune.files import write_atomic
from dist_prune.monitor import style
from dist_prune.monitor.formatting import NOT_MEASURED


class Table(NamedTuple):
    """A table of texts. The first `words` columns are words, the others numbers; a float is drawn as a bar."""

    title: str
    rows: Sequence[Sequence[str | float]]
    words: int = 1
    header: Sequence[str] = ()
    note: str = ""


class Picture(NamedTuple):
    """A picture of a page. Its file is `name`.png."""

    name: str
    caption: str
    png: bytes


def write_pictures(folder: Path, figures: Mapping[str, tuple[str, Iterable[Figure]]]) -> list[Picture]:
    """Write figures as PNG files into `folder`. Those of one name, which share a caption, are numbered."""
    pictures = [
        Picture(name if number == 1 else f"{name}-{number}", caption, style.png(figure))
        for name, (caption, members) in figures.items()
        for number, figure in enumerate(members, start=1)
    ]
    for picture in pictures:
        write_atomic(folder / f"{picture.name}.png", picture.png)
    return pictures


def write_page(
    path: Path,
    title: str,
    state: str,
    tables: Sequence[Table],
    pictures: Sequence[Picture],
    warning: str | None = None,
    config_json: str | None = None,
) -> Path:
    """Write a page that needs no other file, with the pictures after the first table."""
    # Every value is escaped: names of recipes, classes, sites and folders may come from untrusted files.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["NOT_MEASURED"] = NOT_MEASURED
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    page = environment.get_template("page.html.j2").render(
        title=title, state=state, tables=tables, pictures=pictures, warning=warning, config_json=config_json
    )
    write_atomic(path, page.encode())
    return path
