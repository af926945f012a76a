"""The part of the report on trajectories, and on the noise and grey scale of the micrographs they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.views.report_html import CATEGORIES, count, folded, grid, label, paragraphs
from refmotion_nb.views.scale import MOST_FRAMES, MOST_PARTICLES, spread
from refmotion_nb.views.svg import Axis, Legend, Line, figure, line_drawing, number, panels, track_drawing

if TYPE_CHECKING:
    import xarray as xr

OPEN = 2  # micrographs that are not folded away

_TRACKS = (
    "Where each particle went while it was exposed: all motion, and local motion, which is without the mean of all particles. "
    "A path starts at the dot, at its particle, and runs from the first frame to the last in the colours of the scale, "
    "magnified as written at the bar. Good local paths are smooth, longest in the first frames, and alike for neighbours. Paths "
    "like scribbles that differ between neighbours follow noise: the priors are too weak, search with more particles. Local "
    "paths shorter than the dots mean that nothing but the whole micrograph moved."
)
_NOISE = (
    "How strong the noise of each micrograph is at coarse (left) and fine detail (right); it is what trajectories have to be "
    "found against. All micrographs should follow the median. One far off is badly exposed or contaminated; spikes in all of "
    "them come from the camera or its gain reference."
)
_SCALE = (
    "How bright the reference appears in each micrograph compared to all of them, the dose of a frame taken into account. Values "
    "should be near 1. Where one is near zero, particles are not seen there: wrong positions, thick ice, or an empty micrograph."
)


def tracks_section(tracks: Mapping[str, xr.Dataset], total: int) -> str:
    """Return the trajectories of some of ``total`` micrographs, folded beyond the first few."""
    if not tracks:
        return ""
    shown = f"{_some(len(tracks), total)}; all are in Tracks and in the results."
    told = shown if len(tracks) < total else f"All {count(total, 'micrograph')}." if total > 1 else ""
    bodies = [
        folded(_title(name, found), micrograph(name, found), i < OPEN) for i, (name, found) in enumerate(tracks.items())
    ]
    return paragraphs([told] if told else []) + "".join(bodies)


def _title(name: str, tracks: xr.Dataset) -> str:
    length = path_lengths(_local(tracks)[2])
    moved = f", local paths of {np.median(length):.2f} Å (median)" if length.size and np.isfinite(length).all() else ""
    return f"{name}: {count(tracks.sizes['particle'], 'particle')}{moved}"


def _local(tracks: xr.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return all motion (particle, frame, 2), rigid motion (frame, 2), motion beyond the mean of all, common correction, Å."""
    shift = tracks["shift"].values.astype(float)
    rigid = tracks["rigid"].values if "rigid" in tracks else np.zeros(shift.shape[1:])
    common = tracks["common"].values if "common" in tracks else np.zeros(shift.shape[1:])
    return shift, rigid, shift - shift.sum(0) / max(len(shift), 1), common


def path_lengths(paths: np.ndarray) -> np.ndarray:
    """Return how far each particle travels, frame by frame: (particle,)."""
    return np.nansum(np.linalg.norm(np.diff(paths, axis=1), axis=-1), axis=1)


def micrograph(name: str, tracks: xr.Dataset) -> str:
    """Return one figure: all motion and local motion over the micrograph, and the motion of the whole per frame."""
    shift, rigid, local, common = _local(tracks)
    drawings = [
        ("All motion", _track_drawing(f"{name}: all motion", tracks, shift)),
        ("Local motion: beyond the mean of all particles", _track_drawing(f"{name}: local motion", tracks, local)),
        ("The micrograph as a whole", _common(name, tracks, rigid, common)),
    ]
    many = f"{MOST_PARTICLES} of {len(shift)} particles drawn" if len(shift) > MOST_PARTICLES else ""
    legend = Legend().sequence("paths: first frame", "last").line("x", CATEGORIES[0]).line("y", CATEGORIES[1], "dashed")
    return figure(name, panels(drawings), _TRACKS, legend=legend, subtitle=many, css="wide")


