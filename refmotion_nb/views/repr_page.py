"""What an object has to say of itself, and how that is written: as plain text, and as HTML that folds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources

_WIDTH = 110
_LONGEST = 400  # characters of one value


@dataclass(frozen=True)
class Row:
    """A named value; ``hint`` shows when hovering, ``remark`` always."""

    name: str
    value: str
    remark: str = ""
    hint: str = ""
    changed: bool = False


@dataclass(frozen=True)
class Part:
    """Rows under a heading; folded unless ``open``.

    ``drawing`` is HTML that is safe already, left out in plain text; what takes a while is made by a call, when it is shown.
    """

    title: str
    rows: tuple[Row, ...] = ()
    open: bool = False
    drawing: str | Callable[[], str] = ""


@dataclass(frozen=True)
class Page:
    """Everything there is to say: what it is, how it stands, what everybody wants to see, what some do."""

    title: str
    state: str = ""  # in words; its first word is its kind: done, running, failed, cancelled ...
    rows: tuple[Row, ...] = ()
    parts: tuple[Part, ...] = ()
    drawing: str = ""  # HTML that is safe already, above the rows; left out in plain text


def text_of(page: Page) -> str:
    """Return a page as plain text."""
    lines = [f"{page.title}: {page.state}" if page.state else page.title, *_text_rows(page.rows, "  ")]
    for part in page.parts:
        if part.open:
            lines += [f"  {part.title}", *_text_rows(part.rows, "    ")]
        elif part.rows:
            values = "; ".join(f"{row.name} {row.value}".strip() for row in part.rows)
            lines += _wrapped(f"{part.title}: {values}", "  ", "    ")
    return "\n".join(lines)


def _text_rows(rows: tuple[Row, ...], indent: str) -> list[str]:
    width = max((len(row.name) for row in rows), default=0) + 2
    lines = []
    for row in rows:
        remark = f"  ({row.remark})" if row.remark else ""
        lines += _wrapped(f"{_short(row.value)}{remark}", f"{indent}{row.name:{width}s}", indent + " " * width)
    return lines


def _wrapped(text: str, head: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=indent, break_on_hyphens=False) or [head]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 2]} …"


def html_of(page: Page, plain: str) -> str:
    """Return a page as HTML; ``plain`` is what shows where style sheets are stripped."""
    parts = "".join(_details(part) for part in page.parts if part.rows or part.drawing)
    return (
        f'<div class="rm-repr"><style>{style()}</style><pre class="rm-plain">{escape(plain)}</pre>'
        f'<div class="rm-page" style="display:none">{head_of(page)}{parts}</div></div>'
    )


def head_of(page: Page) -> str:
    """Return the HTML of what everybody wants to see of a page: title, state, drawing and rows."""
    kind = page.state.split(" ", 1)[0].rstrip(",;:")
    state = f'<span class="rm-state rm-{escape(kind)}">{escape(page.state)}</span>' if page.state else ""
    return f'<div class="rm-head"><b>{escape(page.title)}</b>{state}</div>{page.drawing}{_table(page.rows)}'


def _details(part: Part) -> str:
    drawing = part.drawing() if callable(part.drawing) else part.drawing
    count = f" <small>{len(part.rows)}</small>" if part.rows and not part.open else ""
    return (
        f"<details{' open' * part.open}><summary>{escape(part.title)}{count}</summary>{_table(part.rows)}{drawing}"
        "</details>"
    )


def _table(rows: tuple[Row, ...]) -> str:
    if not rows:
        return ""
    cells = []
    for row in rows:
        hint = f' title="{escape(row.hint)}"' if row.hint else ""
        remark = f" <small>{escape(row.remark)}</small>" if row.remark else ""
        css = ' class="rm-changed"' if row.changed else ""
        cells.append(f"<tr{css}{hint}><th>{escape(row.name)}</th><td>{escape(_short(row.value))}{remark}</td></tr>")
    return f"<table>{''.join(cells)}</table>"


@cache
def style() -> str:
    """Return the style sheet of pages."""
    return resources.files("refmotion_nb.views").joinpath("reprs.css").read_text(encoding="utf-8")
