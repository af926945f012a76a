"""Pieces of the report: tables, folds, numbers as people write them, names and units as the Datasets have them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    import xarray as xr

CATEGORIES = tuple(f"var(--c{i})" for i in range(7))


class Decimals(NamedTuple):
    """A number of a column in which all have the same number of decimals."""

    value: float
    digits: int


def table(head: Sequence[str], rows: Iterable[Sequence[object]], marked: int = -1, css: str = "") -> str:
    """Return an HTML table; every cell is escaped, numbers are set to the right, row ``marked`` stands out."""
    rows = list(rows)
    right = [bool(rows) and not isinstance(cell, str) for cell in (rows[0] if rows else head)]
    titles = "".join(f"<th{' class=n' if n else ''}>{escape(text)}</th>" for text, n in zip(head, right))
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{'' if isinstance(cell, str) else ' class=n'}>{_cell(cell)}</td>" for cell in row)
        body.append(f"<tr{' class=best' if i == marked else ''}>{cells}</tr>")
    return f'<div class="scroll"><table class="{css}"><thead><tr>{titles}</tr></thead>{"".join(body)}</table></div>'


def _cell(cell: object) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if isinstance(cell, Decimals):
        return fixed(*cell)
    return f"{cell:,}" if isinstance(cell, int | np.integer) else number(float(cell))  # type: ignore[arg-type]


def paragraphs(texts: Iterable[str]) -> str:
    """Return sentences as paragraphs."""
    return "".join(f'<p class="words">{escape(text)}</p>' for text in texts)


def listing(texts: Iterable[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def folded(title: str, body: str, is_open: bool = False) -> str:
    """Return ``body`` (HTML) under a title that opens and closes it."""
    return f"<details{' open' if is_open else ''}><summary>{escape(title)}</summary>{body}</details>"


def grid(items: Iterable[str], css: str = "grid") -> str:
    """Return pieces of HTML side by side."""
    return f'<div class="{css}">{"".join(items)}</div>'


def titled(title: str, body: str) -> str:
    """Return ``body`` (HTML) under a small heading; nothing where it is empty."""
    return f"<div><h3>{escape(title)}</h3>{body}</div>" if body else ""


def name_of(variable: xr.DataArray) -> str:
    """Return the long name of ``variable`` as a heading."""
    name = str(variable.attrs.get("long_name", variable.name))
    return name[:1].upper() + name[1:]


def label(variable: xr.DataArray) -> str:
    """Return what an axis of ``variable`` is called: its long name with its unit."""
    unit = str(variable.attrs.get("units", ""))
    if unit in ("", "1"):
        return name_of(variable)
    return f"{name_of(variable)}, {unit}" if "(" in unit else f"{name_of(variable)} ({unit})"


def text_of(value: Any) -> str:
    """Return a setting or another plain value as text."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ", ".join(map(text_of, value))
    if isinstance(value, float):
        return number(value, 6)
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def fixed(value: float, digits: int = 2) -> str:
    """Return ``value`` with so many decimals; a dash where it is not known."""
    return f"{value:.{digits}f}".replace("-", "−") if np.isfinite(value) else "–"


def count(n: int, noun: str) -> str:
    """Return a number of things."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def decoded(value: Any) -> Any:
    """Return an attribute that may have been stored as JSON text."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def mapping(attrs: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an attribute that is a mapping; empty where it is not there."""
    value = decoded(attrs.get(name, {}))
    return dict(value) if isinstance(value, Mapping) else {}


def rows(inputs: Mapping[str, Any], name: str) -> list[Any]:
    """Return an entry of the inputs that is a list; empty where it is not there."""
    value = decoded(inputs.get(name, []))
    return value if isinstance(value, list) else []
