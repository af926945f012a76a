"""Small parts that all tabs are put together from, so that they look alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import panel as pn


def empty(text: str) -> Any:
    """Return what stands where there is nothing yet: ``text`` says what to do next."""
    return pn.pane.HTML(escape(text), css_classes=["rm-empty"], sizing_mode="stretch_width", margin=(8, 6))


def problem(text: str = "") -> Any:
    """Return what is wrong, with the remedy, where it happened; hidden while ``text`` is empty (see ``tell``)."""
    pane = pn.pane.HTML("", css_classes=["rm-problem"], sizing_mode="stretch_width", margin=6, visible=False)
    return tell(pane, text)


def tell(pane: Any, text: str) -> Any:
    """Put other text into what ``problem`` returned; it goes away without any."""
    pane.param.update(object=f'<div role="alert">{escape(text)}</div>' if text else "", visible=bool(text))
    return pane


def words(html: str, **options: Any) -> Any:
    """Return a paragraph; ``html`` is safe already."""
    return pn.pane.HTML(html, css_classes=["rm-words"], **{"sizing_mode": "stretch_width", "margin": 5, **options})


def say(pane: Any, html: str) -> None:
    """Put other HTML into what ``words`` returned; without any it takes no room."""
    pane.param.update(object=html, visible=bool(html))


def card(title: str, *children: Any, **options: Any) -> Any:
    """Return children on a card with a title."""
    heading = pn.pane.HTML(f"<h3>{escape(title)}</h3>", sizing_mode="stretch_width", margin=(0, 5))
    return pn.Column(heading, *children, css_classes=["rm-card"], **{"sizing_mode": "stretch_width", **options})


def folded(title: str, *children: Any, opened: bool = False, **options: Any) -> Any:
    """Return children on a card that is folded away under its title."""
    return pn.Card(
        *children, title=title, collapsed=not opened, css_classes=["rm-card", "rm-folded"],
        **{"sizing_mode": "stretch_width", **options},
    )  # fmt: skip


def bar(done: int, total: int, text: str) -> str:
    """Return the HTML of a progress bar over words; ``total`` 0 where nobody knows."""
    known = f'value="{done}" max="{total}"' if total else ""
    return f'<progress {known} style="width: 100%" aria-label="{escape(text)}"></progress><small>{escape(text)}</small>'


def tiles(numbers: Iterable[tuple[str, str]]) -> str:
    """Return the HTML of figures (value, what it is) side by side."""
    drawn = "".join(
        f"<div><strong>{escape(value)}</strong><small>{escape(what)}</small></div>" for value, what in numbers
    )
    return f'<div class="rm-tiles">{drawn}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return the HTML of a table; without a head the first column names the rows."""
    first = f"<tr>{''.join(f'<th>{escape(one)}</th>' for one in head)}</tr>" if head else ""
    cell = "td" if head else "th"
    drawn = "".join(
        f"<tr><{cell}>{escape(row[0])}</{cell}>{''.join(f'<td>{escape(one)}</td>' for one in row[1:])}</tr>"
        for row in rows
    )
    return f'<table class="rm-table">{first}{drawn}</table>'


def button(label: str, call: Any = None, **options: Any) -> Any:
    """Return a button that calls ``call()``; ``color="primary"`` for the one to press next."""
    made = pn.widgets.Button(label=label, **{"margin": 5, **options})
    if call is not None:
        made.on_click(lambda _: call())
    return made
