"""The words and tables of the report: what was done, what was found, what to look at and what to do about it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    import xarray as xr

STILL_A = 0.05  # local activity below which nothing moves any more
PART = "(part)"  # ends the name of a time that is part of another
STAGES = {
    "search": ("the hyperparameter search", "hyperparameters"),
    "dose_weights": ("dose weights", "dose-weights"),
    "tracks": ("trajectories", "correct"),
    "particles": ("corrected particles", "correct"),
    "validation": ("the comparison of maps", "validate"),
}


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
    return f'<div class="scroll"><table class="{css}"><tr>{titles}</tr>{"".join(body)}</table></div>'


def tiles(groups: Mapping[str, xr.Dataset], seconds: Mapping[str, float]) -> list[tuple[str, str, str]]:
    """Return the figures to see first: (what, value, remark)."""
    found = []
    if "particles" in groups:
        written = groups["particles"]["written"].values.astype(bool)
        names = np.unique(groups["particles"]["micrograph"].values[written])
        found.append(
            ("Particles corrected", f"{written.sum():,}", f"of {written.size:,}, in {names.size:,} micrographs")
        )
    if "search" in groups and "strength" in groups["search"].attrs:
        attrs = groups["search"].attrs
        three = f"{number(attrs['strength'])} · {number(attrs['balance_deg'])}° · {number(attrs['distance_A'], 4)} Å"
        found.append(("Hyperparameters", three, "total prior strength · balance · correlation distance"))
        local, total = best_activity(groups["search"])
        found.append(("Trajectory activity", f"{number(local)} Å", f"local; {number(total)} Å in total"))
    if "validation" in groups and "resolution_0143" in groups["validation"]:
        cut = groups["validation"]["resolution_0143"].values[0]
        names = groups["validation"]["combination"].values
        found.append(("Resolution", f"{fixed(cut[0])} → {fixed(cut[-1])} Å", f"FSC 0.143, {names[0]} → {names[-1]}"))
    stages = [value for name, value in seconds.items() if not name.endswith(PART)]
    if stages:
        found.append(("Time", duration(sum(stages)), f"in {count(len(stages), 'stage')}"))
    return found


def sentences(groups: Mapping[str, xr.Dataset]) -> list[str]:
    """Return what was done, in plain words, a sentence or two for each stage that has results."""
    tell = {"particles": _tell_particles, "search": _tell_search, "dose_weights": _tell_dose, "validation": _tell_maps}
    return [function(groups[name]) for name, function in tell.items() if name in groups]


def _tell_particles(particles: xr.Dataset) -> str:
    written = particles["written"].values.astype(bool)
    left = int((~written).sum())
    if not left:
        return f"All {count(written.size, 'particle')} were corrected for their own motion and written."
    return (
        f"{written.sum():,} of {count(written.size, 'particle')} were corrected for their own motion and written; "
        f"{left:,} were not, for the reasons listed."
    )


def _tell_search(search: xr.Dataset) -> str:
    attrs, rays = search.attrs, search.sizes.get("ray", 0)
    chosen = ""
    if "strength" in attrs:
        chosen = (
            f"a total prior strength of {number(attrs['strength'])}, a balance of {number(attrs['balance_deg'])}° and "
            f"a correlation distance of {number(attrs['distance_A'], 4)} Å"
        )
    if not rays:
        return f"Motion hyperparameters were given: {chosen}." if chosen else "No motion hyperparameters were searched."
    text = f"Motion hyperparameters were searched along {count(rays, 'ray')}"
    if "n_particles" in attrs:
        micrographs = count(len(attrs.get("micrographs", [])), "micrograph")
        text += f" with {count(int(attrs['n_particles']), 'particle')} of {micrographs}"
    if attrs.get("k_cut") and attrs.get("k_out"):
        text += (
            f": trajectories from Fourier components down to {1 / attrs['k_cut']:.1f} Å, judged by those from there to "
            f"{1 / attrs['k_out']:.1f} Å against the opposite half map"
        )
    if not chosen:
        return f"{text}. None were chosen yet."
    local, total = best_activity(search)
    return (
        f"{text}. The lowest cross-validation score, {number(best_score(search), 5)}, belongs to {chosen}. With these, "
        "the 75th percentile of the length of trajectories relative to rigid motion (the trajectory activity) is "
        f"{number(local)} Å for local motion, {number(total)} Å in total."
    )


def _tell_dose(dose: xr.Dataset) -> str:
    if "b_factor" not in dose or not np.isfinite(dose["b_factor"].values[0]).any():
        return "Dose weights were measured."
    b, exposure = dose["b_factor"].values[0], dose["dose"].values[0]
    best = int(np.nanargmin(b))
    first = f"the first frame has a B-factor of {number(b[0])} Å² relative to it, " if best else ""
    return (
        f"Dose weights were measured from the correlation of each frame with the reference (FCC). Frame {best + 1}, at "
        f"{number(exposure[best])} e/Å², keeps the most high-resolution signal; {first}the last frame, at "
        f"{number(exposure[-1])} e/Å², has {number(b[-1])} Å²."
    )


def _tell_maps(validation: xr.Dataset) -> str:
    if "resolution_0143" not in validation:
        return "Maps were reconstructed for comparison."
    names, cut = validation["combination"].values, validation["resolution_0143"].values[0]
    each = ", ".join(f"{fixed(value)} Å ({name})" for name, value in zip(names, cut))
    return f"Half maps reconstructed from the same particles agree (FSC 0.143) to {each}."


def warnings(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> list[str]:
    """Return what needs attention, each with its remedy: what the stages noted, and what the results show."""
    found = [str(text)[:1].upper() + str(text)[1:] for text in decoded(attrs.get("warnings", [])) or []]
    if "search" in groups and groups["search"].sizes.get("ray", 0):
        found += [text for text in _search_warnings(groups["search"]) if text not in found]
    if "particles" in groups:
        written = groups["particles"]["written"].values.astype(bool)
        if written.size and written.mean() < 0.9:
            found.append(f"{1 - written.mean():.0%} of the particles were not written: see what was skipped, and why.")
    if "validation" in groups and "resolution_0143" in groups["validation"]:
        for i, cut in enumerate(groups["validation"]["resolution_0143"].values):
            if cut[-1] > cut[0] * 1.005:
                found.append(
                    f"Reference {i + 1}: the corrected particles give a worse map ({cut[-1]:.2f} Å) than rigid motion "
                    f"({cut[0]:.2f} Å). Check that poses, half sets and reference belong to these particles."
                )
    return found


def _search_warnings(search: xr.Dataset) -> list[str]:
    from refmotion_nb.stages.search import still_moving

    found = [f"{text[:1].upper()}{text[1:]}" for text in still_moving(search)]
    activity, _ = best_activity(search)
    if activity < STILL_A:
        found.append(
            "The best hyperparameters leave no local motion: these data do not support any. Check that the reference "
            "and the poses belong to these particles, or search with more of them (target_particles)."
        )
    if int(search.attrs.get("best_step", 1)) == 0:
        found.append("The lowest score is at the first step of its ray: weaker priors than were tried may be better.")
    return found


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


def _best_step(search: xr.Dataset) -> float | None:
    at = _best_index(search)
    return float(search["strength"].isel(at)) if at else None


def best_score(search: xr.Dataset) -> float:
    """Return the score of the best hyperparameters."""
    scores = search["cv_score"].values
    return float(search.attrs.get("cv_score", np.min(scores[np.isfinite(scores)], initial=np.inf)))


def hyperparameter_tables(search: xr.Dataset, dose: xr.Dataset | None) -> list[str]:
    """Return the chosen hyperparameters, the same on RELION's scale, and what was estimated along with them."""
    attrs = search.attrs
    if "strength" not in attrs:
        return []
    theta = np.deg2rad(attrs["balance_deg"])
    chosen = [
        ("Total prior strength", number(attrs["strength"], 4)),
        ("Acceleration/spatial balance", f"{number(attrs['balance_deg'])}°"),
        ("Correlation distance", f"{number(attrs['distance_A'], 4)} Å"),
        ("Spatial prior strength", number(attrs["strength"] * np.cos(theta), 4)),
        ("Acceleration prior strength", number(attrs["strength"] * np.sin(theta), 4)),
    ]
    step = _best_step(search)
    if step is not None and abs(step - attrs["strength"]) > 1e-3 * step:
        chosen.insert(1, ("… before refinement (★)", number(step, 4)))
    tables = [table(("Hyperparameter", "Chosen"), chosen)]
    relion = [(name, f"{number(value)} {unit}") for (name, unit), value in _relion(attrs, dose).items()]
    if relion:
        tables.append(table(("In RELION's units", "The same prior"), relion))
    names = {
        "common_std_A": ("Common motion per frame (σ)", "Å"),
        "profile_decay_e_A2": ("Local motion decays with", "e/Å²"),
        "profile_floor": ("Local motion in the end, of the first", ""),
    }
    estimated = [(name, f"{number(attrs[key])} {unit}".strip()) for key, (name, unit) in names.items() if key in attrs]
    return [*tables, table(("Motion model", "Estimated"), estimated)] if estimated else tables


