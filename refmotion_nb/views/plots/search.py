"""The hyperparameter search: where rays went, how they scored, how much motion was left, why they retired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.numerics.rays import QUIET_A
from refmotion_nb.views import svg
from refmotion_nb.views.figure_colours import ramp
from refmotion_nb.views.plots import look
from refmotion_nb.views.plots.look import Runs
from refmotion_nb.views.scale import percentile

_NEEDED = ("strength", "cv_score", "activity_local", "balance", "distance", "retired", "reason")
_WIDTH = 185  # px of a panel: three of them, and a legend or a colour bar, fit a notebook
_COLUMNS = 3  # at most
_DECADES = 4  # of strength between the first and the last number beneath a panel
_BALANCES = [0, 30, 60, 90]  # degrees, written at axes
_MARKS = ("x", "triangle", "square")  # of the reasons why rays end; a cross is for retired ones


def rays(search: Runs) -> hv.Layout:
    """Draw every step of every ray in (strength, balance, distance): colour is the score, size the local activity."""
    runs = _runs(search)
    limits = _limits(runs.values(), "cv_score")
    most = max(float(run["activity_local"].max()) for run in runs.values())
    return _by_distance(runs, lambda *which: _ray_panel(*which, limits, most))


def scores(search: Runs) -> hv.Layout:
    """Draw the cross-validation score against strength, a panel for each correlation distance."""
    return _by_distance(_runs(search), lambda *which: _curves(*which, "cv_score"))


def activity(search: Runs) -> hv.Layout:
    """Draw local trajectory activity against strength; rays retire below the dashed line."""
    line = look.styled(hv.HLine(QUIET_A), "HLine", color="#5a6675", line_dash="dashed", line_width=1)
    return _by_distance(_runs(search), lambda *which: _curves(*which, "activity_local", line))


def score_surface(search: Runs) -> hv.Layout:
    """Draw the cross-validation score as a surface over strength and balance, a panel for each correlation distance."""
    runs = _runs(search)
    limits = _limits(runs.values(), "cv_score")
    return _by_distance(runs, lambda *which: _surface(*which, limits))


def _runs(search: Runs) -> dict[str, xr.Dataset]:
    runs = {name: look.whole(run, "ray") for name, run in look.named(search).items()}
    for run in runs.values():
        look.require(run, "a HyperparameterSearch (given hyperparameters have no rays)", *_NEEDED)
    return runs


def _limits(runs: Any, name: str) -> tuple[float, float]:
    values = np.concatenate([run[name].values.ravel() for run in runs])
    return float(np.nanmin(values)), percentile(values, 95)


def _by_distance(runs: dict[str, xr.Dataset], draw: Callable[..., Any]) -> hv.Layout:
    """Return a panel for each correlation distance, in rows of equal length that begin anew with each run."""
    distances = {name: np.unique(run["distance"].values) for name, run in runs.items()}
    most = max(len(found) for found in distances.values())
    columns = -(-most // -(-most // _COLUMNS))
    along = _along(runs.values())
    items: list[Any] = []
    for name, run in runs.items():
        for i, z in enumerate(distances[name]):
            item = look.styled(
                draw(name, run, z, i == len(distances[name]) - 1), "Overlay", frame_width=_WIDTH, **along
            )
            items.append(look.styled(item, "Overlay", yaxis="bare") if i % columns else item)  # heights are shared
        items += [hv.Empty()] * (-len(items) % columns)
    return look.panels(items, columns)


def _along(runs: Iterable[xr.Dataset]) -> dict[str, Any]:
    """Return the axis of strength that runs share: logarithmic, with numbers that have room, not empty for one strength."""
    ends = [(float(run["strength"].min()), float(run["strength"].max())) for run in runs]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if not low < high:
        return {"logx": True, "xlim": (low / 2, 2 * high)}
    first, last = int(np.ceil(np.log10(low) - 0.5)), int(np.floor(np.log10(high) + 0.5))
    return {"logx": True, "xticks": [10.0**n for n in range(first, last + 1, max(1, -(-(last - first) // _DECADES)))]}


def _titled(name: str, distance: float) -> dict[str, Any]:
    """Return a title that does not run into that of the next panel."""
    title = "\n".join(part for part in (name, f"Correlation distance {svg.number(distance)} Å") if part)
    return {"title": title, "fontsize": {**look.FONTS, "title": "9pt"}}


def _walked(run: xr.Dataset, distance: float) -> Iterator[tuple[int, xr.Dataset]]:
    """Yield the rays of a correlation distance with the steps they took."""
    for ray in np.flatnonzero(run["distance"].values == distance):
        yield int(ray), run.isel(ray=ray).dropna("step", subset=["cv_score", "strength"])


def _why(one: xr.Dataset) -> str:
    reason = str(one["reason"].values)
    return f"retired: {reason}" if bool(one["retired"]) else reason or "still moving"


def _ray_panel(
    name: str, run: xr.Dataset, distance: float, last: bool, limits: tuple[float, float], most: float
) -> hv.Overlay:
    strength, balance = look.dimension(run["strength"]), look.dimension(run["balance"])
    facts = [look.dimension(run[v]) for v in ("cv_score", "activity_local")]
    steps, ends = [], []
    for _, one in _walked(run, distance):
        theta = float(one["balance"])
        rows = [
            (r, theta, s, a) for r, s, a in zip(*(one[v].values for v in ("strength", "cv_score", "activity_local")))
        ]
        steps += rows
        if rows:
            ends.append((*rows[-1], _why(one)))
    size = 5 + 15 * (hv.dim("activity_local") / max(most, 1e-9)) ** 0.5
    points = look.styled(
        hv.Points(steps, [strength, balance], facts), "Points", color="cv_score", size=size, tools=["hover"], clim=limits,
        cmap=ramp(), colorbar=last, line_color="white", line_width=0.5, clabel="Score (lower is better)", **look.BAR,
    )  # fmt: skip
    items = [points, *_ends(run, ends, [strength, balance], facts), _best(run, distance, "balance")]
    share = (14 + 22 * (1 + len(_reasons(run)))) / look.PANEL["frame_height"]  # of the height, for the legend
    return look.overlay(
        items, ylim=(-5, (95 + 5 * share) / (1 - share)), yticks=_BALANCES,
        **_titled(name, distance), show_legend=last, legend_position="top_right",
        xlabel=f"{strength.pprint_label}\nsize: local activity, up to {svg.number(most)} Å",
    )  # fmt: skip


def _reasons(run: xr.Dataset) -> list[str]:
    """Return why rays end, those that retired first: as many reasons as there are marks, or kinds of them if all differ."""
    reasons = sorted({_why(run.isel(ray=ray)) for ray in range(run.sizes["ray"])}, key=_retired_first)
    if len(reasons) > len(_MARKS):
        reasons = sorted({reason.split(":")[0] for reason in reasons}, key=_retired_first)[: len(_MARKS)]
    return reasons


def _ends(run: xr.Dataset, ends: list[tuple[Any, ...]], dims: list[Any], facts: list[Any]) -> list[hv.Points]:
    """Mark where rays end, by the reason (last of each of ``ends``)."""
    reasons = _reasons(run)
    facts = [*facts, hv.Dimension(("why", "Ray ends"))]
    items = []
    for reason, mark in zip(reasons, _MARKS if reasons[0].startswith("retired") else _MARKS[1:]):
        mine = [end for end in ends if end[-1].startswith(reason)] or [(*[np.nan] * (len(dims) + len(facts) - 1), "")]
        points = hv.Points(mine, dims, facts, label=reason)
        items.append(look.styled(points, "Points", color="black", fill_alpha=0, marker=mark, size=9, line_width=2,
                                 tools=["hover"]))  # fmt: skip
    return items


def _retired_first(reason: str) -> tuple[bool, str]:
    return not reason.startswith("retired"), reason


def _best(run: xr.Dataset, distance: float, height: str) -> hv.Points:
    """Mark the best step of what is drawn, which may be a part of a search, if it lies in this panel."""
    best = run["cv_score"].argmin(("ray", "step"))  # not as the attributes count, from the first of all rays
    dims = [look.dimension(run["strength"]), look.dimension(run[height])]
    extra = [look.dimension(run[v]) for v in ("balance", "cv_score", "activity_local") if v != height]
    rows: list[tuple[float, ...]] = [(np.nan,) * 4]  # shows in the legend all the same
    one = run.isel(best)
    if one["distance"] == distance:
        rows = [tuple(float(one[str(d.name)]) for d in (*dims, *extra))]
    return look.styled(hv.Points(rows, dims, extra, label="best step"), "Points", tools=["hover"], **look.STAR)


def _curves(name: str, run: xr.Dataset, distance: float, last: bool, what: str, *more: Any) -> hv.Overlay:
    dims = [look.dimension(run["strength"]), look.dimension(run[what])]
    balances = np.unique(run["balance"].values)
    items, ends = [], []
    for _, one in _walked(run, distance):
        theta, x, y = float(one["balance"]), one["strength"].values, one[what].values
        colour = look.sequence(np.searchsorted(balances, theta) / max(len(balances) - 1, 1) * 0.8)
        items.append(look.styled(
            hv.Curve((x, y), *dims, label=f"balance {svg.number(theta)}°"), "Curve", color=colour, line_width=2,
            tools=["hover"],
        ))  # fmt: skip
        if len(x):
            ends.append((x[-1], y[-1], theta, _why(one)))
    items += [*_ends(run, ends, dims, [look.dimension(run["balance"])]), _best(run, distance, what), *more]
    return look.overlay(
        items, padding=0.05, **_titled(name, distance), show_legend=last, legend_position="right",
    )  # fmt: skip


def _surface(name: str, run: xr.Dataset, distance: float, last: bool, limits: tuple[float, float]) -> hv.Overlay:
    run = run.dropna("step", how="all", subset=["strength"])
    mine = run.isel(ray=np.flatnonzero(run["distance"].values == distance)).sortby("balance")
    strength = np.nanmax(run["strength"].values, 0)
    x = np.exp(look.edges(np.log(strength)))
    y = np.clip(look.edges(mine["balance"].values), 0, 90)
    dims = [look.dimension(run["strength"]), look.dimension(run["balance"])]
    mesh = look.styled(
        hv.QuadMesh((x, y, mine["cv_score"].values), dims, look.dimension(run["cv_score"])), "QuadMesh",
        cmap=ramp(), clim=limits, colorbar=last, tools=["hover"],
        clabel="Score (lower is better)", **look.BAR,
    )  # fmt: skip
    return look.overlay(
        [mesh, _best(run, distance, "balance")], ylim=(0, 90), yticks=_BALANCES,
        **_titled(name, distance), show_legend=False,
        xlabel=f"{dims[0].pprint_label}\nblank where a ray had retired",
    )  # fmt: skip