def _track_drawing(title: str, tracks: xr.Dataset, paths: np.ndarray) -> str:
    coordinate = tracks["coordinate"]
    places = coordinate.values.astype(float)
    width = float(tracks.attrs.get("width_A", places[:, 0].max(initial=1.0)))
    height = float(tracks.attrs.get("height_A", places[:, 1].max(initial=1.0)))
    unit = str(tracks["shift"].attrs.get("units", "Å"))
    area = str(coordinate.attrs.get("units", "Å"))
    shown = spread(len(places), MOST_PARTICLES)
    paths = paths[shown] - paths[shown, :1]
    rows = tracks["row"].values[shown] if "row" in tracks else shown
    names = [f"particle {row}: path of {value:.2f} {unit}" for row, value in zip(rows, path_lengths(paths))]
    frames = spread(paths.shape[1], MOST_FRAMES)
    x, y = Axis(f"x ({area})", 0.0, width), Axis(f"y ({area})", 0.0, height)
    return track_drawing(title, x, y, places[shown], paths[:, frames], names, unit=unit)


def _common(name: str, tracks: xr.Dataset, rigid: np.ndarray, common: np.ndarray) -> str:
    unit = tracks["shift"].attrs.get("units", "Å")
    frame = np.arange(1, len(rigid) + 1)
    x = Axis("Frame (number)", 0.5, max(len(frame), 1) + 0.5, whole=True)
    drawings = []
    for values, what in ((rigid + common, "Whole"), (common, "Beyond rigid")):
        lines = [
            Line(frame, values[:, axis], "xy"[axis], CATEGORIES[axis], "dashed" if axis else "",
                 points=[f"frame {f}, {'xy'[axis]}: {v:.2f} {unit}" for f, v in zip(frame, values[:, axis])])
            for axis in range(2)
        ]  # fmt: skip
        y = Axis.of(f"{what} ({unit})", values, zero=True)
        drawings.append(line_drawing(f"{name}: {what}", x, y, lines, size=(400, 160)))
    rms = float(np.sqrt(np.mean(common[np.isfinite(common)] ** 2))) if np.isfinite(common).any() else np.nan
    said = f"All of it, and what was found beyond rigid motion: {rms:.2f} {unit} (RMS per axis)."
    return "".join(drawings) + f"<small>{said}</small>"


def noise_section(spectra: Mapping[str, xr.Dataset], total: int) -> str:
    """Return the noise spectra and the scale of the reference in some of ``total`` micrographs."""
    return grid([*_noise(spectra, total), *_reference_scale(spectra, total)]) if spectra else ""


def _some(shown: int, total: int) -> str:
    return (
        f"{shown} of {count(total, 'micrograph')}, from the first to the last"
        if shown < total
        else count(total, "micrograph")
    )


def _noise(spectra: Mapping[str, xr.Dataset], total: int) -> list[str]:
    first = next(iter(spectra.values()))
    frequency, power = first["frequency"], first["noise_power"]
    lines = [
        Line(found["frequency"].values, found["noise_power"].values, name, "var(--c0)", "thin")
        for name, found in spectra.items()
    ]
    legend = Legend().line("one micrograph", "var(--c0)", "thin")
    if len({found["frequency"].size for found in spectra.values()}) == 1:
        median = np.median([found["noise_power"].values for found in spectra.values()], axis=0)
        lines.append(Line(frequency.values, median, "median", "var(--c1)", "thick"))
        legend.line("median", "var(--c1)")
    x = Axis.of(label(frequency), *(line.x for line in lines), resolution=True)
    y = Axis.of(label(power), *(line.y for line in lines), log=True)
    drawing = line_drawing("Noise spectra", x, y, lines)
    return [figure("Noise spectra", drawing, _NOISE, legend=legend, subtitle=_some(len(spectra), total))]


def _reference_scale(spectra: Mapping[str, xr.Dataset], total: int) -> list[str]:
    """Scale of the reference in each micrograph, which says how strongly the data pull against the prior."""
    values = [float(found.attrs.get("reference_scale", np.nan)) for found in spectra.values()]
    if not np.isfinite(values).any():
        return []
    at = 1 + spread(total, len(values))
    points = [f"{name}: {number(value)}" for name, value in zip(spectra, values)]
    y = Axis.of("Reference scale (of the usual one)", values, zero=True)
    line = Line(at, values, "", "var(--c2)", "only-points", points=points)
    drawing = line_drawing("Reference scale", Axis.of("Micrograph (number)", at, whole=True), y, [line])
    return [figure("Reference scale", drawing, _SCALE, subtitle=_some(len(spectra), total))]