def _relion(attrs: Mapping[str, Any], dose: xr.Dataset | None) -> dict[tuple[str, str], float]:
    names = {"s_vel": "Å per e/Å²", "s_div": "Å", "s_acc": "Å per e/Å²"}
    given = decoded(attrs.get("relion", {})) or {}
    per_frame = attrs.get("dose_per_frame_e_A2", np.nan)
    if dose is not None and not np.isfinite(per_frame) and dose.sizes.get("frame", 0) > 1:
        per_frame = float(np.median(np.diff(dose["dose"].values[0])))
    if not given and np.isfinite(per_frame):
        from refmotion_nb.numerics.prior import Hyperparameters

        # NumPy's division: a prior without one of its two terms is an infinite s
        with np.errstate(divide="ignore"):
            chosen = Hyperparameters(np.float64(attrs["strength"]), attrs["balance_deg"], attrs["distance_A"])
            given = dict(zip(names, chosen.to_relion(per_frame)))
    return {(name, unit): float(given[name]) for name, unit in names.items() if given.get(name) is not None}


def ray_table(search: xr.Dataset) -> str:
    """Return what each ray found, and why it ended; the ray with the lowest score first."""
    score, strength = search["cv_score"].values, search["strength"].values
    lowest = np.array([np.nanmin(row) if np.isfinite(row).any() else np.inf for row in score])
    digits = 4 - int(np.floor(np.log10(np.clip(abs(best_score(search)), 1e-9, 1e4))))
    rows: list[tuple[object, ...]] = []
    for ray in np.argsort(lowest):
        name = int(ray) + 1, float(search["balance"][ray]), float(search["distance"][ray])
        seen = np.flatnonzero(np.isfinite(score[ray]))
        if not seen.size:
            rows.append((*name, 0, *[np.nan] * 5, "not visited"))
            continue
        step = seen[np.nanargmin(score[ray][seen])]
        reason = str(search["reason"].values[ray]) if "reason" in search else ""
        over = f"retired: {reason}" if bool(search["retired"][ray]) else reason or "maximum strength"
        rows.append((*name, seen.size, float(strength[ray][seen[-1]]), Decimals(score[ray][step], digits),
                     float(strength[ray][step]), *_activities(search, ray, step), over))  # fmt: skip
    head = ("Ray", "Balance (°)", "Distance (Å)", "Steps", "to strength", "Lowest score", "at strength", "with local",
            "total activity (Å)", "Ended")  # fmt: skip
    return table(head, rows, marked=0)


