"""The part of the report on whole micrographs: what was written, how they moved, what was not written and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.data.reasons import alike
from refmotion_nb.views.report_html import CATEGORIES, Decimals, count, folded, mapping, paragraphs, table, titled
from refmotion_nb.views.report_inputs import files_table, some_of
from refmotion_nb.views.report_run import repeat
from refmotion_nb.views.svg import Axis, Legend, Line, figure, line_drawing, number, panels, track_drawing

if TYPE_CHECKING:
    import xarray as xr

OPEN = 1  # micrographs that are not folded away

_MOTION = (
    "What was undone: how places of the micrograph moved while it was exposed, and the mean of all places against dose. A path "
    "starts at its dot and runs from the first frame to the last in the colours of the scale, magnified as written at the bar. "
    "Good paths are smooth, longest in the first frames, and much alike from place to place. A path that jumps in a single "
    "frame comes from a frame that was aligned wrongly: such a micrograph is blurred."
)


def micrographs_section(corrected: xr.Dataset | None, some: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> str:
    """Return what is known of whole micrographs, with the motion of ``some``; empty without results."""
    if corrected is None:
        return ""
    record = mapping(attrs, "micrographs")
    shown = {name: some[name] for name in written_names(corrected) if name in some}
    motion = "".join(
        folded(_title(name, found), _motion(name, found), i < OPEN) for i, (name, found) in enumerate(shown.items())
    )
    left = int(corrected["written"].sum()) - len(shown)
    more = paragraphs([f"{len(shown)} of {left + len(shown):,}; all are in the results."]) if left else ""
    return (
        titled("What was left out, and why", _left_out(corrected))
        + titled("Written", table(("Micrograph", "Size (px)", "Pixel (Å)", "Moved by", "Path of the whole (Å)",
                                   "Largest local motion (Å)", "File"), map(_row, shown.values(), shown)) + more
                 if shown else "")
        + titled("Motion that was undone", motion)
        + titled("Files", files_table(mapping(record, "inputs")))
        + folded("How to write them again", repeat(record))
    )  # fmt: skip


def written_names(corrected: xr.Dataset) -> list[str]:
    """Return the names of the micrographs that were written."""
    return [str(name) for name in corrected["micrograph"].values[corrected["written"].values.astype(bool)]]


def tell_micrographs(corrected: xr.Dataset) -> str:
    """Return in words how many whole micrographs were written."""
    written = corrected["written"].values.astype(bool)
    pixels = " and ".join(f"{number(pixel, 4)} Å" for pixel in np.unique(corrected["pixel_size_A"].values[written]))
    which = f"All {count(written.size, 'micrograph')} were" if written.all() else (
        f"{written.sum():,} of {count(written.size, 'micrograph')} were"
    )  # fmt: skip
    where = f", in pixels of {pixels}, to the folder Micrographs" if written.any() else ""
    weights = {"standard": ", by the standard curve", "measured": ", by measured weights"}
    weighted = f"dose-weighted{weights.get(corrected.attrs.get('dose_weights', ''), '')}"
    if file := corrected.attrs.get("dose_weights_from_file"):
        weighted += f" (of {file})"
    return f"{which} written whole, motion-corrected and {weighted}{where}."


def _left_out(corrected: xr.Dataset) -> str:
    left = ~corrected["written"].values.astype(bool)
    names, reasons = corrected["micrograph"].values[left], corrected["reason"].values[left].astype(str)
    lines: list[tuple[object, ...]] = []
    for reason, of in alike(zip(names.tolist(), reasons.tolist())).items():
        lines.append((reason or "no reason given", len(of), some_of(of, len(of))))
    return table(("Left out because", "Micrographs", "Which"), lines) if lines else ""


def _row(found: xr.Dataset, name: str) -> tuple[object, ...]:
    attrs, (whole, local) = found.attrs, _moved(found)
    height, width = (int(n) for n in attrs["shape"])
    names = attrs.get("names", "")
    return (
        name, f"{width} × {height}", float(attrs["pixel_size_A"]),
        "its particles" if attrs.get("motion_of_particles") else "motion correction",
        Decimals(float(np.linalg.norm(np.diff(whole, axis=0), axis=-1).sum()), 2),
        Decimals(float(np.linalg.norm(local, axis=-1).max(initial=0)), 2),
        names if isinstance(names, str) else ", ".join(map(str, names)),
    )  # fmt: skip


def _moved(found: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of all places (frame, 2) and what each does beyond it (place, frame, 2), Å from the first frame."""
    moved = found["displacement"].transpose("y", "x", "frame", "axis").values.astype(float)
    moved = moved.reshape(-1, *moved.shape[2:])
    moved = moved - moved[:, :1]
    return moved.mean(0), moved - moved.mean(0)


def _title(name: str, found: xr.Dataset) -> str:
    whole, _ = _moved(found)
    return f"{name}: from first to last frame {number(float(np.linalg.norm(whole[-1])))} Å"


def _motion(name: str, found: xr.Dataset) -> str:
    whole, local = _moved(found)
    drawings = [
        ("Over the micrograph", _field(name, found, whole + local)),
        ("Mean of all places", _mean(name, found, whole)),
    ]
    legend = Legend().sequence("paths: first frame", "last").line("x", CATEGORIES[0]).line("y", CATEGORIES[1], "dashed")
    return figure(name, panels(drawings), _MOTION, legend=legend, css="wide")


def _field(name: str, found: xr.Dataset, paths: np.ndarray) -> str:
    y, x = (found[axis].values for axis in ("y", "x"))  # the middles of equal parts
    places = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)[:, ::-1]
    height, width = (float(at[0] + at[-1]) for at in (y, x))
    names = [f"at x {number(px, 4)} Å, y {number(py, 4)} Å" for px, py in places]
    axes = Axis("x (Å)", 0.0, width), Axis("y (Å)", 0.0, height)
    return track_drawing(f"{name}: motion over the micrograph", *axes, places, paths, names)


def _mean(name: str, found: xr.Dataset, whole: np.ndarray) -> str:
    dose = found["dose"].values
    lines = [
        Line(dose, whole[:, axis], "xy"[axis], CATEGORIES[axis], "dashed" if axis else "",
             points=[f"frame {f}, {'xy'[axis]}: {v:.2f} Å" for f, v in enumerate(whole[:, axis], 1)])
        for axis in range(2)
    ]  # fmt: skip
    x, y = Axis.of("Accumulated dose (e/Å²)", dose, zero=True), Axis.of("Displacement (Å)", whole, zero=True)
    return line_drawing(f"{name}: mean of all places", x, y, lines)
