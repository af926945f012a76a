"""The part of the report on hyperparameters: rays, scores, activity, and what was chosen, in our units and RELION's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.views.report_html import (
    Decimals,
    count,
    folded,
    grid,
    label,
    name_of,
    paragraphs,
    rows,
    table,
    titled,
)
from refmotion_nb.views.svg import (
    Axis,
    Legend,
    Line,
    Mark,
    figure,
    heat_drawing,
    line_drawing,
    number,
    panels,
    step_colour,
)

if TYPE_CHECKING:
    import xarray as xr

MAX_PANELS = 6
DOSES = 4  # per frame, that hyperparameters are told at
STRENGTH_UNIT = "(e/Å²)/Å²"
_CHOSEN = (
    ("strength", "Total prior strength", f" {STRENGTH_UNIT}"), ("balance_deg", "Acceleration/spatial balance", "°"),
    ("distance_A", "Correlation distance", " Å"),
)  # fmt: skip
STILL_A = 0.05  # local activity below which nothing moves any more

RAYS = (
    "A ray is a search in one direction: it keeps the balance between the two priors and the correlation distance, and "
    "turns up their total strength step by step. Weak priors let each particle follow the noise of its images; strong "
    "ones let it move only as its neighbours do (spatial prior) and only smoothly (acceleration prior), in the end not at "
    "all. For each step trajectories are found from the coarser part of the images and judged by the finer part, against "
    "the half map that the particle is not in: noise cannot improve this score."
)
_READING = {
    "cv_score": "The cross-validation score at each step of each ray; lower is better. Left: priors too weak, trajectories "
    "follow noise; right: too strong, nothing moves. Good curves dip between the two, and the star lies in a dip. If the "
    "lowest point is at the right end, raise max_strength; if curves are ragged or flat, search with more particles "
    "(target_particles).",
    "activity_local": "How far particles still travel beyond the motion of the whole micrograph: the 75th percentile of path "
    "lengths, averaged over micrographs. It should fall towards zero to the right, where the prior forbids motion and a ray "
    "retires (×). Curves that end above zero matter only where the score's dip lies at the right end, too: raise max_strength.",
}
_OVERVIEW = (
    "The scores of all rays at once: a row for each ray (numbered as in the table), a column for each strength, darker is "
    "better, the star is the best step. A good search has one dark region away from the left and right edges that goes through "
    "several rays: the choice is then not a matter of chance. Empty cells: the ray had retired."
)

RAY_TABLE = (
    "Where each ray had its lowest score, and how much particles moved there. Rays with nearly the same score should also agree "
    "in activity: then the choice between them hardly matters. If they do not, search with more particles (target_particles). "
    "Total activity holds the correction of whole-frame alignment, which jitters from frame to frame: no prior takes it to zero."
)


def search_section(search: xr.Dataset | None, inputs: Mapping[str, Any], dose: xr.Dataset | None) -> str:
    """Return what was searched and chosen; empty without results."""
    if search is None:
        return ""
    tables = grid(hyperparameter_tables(search, frame_doses(inputs, dose)), "tables")
    if not search.sizes.get("ray", 0):
        return paragraphs(["The hyperparameters were given, so there are no rays to show."]) + tables
    used = [str(name) for name in search.attrs.get("micrographs", [])]
    listed = (
        folded(f"The {count(len(used), 'micrograph')} searched with", paragraphs([", ".join(used)])) if used else ""
    )
    return (
        paragraphs([RAYS])
        + tables
        + grid(rays(search), "stack")
        + titled("Rays, the best first", paragraphs([RAY_TABLE]) + ray_table(search))
        + listed
    )


def rays(search: xr.Dataset) -> list[str]:
    """Score and local activity against strength, a panel for each correlation distance; then all scores as an image."""
    return [_ray_figure(search, name) for name in ("cv_score", "activity_local") if name in search] + _surface(search)


def _ray_figure(search: xr.Dataset, variable: str) -> str:
    distance, balance = search["distance"].values, search["balance"].values
    members = [distance == z for z in np.unique(distance)]
    if len(members) > MAX_PANELS:  # no grid: everything in one
        members = [np.ones(len(distance), bool)]
    x = Axis.of(label(search["strength"]), search["strength"], log=True)
    y = Axis.of(label(search[variable]), search[variable], zero=variable != "cv_score")
    balances = np.unique(balance)
    drawings, kinds = [], set[str]()
    for some in members:
        name = label_value(search["distance"], distance[some][0]) if len(members) > 1 else "All rays"
        lines, marks = ray_curves(search, variable, some, balances)
        kinds |= {mark.kind for mark in marks}
        drawings.append((name, line_drawing(f"{name_of(search[variable])}, {name}", x, y, lines, marks=marks)))
    legend = Legend().note("Balance:")
    for theta in balances:
        legend.line(f"{number(theta)}°", step_colour(balance_fraction(theta, balances)))
    legend.note("★ best" if "best" in kinds else "").note("× retired" if "end" in kinds else "")
    return figure(name_of(search[variable]), panels(drawings), _READING[variable], legend=legend, css="wide")


def balance_fraction(theta: float, balances: np.ndarray) -> float:
    """Return where a balance lies among all, from 0 to 1."""
    return (theta - balances[0]) / max(float(np.ptp(balances)), 1e-9)


def ray_curves(
    search: xr.Dataset, variable: str, members: np.ndarray, balances: np.ndarray
) -> tuple[list[Line], list[Mark]]:
    """Return the curves of some rays coloured by balance, with marks where rays retired and where the best is."""
    lines, marks = [], []
    best = int(search.attrs.get("best_ray", -1)), int(search.attrs.get("best_step", -1))
    for ray in np.flatnonzero(members):
        theta = float(search["balance"][ray])
        colour = step_colour(balance_fraction(theta, balances))
        strength, values = search["strength"].values[ray], search[variable].values[ray]
        name = f"ray {ray + 1}: balance {number(theta)}°"
        points = [f"{name}, strength {number(r)}: {number(v, 5)}" for r, v in zip(strength, values)]
        lines.append(Line(strength, values, name, colour, "thick" if ray == best[0] else "", points=points))
        seen = np.flatnonzero(np.isfinite(values))
        if seen.size and bool(search["retired"][ray]):
            end = seen[-1]
            reason = str(search["reason"].values[ray]) if "reason" in search else ""
            marks.append(Mark(strength[end], values[end], f"{name} retired: {reason}", "end", colour))
        if ray == best[0] and best[1] in seen:
            marks.append(Mark(strength[best[1]], values[best[1]], f"best: {points[best[1]]}"))
    return lines, marks


def _surface(search: xr.Dataset) -> list[str]:
    """Return the image of all scores (ray, step), if all rays took the same steps and there are several."""
    strength, score = search["strength"].values, search["cv_score"].values
    seen = np.isfinite(strength).any(0)
    strength, score = strength[:, seen], score[:, seen]
    if min(score.shape) < 2 or not np.isfinite(score).any():
        return []
    steps = np.nanmean(strength, axis=0)
    if np.nanmax(np.abs(strength / steps - 1)) > 1e-3 or (steps <= 0).any():
        return []
    half = np.sqrt(steps[1] / steps[0])
    x = Axis(label(search["strength"]), steps[0] / half, steps[-1] * half, log=True)
    y = Axis("Ray (number)", 0.5, len(score) + 0.5, whole=True)
    finite = score[np.isfinite(score)]
    # the scores of still particles would take all colours away from those near the best
    top = float(np.percentile(finite, 90))
    colour = Axis("Score (lower is better)", float(finite.min()), max(top, float(finite.min()) + 1e-12))
    best = int(search.attrs.get("best_ray", -1)), int(search.attrs.get("best_step", -1))
    inside = 0 <= best[0] < score.shape[0] and 0 <= best[1] < score.shape[1]
    marks = [Mark(steps[best[1]], best[0] + 1.0, f"best: ray {best[0] + 1}")] if inside else []
    height = 95 + max(150, 14 * len(score))
    drawing = heat_drawing("Scores of all rays", x, y, score, colour, marks=marks, size=(430, min(height, 600)))
    return [figure("All rays at a glance", drawing, _OVERVIEW, css="half")]


def label_value(variable: xr.DataArray, value: float) -> str:
    """Return a value of ``variable`` with its name and unit."""
    unit = str(variable.attrs.get("units", ""))
    return f"{name_of(variable)} {number(value, 4)} {unit.replace('degrees', '°')}".replace(" °", "°").strip()


def best_activity(search: xr.Dataset) -> tuple[float, float]:
    """Return the local and the total trajectory activity at the best hyperparameters; NaN if unknown."""
    at = _best_index(search)

    def value(name: str) -> float:
        # the choice may have been refined beyond the steps of the rays: then it is told apart
        found = search[name].isel(at) if at and name in search else np.nan
        return float(search.attrs.get(name, found))

    return value("activity_local"), value("activity_total")


def _best_index(search: xr.Dataset) -> dict[str, int]:
    at = {"ray": int(search.attrs.get("best_ray", -1)), "step": int(search.attrs.get("best_step", -1))}
    return at if all(0 <= i < search.sizes.get(dim, 0) for dim, i in at.items()) else {}


def _star(search: xr.Dataset) -> dict[str, float]:
    """Return the hyperparameters of the best step of the rays; none without rays."""
    if not (at := _best_index(search)):
        return {}
    names = {"strength": "strength", "balance_deg": "balance", "distance_A": "distance", "cv_score": "cv_score"}
    return {name: float(search[variable].isel(at, missing_dims="ignore")) for name, variable in names.items()}


def best_score(search: xr.Dataset) -> float:
    """Return the score of the best hyperparameters."""
    scores = search["cv_score"].values
    return float(search.attrs.get("cv_score", np.min(scores[np.isfinite(scores)], initial=np.inf)))


def frame_doses(inputs: Mapping[str, Any], dose: xr.Dataset | None) -> list[float]:
    """Return the doses per frame of the movies, e/Å², of many the ends: of the inputs, or else of the dose weights."""
    found = sorted({float(e["dose_per_frame_e_A2"]) for e in rows(inputs, "exposures")})
    if found or dose is None or "dose" not in dose:
        return found if len(found) <= DOSES else [found[0], found[-1]]
    steps = np.diff(dose["dose"].values[0])
    return [float(np.median(steps[np.isfinite(steps)]))] if np.isfinite(steps).any() else []


def hyperparameter_tables(search: xr.Dataset, doses: list[float]) -> list[str]:
    """Return the chosen hyperparameters, the same on RELION's scale at each dose per frame, and what came with them."""
    attrs = search.attrs
    if "strength" not in attrs:
        return []
    theta = np.deg2rad(attrs["balance_deg"])
    star = _star(search)
    chosen = []
    for name, what, unit in _CHOSEN:
        chosen.append((what, f"{number(attrs[name], 4)}{unit}"))
        if star and abs(star[name] - attrs[name]) > 1e-3 * abs(star[name]):
            chosen.append(("… before refinement (★)", f"{number(star[name], 4)}{unit}"))
    chosen += [
        ("Spatial prior strength", f"{number(attrs['strength'] * np.cos(theta), 4)} {STRENGTH_UNIT}"),
        ("Acceleration prior strength", f"{number(attrs['strength'] * np.sin(theta), 4)} {STRENGTH_UNIT}"),
    ]
    tables = [table(("Hyperparameter", "Chosen" if search.sizes.get("ray", 0) else "Given"), chosen)]
    tables += [_relion_table(attrs, dose) for dose in doses if np.isfinite(dose) and dose > 0]
    estimated = list(motion_model(attrs))
    how = "Estimated" if search.sizes.get("ray", 0) else "Taken with them"
    return [*tables, table(("Motion model", how), estimated)] if estimated else tables


