"""The report's colours and drawing rules for the explorer: one style sheet for all, within an element of its own."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

ROOT = ".rm-explorer"
_DARK = (
    '[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast", '[data-theme="dark"]', 'html[theme="dark"]',
)  # fmt: skip
_DRAWING = (
    "svg",
    "path.grid",
    ".grid path",
    ".rule",
    ".line",
    ".mark",
    ".tracks",
    ".area",
    ".scale",
    ".starts",
    ".legend",
)
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
def _sheet() -> str:
    return resources.files("refmotion_nb.views").joinpath("report.css").read_text(encoding="utf-8")


@cache
def _variables(dark: bool) -> str:
    """Return the declarations of the colours."""
    blocks = re.findall(r":root \{(.*?)\}", _sheet(), re.DOTALL)
    return " ".join(re.findall(r"--[\w-]+: #[0-9a-f]+;", blocks[dark]))


@cache
def palette(dark: bool) -> dict[str, str]:
    """Return the report's colours by name: text, muted, grid, c0 and on, f0 and on."""
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", _variables(dark)))


def ramp(dark: bool) -> list[str]:
    """Return the colours from the first frame to the last."""
    colours = palette(dark)
    return [colours[f"f{i}"] for i in range(8)]


@cache
def style_sheet(dark: bool | None = None) -> str:
    """Return a style element for drawings within ``ROOT``: light or dark, or (None) as the page around is."""
    rules = [f"{ROOT} {{ {_variables(bool(dark))} }}"]
    if dark is None:
        rules.append(f"{', '.join(f'{where} {ROOT}' for where in _DARK)} {{ {_variables(True)} }}")
    for line in _sheet().split("@media print")[0].splitlines():
        selectors, brace, body = line.partition("{")
        if brace and line.startswith(_DRAWING) and body.rstrip().endswith("}"):
            within = ", ".join(f"{ROOT} {one.strip()}" for one in selectors.split(","))
            rules.append(f"{within} {{{body}")
    return f"<style>{' '.join(rules)}{_OWN}</style>"
