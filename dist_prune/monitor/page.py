"""The report as one self-contained HTML page: data in, text out."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean
from typing import Any

from dist_prune.monitor.wording import NOT_MEASURED, percent

_CSS = """
:root { color-scheme: light; --ink: #222831; --quiet: #6b7480; --rule: #e3e6ea; --open: #E08A00; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
       color: var(--ink); background: #fff; max-width: 60rem; margin: 2.5rem auto 4rem; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.75rem 0 .75rem; }
.state { color: var(--quiet); margin: 0 0 2rem; }
.warning { border-left: 4px solid var(--open); background: #fdf6e6; padding: .6rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left;
         vertical-align: middle; }
thead th { color: var(--quiet); font-size: .85rem; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; }
.results { max-width: 38rem; }
.note { color: var(--quiet); font-size: .9rem; max-width: 45rem; }
.study { font-size: .85rem; }
.study thead th { vertical-align: bottom; min-width: 4.5rem; }
.study tbody th:first-child { min-width: 11rem; }
.none { color: var(--quiet); }
.bar { display: inline-block; width: 6rem; height: .6rem; background: #1b3767; vertical-align: baseline; }
.bar i { display: block; height: 100%; background: var(--open); }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figure { margin: 0 0 1.5rem; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .4rem; }
summary { cursor: pointer; font-weight: 600; margin-top: 2.75rem; }
pre { background: #f6f7f9; padding: 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.4; }
"""


def render_page(
    title: str,
    state: str,
    warning: str | None,
    results: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, bytes]],
    mask: Mapping[str, Any] | None,
    config_json: str | None,
) -> str:
    """The whole page; every text is escaped here.

    Args:
        title: the name of the run.
        state: one line on how the run stands.
        warning: what readers must know before they read on.
        results: (what, how much) of the headline table.
        pictures: (caption, PNG bytes); they are embedded.
        mask: the content of mask.json.
        config_json: the content of config.json.
    """
    figures = "\n".join(figure(caption, data) for caption, data in pictures)
    parts = [
        f'<p class="warning">{escape(warning)}</p>' if warning else "",
        "<h2>Results</h2>",
        _results(results),
        f"<h2>Pictures</h2>\n{figures}" if figures else "",
        _mask(mask) if mask else "",
        f"<details><summary>Configuration</summary><pre>{escape(config_json)}</pre></details>"
        if config_json
        else "",
    ]
    return document(title, state, parts)


def document(title: str, state: str, parts: Sequence[str]) -> str:
    """A page that needs no other file.

    Args:
        title: its heading, as plain text.
        state: the line below it, as plain text.
        parts: HTML; empty ones are left out.
    """
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>"
    )
    top = [f"<h1>{escape(title)}</h1>", f'<p class="state">{escape(state)}</p>']
    body = "\n".join([*top, *(part for part in parts if part)])
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def figure(caption: str, data: bytes) -> str:
    """A picture with its caption; `data` is a PNG, which becomes part of the page."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    text = escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def note(text: str) -> str:
    """A paragraph that explains what follows."""
    return f'<p class="note">{escape(text)}</p>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table of texts, of which the first `words` columns are words and the others numbers."""

    def row(texts: Sequence[str]) -> str:
        cells = [f"<th>{escape(text)}</th>" for text in texts[:words]]
        return "<tr>" + "".join([*cells, *map(_number, texts[words:])]) + "</tr>"

    heads = "".join(
        f"<th{' class=number' if column >= words else ''}>{escape(text)}</th>"
        for column, text in enumerate(head)
    )
    body = "\n".join(map(row, rows))
    return (
        f'<div class="wide"><table class="study"><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody>'
        "</table></div>"
    )


def _number(text: str) -> str:
    return f'<td class="number{" none" if text.startswith(NOT_MEASURED) else ""}">{escape(text)}</td>'


def _results(results: Sequence[tuple[str, str]]) -> str:
    rows = "\n".join(f"<tr><th>{escape(what)}</th>{_number(text)}</tr>" for what, text in results)
    return f'<table class="results"><tbody>\n{rows}\n</tbody></table>'


def _mask(mask: Mapping[str, Any]) -> str:
    head = (
        '<tr><th>site</th><th>kind</th><th class="number">units kept</th><th></th>'
        '<th class="number">mean opening</th><th class="number">agreement</th></tr>'
    )
    rows = "\n".join(_mask_row(site) for site in mask.get("sites", []))
    return (
        "<h2>Consensus mask</h2>\n"
        f'<div class="wide"><table><thead>{head}</thead><tbody>\n{rows}\n</tbody></table></div>'
    )


def _mask_row(site: Mapping[str, Any]) -> str:
    kept, units = site.get("kept"), site.get("units")
    kept = len(kept) if isinstance(kept, (list, tuple)) else kept
    share, bar = NOT_MEASURED, ""
    if kept is not None and units:
        share = f"{kept} of {units}"
        bar = f'<span class="bar"><i style="width:{100 * kept / units:.4g}%"></i></span>'
    return (
        f"<tr><th>{escape(str(site.get('name', '')))}</th><td>{escape(str(site.get('kind', '')))}</td>"
        f"{_number(share)}<td>{bar}</td>"
        f"{_number(percent(_mean(site.get('mean_activation'))))}{_number(percent(_mean(site.get('agreement'))))}"
        "</tr>"
    )


def _mean(value: Any) -> float | None:
    """One number for a site, from one number or one for each of its units."""
    if isinstance(value, (list, tuple)):
        return fmean(value) if value else None
    return value