def _relion_table(attrs: Mapping[str, Any], dose: float) -> str:
    from refmotion_nb.numerics.prior import Hyperparameters

    chosen = Hyperparameters(np.float64(attrs["strength"]), attrs["balance_deg"], attrs["distance_A"])
    units = {"s_vel": "Å per e/Å²", "s_div": "Å", "s_acc": "Å per e/Å²"}
    same = [(name, f"{number(value, 4)} {unit}") for (name, unit), value in zip(units.items(), chosen.to_relion(dose))]
    return table((f"RELION's, {number(dose)} e/Å² per frame", "Same prior"), same)


def motion_model(attrs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a prior has beside its hyperparameters, by name; ``attrs`` are those of a search or of a ``MotionPrior``."""
    if np.isfinite(common := float(attrs.get("common_std_A", np.nan))):
        yield "Errors of whole-frame alignment (σ)", f"{number(common)} Å"
    if drift := float(attrs.get("drift_strength", 0.0)):
        yield "Drift strength (motion of the whole field)", f"{number(drift)} (e/Å²)³/Å²"
    decay, floor = (float(attrs.get(name, np.nan)) for name in ("profile_decay_e_A2", "profile_floor"))
    if np.isinf(decay):
        yield "Local motion fades", "not at all"
    if np.isfinite(decay):
        least = f", to {100 * floor:.0f} % of its start" if np.isfinite(floor) else ""
        yield "Local motion fades over", f"{number(decay)} e/Å²{least}"


def ray_table(search: xr.Dataset) -> str:
    """Return what each ray found, and why it ended; the ray with the lowest score first."""
    score, strength = search["cv_score"].values, search["strength"].values
    lowest = np.array([np.nanmin(row) if np.isfinite(row).any() else np.inf for row in score])
    digits = 4 - int(np.floor(np.log10(np.clip(abs(best_score(search)), 1e-9, 1e4))))
    lines: list[tuple[object, ...]] = []
    for ray in np.argsort(lowest):
        name = int(ray) + 1, float(search["balance"][ray]), float(search["distance"][ray])
        seen = np.flatnonzero(np.isfinite(score[ray]))
        if not seen.size:
            lines.append((*name, 0, *[np.nan] * 5, "not visited"))
            continue
        step = seen[np.nanargmin(score[ray][seen])]
        reason = str(search["reason"].values[ray]) if "reason" in search else ""
        over = f"retired: {reason}" if bool(search["retired"][ray]) else reason or "maximum strength"
        lines.append((*name, seen.size, float(strength[ray][seen[-1]]), Decimals(score[ray][step], digits),
                      float(strength[ray][step]), *_activities(search, ray, step), over))  # fmt: skip
    head = ("Ray", "Balance (°)", "Distance (Å)", "Steps", "Last strength", "Lowest score", "… at strength",
            "Local activity (Å)", "Total activity (Å)", "Ended")  # fmt: skip
    return table(head, lines, marked=0, css="reasons")


def _activities(search: xr.Dataset, ray: int, step: int) -> list[float]:
    return [
        float(search[name][ray, step]) if name in search else np.nan for name in ("activity_local", "activity_total")
    ]


def search_warnings(search: xr.Dataset) -> list[str]:
    """Return what to look at in a search, each with its remedy."""
    from refmotion_nb.stages.search import still_moving

    if not search.sizes.get("ray", 0):
        return []
    found = still_moving(search)
    activity, _ = best_activity(search)
    if activity < STILL_A:
        found.append(
            "The best hyperparameters leave no local motion: these data do not support any. Check that the reference "
            "and the poses belong to these particles, or search with more of them (target_particles)."
        )
    if int(search.attrs.get("best_step", 1)) == 0:
        found.append("The lowest score is at the first step of its ray: weaker priors than were tried may be better.")
    return found


def tell_search(search: xr.Dataset) -> str:
    """Return in words what was searched and chosen."""
    attrs, n_rays = search.attrs, search.sizes.get("ray", 0)
    chosen = ""
    if "strength" in attrs:
        chosen = (
            f"a total prior strength of {number(attrs['strength'])}, a balance of {number(attrs['balance_deg'])}° and "
            f"a correlation distance of {number(attrs['distance_A'], 4)} Å"
        )
    if not n_rays:
        return f"Motion hyperparameters were given: {chosen}." if chosen else "No motion hyperparameters were searched."
    text = f"Motion hyperparameters were searched along {count(n_rays, 'ray')}"
    if "n_particles" in attrs:
        micrographs = count(len(attrs.get("micrographs", [])), "micrograph")
        text += f" with {count(int(attrs['n_particles']), 'particle')} of {micrographs}"
    if attrs.get("k_cut_per_A") and attrs.get("k_out_per_A"):
        text += (
            f": trajectories from Fourier components down to {1 / attrs['k_cut_per_A']:.1f} Å, judged by those from there to "
            f"{1 / attrs['k_out_per_A']:.1f} Å against the opposite half map"
        )
    if not chosen:
        return f"{text}. None were chosen yet."
    lowest = "The lowest cross-validation score"
    star, (local, total) = _star(search), best_activity(search)
    if star and any(abs(star[name] - attrs[name]) > 1e-3 * abs(star[name]) for name, *_ in _CHOSEN):
        text += (
            f". The best of their steps (★), of strength {number(star['strength'])}, balance {number(star['balance_deg'])}° and "
            f"distance {number(star['distance_A'], 4)} Å, has a score of {number(star['cv_score'], 5)}. Then the motion model "
            "was estimated and finer steps were taken, on the three best rays"
        )
        lowest += " of these"
    # the steps of a ray start from one another and are solved less exactly
    rougher = " (the star's is that of a rougher solution)" if star and star["cv_score"] < best_score(search) else ""
    return (
        f"{text}. {lowest}, {number(best_score(search), 5)}{rougher}, belongs to {chosen}. With these, "
        "the 75th percentile of the length of trajectories relative to rigid motion (the trajectory activity) is "
        f"{number(local)} Å for local motion, and {number(total)} Å with the correction of whole-frame alignment, whose errors "
        "jitter from frame to frame."
    )