def _activities(search: xr.Dataset, ray: int, step: int) -> list[float]:
    return [
        float(search[name][ray, step]) if name in search else np.nan for name in ("activity_local", "activity_total")
    ]


def skipped_table(particles: xr.Dataset) -> str:
    """Return why particles were not written: reason, how many, in which micrographs; empty if all were."""
    left = ~particles["written"].values.astype(bool)
    names, reasons = particles["micrograph"].values[left], particles["reason"].values[left]
    rows = []
    for reason, count in Counter(map(str, reasons)).most_common():
        where = sorted(set(map(str, names[reasons == reason])))
        shown = ", ".join(where[:3]) + (f" and {len(where) - 3:,} more" if len(where) > 3 else "")
        rows.append((reason or "no reason given", count, shown))
    return table(("Not written because", "Particles", "Micrographs"), rows) if rows else ""


def resolution_table(validation: xr.Dataset) -> str:
    """Return the resolutions of the combinations."""
    rows = []
    for reference in range(validation.sizes.get("reference", 1)):
        for i, name in enumerate(map(str, validation["combination"].values)):
            cuts = [Decimals(float(validation[f"resolution_{at}"][reference, i]), 2) for at in ("0143", "05")]
            rows.append((reference + 1, name, *cuts))
    return table(("Reference", "Particles", "FSC 0.143 (Å)", "FSC 0.5 (Å)"), rows, css="narrow")


def seconds_table(seconds: Mapping[str, float]) -> str:
    """Return the time of each stage with a bar."""
    longest = max(seconds.values())
    whole_first = sorted(seconds.items(), key=lambda item: item[0].endswith(PART))
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td class=n>{escape(duration(value))}</td>"
        f'<td class="bar"><i style="width:{100 * value / max(longest, 1e-9):.1f}%"></i></td></tr>'
        for name, value in whole_first
    )
    return (
        f'<div class="scroll"><table class="narrow"><tr><th>Stage</th><th>Time</th><th></th></tr>{rows}</table></div>'
    )


def mapping_table(values: Mapping[str, Any], head: tuple[str, str]) -> str:
    """Return settings or file names as a table."""
    return table(head, [(str(name), _value(value)) for name, value in values.items()], css="narrow")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def missing(groups: Mapping[str, object]) -> list[tuple[str, str]]:
    """Return what is not among the results: (what, the command that computes it)."""
    return [(what, f"refmotion run … --until {stage}") for name, (what, stage) in STAGES.items() if name not in groups]


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


def _cell(cell: object) -> str:
    if isinstance(cell, str):
        return escape(cell)
    if isinstance(cell, Decimals):
        return fixed(*cell)
    return f"{cell:,}" if isinstance(cell, int | np.integer) else number(float(cell))  # type: ignore[arg-type]
