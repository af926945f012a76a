"""The report's colours and drawing rules for drawings that stand elsewhere, within an element of their own."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

DARK = (
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


@cache
def drawing_style(root: str) -> str:
    """Return the rules for drawings within the selector ``root``, light or dark as the page around is."""
    sheet = resources.files("refmotion_nb.views").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = (
        " ".join(re.findall(r"--[\w-]+: #[0-9a-f]+;", block))
        for block in re.findall(r":root \{(.*?)\}", sheet, re.DOTALL)
    )
    rules = [f"{root} {{ {light} }}", f"{', '.join(f'{where} {root}' for where in DARK)} {{ {dark} }}"]
    for line in sheet.split("@media print")[0].splitlines():
        selectors, brace, body = line.partition("{")
        if brace and line.startswith(_DRAWING):
            rules.append(f"{', '.join(f'{root} {one.strip()}' for one in selectors.split(','))} {{{body}")
    return "\n".join(rules)
