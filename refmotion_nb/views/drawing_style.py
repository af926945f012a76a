"""The report's colours and drawing rules for drawings that stand elsewhere, within an element of their own."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

DARK = (  # the light high-contrast theme of VS Code has the name of the dark one, too
    '[data-jp-theme-light="false"]', ".vscode-dark", ".vscode-high-contrast:not(.vscode-high-contrast-light)",
    '[data-theme="dark"]', 'html[theme="dark"]',
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


@cache
def _sheet() -> str:
    return resources.files("refmotion_nb.views").joinpath("report.css").read_text(encoding="utf-8")


@cache
def palette(dark: bool = False) -> dict[str, str]:
    """Return the report's colours by name (``page``, ``card``, ``text``, ``c0`` and on, ``f0`` and on)."""
    blocks = re.findall(r":root \{(.*?)\}", _sheet(), re.DOTALL)
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]+);", blocks[dark]))


def _declared(dark: bool) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in palette(dark).items())


@cache
def drawing_style(root: str, dark: bool | None = None) -> str:
    """Return the rules for drawings within the selector ``root``: light or dark, or (None) as the page around is."""
    rules = [f"{root} {{ {_declared(bool(dark))} }}"]
    if dark is None:
        rules.append(f"{', '.join(f'{where} {root}' for where in DARK)} {{ {_declared(True)} }}")
    for line in _sheet().split("@media print")[0].splitlines():
        selectors, brace, body = line.partition("{")
        if brace and line.startswith(_DRAWING):
            rules.append(f"{', '.join(f'{root} {one.strip()}' for one in selectors.split(','))} {{{body}")
    return "\n".join(rules)
