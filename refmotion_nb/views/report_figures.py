"""The figures of the report: from the Dataset of a group to HTML, with the labels and units of the Dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.views.svg import (
    Axis,
    Legend,
    Line,
    Mark,
    figure,
    heat_map,
    line_chart,
    line_drawing,
    number,
    step_colour,
    track_map,
)

if TYPE_CHECKING:
    import xarray as xr

CATEGORIES = tuple(f"var(--c{i})" for i in range(7))
MAX_PARTICLES = 300  # drawn on one micrograph
MAX_PANELS = 4
SHORT = {"b_factor": "B-factor", "frame_scale": "Scale factor"}  # long names do not fit beside a low chart


def name_of(variable: xr.DataArray) -> str:
    """Return the long name of ``variable`` as a heading."""
    name = str(variable.attrs.get("long_name", variable.name))
    return name[:1].upper() + name[1:]


def label(variable: xr.DataArray) -> str:
    """Return what an axis of ``variable`` is called: its long name with its unit."""
    unit = str(variable.attrs.get("units", ""))
    if unit in ("", "1"):
        return name_of(variable)
    return f"{name_of(variable)}, {unit}" if "(" in unit else f"{name_of(variable)} ({unit})"


def rays(search: xr.Dataset) -> list[str]:
    """Score and local activity against strength, a panel for each correlation distance, a colour for each balance."""
    distance, balance = search["distance"].values, search["balance"].values
    panels = [distance == z for z in np.unique(distance)]
    if len(panels) > MAX_PANELS:  # no grid: everything in one
        panels = [np.ones(len(distance), bool)]
    figures = []
    for variable in ("cv_score", "activity_local"):
        if variable not in search:
            continue
        x = Axis.of(label(search["strength"]), search["strength"], log=True)
        y = Axis.of(label(search[variable]), search[variable], zero=variable != "cv_score")
        for members in panels:
            z = f"{label_value(search['distance'], distance[members][0])}" if len(panels) > 1 else ""
            figures.append(_ray_panel(search, variable, members, x, y, z, np.unique(balance)))
    return figures


def label_value(variable: xr.DataArray, value: float) -> str:
    """Return a value of ``variable`` with its name and unit."""
    unit = str(variable.attrs.get("units", ""))
    return f"{name_of(variable)} {number(value, 4)} {unit.replace('degrees', '°')}".replace(" °", "°").strip()


def _ray_panel(
    search: xr.Dataset, variable: str, members: np.ndarray, x: Axis, y: Axis, subtitle: str, balances: np.ndarray
) -> str:
    lines, marks = [], []
    best = int(search.attrs.get("best_ray", -1)), int(search.attrs.get("best_step", -1))
    span = max(float(np.ptp(balances)), 1e-9)
    for ray in np.flatnonzero(members):
        theta = float(search["balance"][ray])
        colour = step_colour((theta - balances[0]) / span)
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
    legend = Legend()
    for theta in balances:
        legend.line(f"{number(theta)}°", step_colour((theta - balances[0]) / span))
    title = name_of(search[variable])
    legend.note("★ best" if any(m.kind == "best" for m in marks) else "").note(
        "× retired" if any(m.kind == "end" for m in marks) else ""
    )
    return line_chart(title, x, y, lines, marks=marks, legend=legend, subtitle=subtitle)


def micrograph(name: str, tracks: xr.Dataset) -> list[str]:
    """All motion and local motion over the micrograph, and the motion of the micrograph as a whole per frame."""
    shift = tracks["shift"].values.astype(float)
    rigid = tracks["rigid"].values if "rigid" in tracks else np.zeros(shift.shape[1:])
    common = tracks["common"].values if "common" in tracks else np.zeros(shift.shape[1:])
    local = shift - rigid - common
    many = f"{min(len(shift), MAX_PARTICLES)} of {len(shift)} particles"
    maps = [
        _track_map(f"{name}: all motion", tracks, shift, many),
        _track_map(f"{name}: local motion", tracks, local, "what each particle does beyond the micrograph as a whole"),
    ]
    return [*maps, _common(name, tracks, rigid, common)]


def _track_map(title: str, tracks: xr.Dataset, paths: np.ndarray, subtitle: str) -> str:
    coordinate = tracks["coordinate"]
    places = coordinate.values.astype(float)
    width = float(tracks.attrs.get("width_A", places[:, 0].max(initial=1.0)))
    height = float(tracks.attrs.get("height_A", places[:, 1].max(initial=1.0)))
    unit = str(tracks["shift"].attrs.get("units", "Å"))
    area = str(coordinate.attrs.get("units", "Å"))
    shown = np.linspace(0, len(places) - 1, min(len(places), MAX_PARTICLES)).round().astype(int)
    paths = paths[shown] - paths[shown, :1]
    length = np.nansum(np.linalg.norm(np.diff(paths, axis=1), axis=-1), axis=1)
    rows = tracks["row"].values[shown] if "row" in tracks else shown
    names = [f"particle {row}: path of {value:.2f} {unit}" for row, value in zip(rows, length)]
    x, y = Axis(f"x ({area})", 0.0, width), Axis(f"y ({area})", 0.0, height)
    return track_map(title, x, y, places[shown], paths, names, unit=unit, subtitle=subtitle)


def _common(name: str, tracks: xr.Dataset, rigid: np.ndarray, common: np.ndarray) -> str:
    unit = tracks["shift"].attrs.get("units", "Å")
    frame = np.arange(1, len(rigid) + 1)
    x = Axis.of("Frame (number)", frame)
    drawings = []
    for values, what in ((rigid + common, "Whole micrograph"), (common, "Common correction")):
        lines = [
            Line(frame, values[:, axis], "xy"[axis], CATEGORIES[axis],
                 points=[f"frame {f}, {'xy'[axis]}: {v:.2f} {unit}" for f, v in zip(frame, values[:, axis])])
            for axis in range(2)
        ]  # fmt: skip
        y = Axis.of(f"{what} ({unit})", values, zero=True)
        drawings.append(line_drawing(f"{name}: {what}", x, y, lines, size=(400, 160)))
    legend = Legend().line("x", CATEGORIES[0]).line("y", CATEGORIES[1])
    rms = float(np.sqrt(np.mean(common[np.isfinite(common)] ** 2))) if np.isfinite(common).any() else np.nan
    subtitle = f"rigid motion and its common correction ({rms:.2f} {unit} rms per axis)"
    return figure(f"{name}: as a whole", "".join(drawings), legend, subtitle)


def damage(dose: xr.Dataset) -> list[str]:
    """FCC and weights of one group (frame, frequency) as images and curves; B-factors and scales per frame."""
    frequency, exposure = dose["frequency"], dose["dose"].values
    x = Axis(label(frequency), *_edges(frequency.values), resolution=True)
    y = Axis(label(dose["dose"]), *_edges(exposure))
    figures = []
    if "fcc" in dose:
        # the lowest frequencies correlate so well that they would leave no colours for the rest
        inside = dose["fcc"].values[:, _fitted(dose)]
        top, bottom = max(_percentile(inside, 99.5), 1e-6), min(0.0, _percentile(inside, 0.5))
        title = "Correlation with the reference (FCC)"
        figures.append(heat_map(title, x, y, dose["fcc"].values, Axis(label(dose["fcc"]), bottom, top)))
        figures.append(_fcc_curves(dose))
    per_frame = [
        _per_frame(dose, name, CATEGORIES[i]) for i, name in enumerate(("b_factor", "frame_scale")) if name in dose
    ]
    if per_frame:
        figures.append(
            figure("B-factor and scale of each frame", "".join(per_frame), None, "relative to the best frame")
        )
    if "weight" in dose:
        both = [dose[name] for name in ("weight", "reference_weight") if name in dose]
        colour = Axis(label(dose["weight"]), 0.0, max(1e-6, *(_percentile(v.values, 99.5) for v in both)))
        figures += [heat_map(label(values), x, y, values.values, colour) for values in both]
        figures.append(_weight_curves(dose))
    return figures


def _percentile(values: np.ndarray, percent: float) -> float:
    found = values[np.isfinite(values)]
    return float(np.percentile(found, percent)) if found.size else 0.0


def _fitted(dose: xr.Dataset, beyond: float = 1.0) -> np.ndarray:
    """Return which frequencies the model was fitted to, and up to ``beyond`` times the highest; all if not known."""
    frequency = dose["frequency"].values
    low, high = 1 / dose.attrs.get("fitted_from_A", np.inf), beyond / max(dose.attrs.get("fitted_to_A", 0.0), 1e-9)
    inside = np.flatnonzero((frequency >= 0.999 * low) & (frequency <= 1.001 * high))
    return inside if inside.size else np.arange(frequency.size)


def _edges(centres: np.ndarray) -> tuple[float, float]:
    """Return where the first cell begins and the last one ends; numbers of cells where that is not known."""
    steps = np.diff(centres) if len(centres) > 1 else np.ones(1)
    low, high = float(centres[0] - steps[0] / 2), float(centres[-1] + steps[-1] / 2)
    return (low, high) if low < high < np.inf else (0.5, len(centres) + 0.5)


def _fcc_curves(dose: xr.Dataset) -> str:
    dose = dose.isel(frequency=_fitted(dose, beyond=1.3))
    frequency, exposure = dose["frequency"].values, dose["dose"].values
    frames = np.unique(np.linspace(0, len(exposure) - 1, 6).round().astype(int))
    lines = []
    for frame in frames:
        colour = step_colour(frame / max(len(exposure) - 1, 1))
        name = f"frame {frame + 1}, {number(exposure[frame])} {dose['dose'].attrs.get('units', '')}"
        lines.append(Line(frequency, dose["fcc"].values[frame], name, colour, "dots"))
        if "fcc_model" in dose:
            lines.append(Line(frequency, dose["fcc_model"].values[frame], f"{name}: model", colour))
    unit = dose["dose"].attrs.get("units", "")
    legend = Legend().sequence(f"{number(exposure[0])} {unit}", f"{number(exposure[-1])} {unit}")
    legend.line("measured", "var(--muted)", "dots").line("model", "var(--muted)")
    x = Axis.of(label(dose["frequency"]), frequency, resolution=True)
    y = Axis.of(label(dose["fcc"]), dose["fcc"].values[frames], zero=True)
    return line_chart("FCC of some frames", x, y, lines, legend=legend, subtitle="measured, and the model fitted")


def _per_frame(dose: xr.Dataset, name: str, colour: str) -> str:
    exposure, values = dose["dose"].values, dose[name].values
    unit = str(dose[name].attrs.get("units", "")).replace("1", "")
    points = [f"frame {i + 1}, {number(d)} {dose['dose'].attrs.get('units', '')}: {number(v, 4)} {unit}".strip()
              for i, (d, v) in enumerate(zip(exposure, values))]  # fmt: skip
    x = Axis.of(label(dose["dose"]), exposure, zero=True)
    title = name_of(dose[name])
    y = Axis.of(f"{SHORT[name]} ({unit})".replace(" ()", ""), values, zero=True)
    return line_drawing(title, x, y, [Line(exposure, values, "", colour, points=points)], size=(400, 160))


def _weight_curves(dose: xr.Dataset) -> str:
    frequency, exposure = dose["frequency"].values, dose["dose"].values
    shells = np.unique(_fitted(dose)[np.linspace(0, len(_fitted(dose)) - 1, 5).round().astype(int)[1:]])
    lines, legend = [], Legend()
    for colour, shell in zip(CATEGORIES, shells):
        name = f"{1 / frequency[shell]:.1f} Å"
        band = None
        if "weight_lo" in dose and "weight_hi" in dose:
            band = dose["weight_lo"].values[:, shell], dose["weight_hi"].values[:, shell]
        lines.append(Line(exposure, dose["weight"].values[:, shell], name, colour, band=band))
        if "reference_weight" in dose:
            reference = dose["reference_weight"].values[:, shell]
            lines.append(Line(exposure, reference, f"{name}, Grant–Grigorieff", colour, "dashed"))
        legend.line(name, colour)
    if "reference_weight" in dose:
        legend.line("Grant–Grigorieff", "var(--muted)", "dashed")
    x = Axis.of(label(dose["dose"]), exposure, zero=True)
    y = Axis.of(label(dose["weight"]), *(line.y for line in lines), zero=True)
    subtitle = "per resolution; shaded: confidence" if any(line.band for line in lines) else "per resolution"
    return line_chart("Weight of a frame", x, y, lines, legend=legend, subtitle=subtitle)


def noise(spectra: Mapping[str, xr.Dataset]) -> list[str]:
    """Noise power of the micrographs and the median of them."""
    first = next(iter(spectra.values()))
    frequency, power = first["frequency"], first["noise_power"]
    lines = [
        Line(found["frequency"].values, found["noise_power"].values, name, "var(--c0)", "thin")
        for name, found in spectra.items()
    ]
    legend = Legend().line("one micrograph", "var(--c0)")
    if len({found["frequency"].size for found in spectra.values()}) == 1:
        median = np.median([found["noise_power"].values for found in spectra.values()], axis=0)
        lines.append(Line(frequency.values, median, "median", "var(--c1)", "thick"))
        legend.line("median", "var(--c1)")
    x = Axis.of(label(frequency), *(line.x for line in lines), resolution=True)
    y = Axis.of(label(power), *(line.y for line in lines), log=True)
    return [line_chart("Noise spectra", x, y, lines, legend=legend, subtitle=f"{len(spectra)} micrographs")]


def reference_scale(spectra: Mapping[str, xr.Dataset]) -> list[str]:
    """Scale of the reference in each micrograph, which says how strongly the data pull against the prior."""
    values = [float(found.attrs.get("reference_scale", np.nan)) for found in spectra.values()]
    if not np.isfinite(values).any():
        return []
    at = np.arange(1, len(values) + 1)
    points = [f"{name}: {number(value)}" for name, value in zip(spectra, values)]
    y = Axis.of("Reference scale (ratio)", values, zero=True)
    line = Line(at, values, "", "var(--c2)", "only-points", points=points)
    return [line_chart("Reference scale", Axis.of("Micrograph (number)", at), y, [line])]


def fsc(validation: xr.Dataset) -> list[str]:
    """FSC of the combinations, one figure for each reference."""
    curve = validation["fsc_corrected"] if "fsc_corrected" in validation else validation["fsc_masked"]
    frequency = validation["frequency"]
    x = Axis.of(label(frequency), frequency.values, resolution=True)
    figures = []
    for reference in range(validation.sizes.get("reference", 1))[:MAX_PANELS]:
        lines, legend = [], Legend()
        for i, name in enumerate(map(str, validation["combination"].values)):
            values = curve.isel(reference=reference, combination=i).values
            resolution = ""
            if "resolution_0143" in validation:
                resolution = f" {float(validation['resolution_0143'][reference, i]):.2f} Å"
            lines.append(Line(frequency.values, values, name + resolution, CATEGORIES[i % 7], "" if i else "dashed"))
            legend.line(name + resolution, CATEGORIES[i % 7], "" if i else "dashed")
        y = Axis.of(label(curve), *(line.y for line in lines), zero=True)
        title = f"FSC, reference {reference + 1}" if validation.sizes.get("reference", 1) > 1 else "FSC"
        rules = [(0.143, "0.143"), (0.5, "0.5")]
        figures.append(line_chart(title, x, y, lines, rules=rules, legend=legend, size=(560, 320)))
    return figures
