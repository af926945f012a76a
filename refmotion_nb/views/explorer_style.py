"""How drawings of the explorer look: the report's colours and rules, and a few of its own."""

from __future__ import annotations

from functools import cache

from refmotion_nb.views.drawing_style import drawing_style

ROOT = ".rm-explorer"
_OWN = f"""
{ROOT} {{ color: var(--text); font: 13px/1.45 system-ui, sans-serif; }}
{ROOT} p {{ margin: 0 0 6px; max-width: 78ch; }}
{ROOT} b.t {{ font-weight: 600; }}
{ROOT} small {{ color: var(--muted); font-size: 12px; }}
{ROOT} .beneath {{ fill: none; stroke: var(--muted); stroke-width: 1.1; opacity: .75; }}
{ROOT} .numbers {{ display: flex; flex-wrap: wrap; gap: 2px 18px; margin-bottom: 4px; }}
{ROOT} .numbers strong {{ font-size: 16px; font-weight: 620; display: block; font-variant-numeric: tabular-nums; }}
{ROOT} .mark.end {{ stroke-width: 2.2; }}
"""


@cache
def style_sheet(dark: bool | None = None) -> str:
    """Return a style element for drawings within ``ROOT``: light or dark, or (None) as the page around is."""
    return f"<style>{drawing_style(ROOT, dark)}{_OWN}</style>"
