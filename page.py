"""One HTML file that needs nothing beside it: pictures are inside."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import pandas as pd

from files import atomic_file

STYLE = """
body { font: 16px/1.5 system-ui, "Noto Sans CJK SC", "Microsoft YaHei", sans-serif; color: #222; max-width: 68rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-top: 1px solid #ddd; padding-top: 1rem }
p { margin: .3rem 0 .8rem; max-width: 45rem } .quiet { color: #666 }
.figures { display: flex; flex-wrap: wrap; gap: 2.5rem; margin: 1.2rem 0 }
.figures b { display: block; font-size: 1.7rem; line-height: 1.2 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem } th { text-align: left; font-weight: 600 }
td, th { padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #eee; vertical-align: top } td.best { font-weight: 700; color: #0072b2 }
"""


def write_page(path: Path, title: str, *parts: str) -> None:
    with atomic_file(path) as file:
        file.write(f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
                   f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>\n{chr(10).join(parts)}\n"
                   .encode(errors="backslashreplace"))  # names of photos that are not UTF-8


def section(title: str, text: str, *parts: str) -> str:
    return f"<h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{''.join(parts)}"


def image(path: Path, alt: str) -> str:
    """At its own size, as its letters were drawn to be read; where the window is narrower, it scrolls."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<div class="wide"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}"></div>'


def figures(values: dict[str, str]) -> str:
    """The few numbers that matter, large."""
    return '<div class="figures">' + "".join(f"<div><b>{html.escape(v)}</b>{html.escape(k)}</div>" for k, v in values.items()) + "</div>"


def table(rows: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    """Text in cells; best: bool, of the same shape: the cells to mark."""
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in rows)
    body = ""
    for i, row in enumerate(rows.itertuples(index=False)):
        mark = [" class=best" if best is not None and best.iat[i, j] else "" for j in range(len(row))]
        body += "<tr>" + "".join(f"<td{how}>{html.escape(str(cell))}</td>" for how, cell in zip(mark, row, strict=True)) + "</tr>\n"
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
