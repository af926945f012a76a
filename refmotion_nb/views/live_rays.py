"""The rays of a search while it goes on: score and activity of each, which have retired and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.views.drawing_style import drawing_style
from refmotion_nb.views.report_html import Decimals, count, label, name_of, table
from refmotion_nb.views.report_search import balance_fraction, ray_curves
from refmotion_nb.views.svg import Axis, Legend, Line, Mark, line_drawing, number, step_colour

if TYPE_CHECKING:
    import xarray as xr

_STYLES = ("", "dashed", "dotted")  # of the distances, if there are no more
_SHORT = {"cv_score": "Score", "activity_local": "Activity (Å)"}  # of what is drawn; the title says more
_LISTED = 16  # rays with a row each
_REASONS = 3  # told in one line


def rays_drawing(rays: xr.Dataset, ended: bool = True) -> str:
    """Return the curves and the table of all rays as HTML; axes reach to where rays may still go unless ``ended``."""
    to = [] if ended else [rays.attrs.get("max_strength", np.nan)]
    x = Axis.of(label(rays["strength"]), rays["strength"], to, log=True)
    drawings = "".join(f"<div><b>{escape(name_of(rays[name]))}</b>{_drawing(rays, name, x)}</div>" for name in _SHORT)
    body = ray_states(rays, ended) if rays.sizes["ray"] <= _LISTED else ""
    return (
        f'<div class="rm-live"><style>{drawing_style(".rm-live")}</style><div class="rm-pair">{drawings}</div>'
        f"{_legend(rays, ended)}{body}</div>"
    )


def _drawing(rays: xr.Dataset, variable: str, x: Axis) -> str:
    y = Axis.of(_SHORT[variable], rays[variable], zero=variable != "cv_score")
    few = rays.sizes["step"] < 4  # no curve yet
    lines: list[Line] = []
    marks: list[Mark] = []
    balances, styles = np.unique(rays["balance"]), _styles(rays)
    for distance, style in styles.items():
        some, marked = ray_curves(rays, variable, rays["distance"].values == distance, balances)
        lines += [
            replace(line, style=f"{line.style} {style}".strip(), points=line.points if few else None) for line in some
        ]
        marks += marked
    return line_drawing(name_of(rays[variable]), x, y, lines, marks=marks, size=(400, 235))


def _styles(rays: xr.Dataset) -> dict[float, str]:
    distances = np.unique(rays["distance"]).tolist()
    return dict(zip(distances, _STYLES)) if len(distances) <= len(_STYLES) else dict.fromkeys(distances, "")


def _legend(rays: xr.Dataset, ended: bool) -> str:
    balances = np.unique(rays["balance"])
    legend = Legend().note("Balance:")
    for theta in balances:
        legend.line(f"{number(theta)}°", step_colour(balance_fraction(theta, balances)))
    styles = _styles(rays)
    if len(set(styles.values())) > 1:
        legend.note("Distance:")
        for distance, style in styles.items():
            legend.line(f"{number(distance, 4)} Å", "var(--muted)", style)
    return str(
        legend.note("★ best" if ended else "★ best so far").note("× retired" if bool(rays["retired"].any()) else "")
    )


def ray_states(rays: xr.Dataset, ended: bool = True) -> str:
    """Return a table: where each ray stands, its lowest score, and whether it goes on."""
    score, strength, activity = (rays[name].values for name in ("cv_score", "strength", "activity_local"))
    best = int(rays.attrs.get("best_ray", -1))
    digits = 4 - int(np.floor(np.log10(np.clip(np.nanmax(np.abs(score), initial=1e-9), 1e-9, 1e4))))
    lines: list[tuple[object, ...]] = []
    for ray in range(len(score)):
        seen = np.flatnonzero(np.isfinite(score[ray]))
        place = ray + 1, float(rays["balance"][ray]), float(rays["distance"][ray])
        if not seen.size:
            lines.append((*place, np.nan, np.nan, np.nan, np.nan, "not begun"))
            continue
        low, last = seen[np.argmin(score[ray][seen])], seen[-1]
        lines.append((*place, float(strength[ray][last]), float(activity[ray][last]), Decimals(score[ray][low], digits),
                      float(strength[ray][low]), fate(rays, ray, ended)))  # fmt: skip
    head = ("Ray", "Balance (°)", "Distance (Å)", "Strength", "Activity (Å)", "Lowest score", "at strength", "State")
    return table(head, lines, marked=best)


def fate(rays: xr.Dataset, ray: int, ended: bool = True) -> str:
    """Return in words whether a ray goes on, or why not."""
    reason = str(rays["reason"].values[ray])
    if bool(rays["retired"][ray]):
        return f"retired: {reason}"
    return reason or ("stopped on its way" if ended else "walking")


def rays_in_words(rays: xr.Dataset, ended: bool = True) -> str:
    """Return how many rays there are, and what has become of them."""
    fates = Counter(fate(rays, ray, ended) for ray in range(rays.sizes["ray"]))
    if len(fates) > _REASONS:
        fates = Counter(words.split(":")[0] for words in fates.elements())
    rays_there = count(rays.sizes["ray"], "ray")
    if len(fates) == 1:
        return f"{rays_there}, all {next(iter(fates))}"
    return f"{rays_there}: " + ", ".join(f"{n} {words}" for words, n in fates.most_common())
