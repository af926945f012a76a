"""The part of the report on maps: what trajectories and weights gained, as half maps of the same particles tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.data.maps import middle_section
from refmotion_nb.data.schema import InputError
from refmotion_nb.stages.validation import COMBINATIONS, map_path
from refmotion_nb.views.report_html import CATEGORIES, Decimals, fixed, grid, label, paragraphs, table, titled
from refmotion_nb.views.svg import Axis, Legend, Line, figure, heat_drawing, line_drawing, panels

if TYPE_CHECKING:
    import xarray as xr

MAX_REFERENCES = 12
WORSE = 1.005  # times the resolution before: worse
STYLES = ("dashed", "", "", "thick")  # of the combinations, so that colour is not needed to tell the first and last
_CURVES = {"fsc_corrected": "Corrected for the mask", "fsc_masked": "Masked, as it is"}  # what the panels are called
_FSC = (
    "How well maps of the two half sets agree (FSC), from coarse detail (left, 1: the same) to fine detail (right, 0: nothing in "
    "common); a curve for each way of treating the same particles. The further right a curve falls, the finer the detail that "
    "can be trusted: the resolution is read where it crosses 0.143, and 0.5 for what is well defined. Good: the curves with "
    "trajectories lie to the right of the first one, and all end near 0. The second panel is before correction for the mask, "
    "which by itself makes half maps agree. Curves that do not fall to 0 mean a mask too tight, half sets that are not separate, "
    "or pixels too large for the detail there is."
)
_MASK = (
    "What the mask does to the FSC of the last of these combinations. With random phases beyond some detail there is nothing "
    "left to agree on: what the dotted curve shows there is made by the mask alone, and is taken off the masked curve to give "
    "the corrected one (thick). Good: the dotted curve drops to near 0. If it does not, use a wider, softer mask."
)
_SLICE = (
    "The slice through the middle of the maps, in the same greys: of the mean of both half maps, weighted by the FSC and "
    "sharpened. They lie in the folder Maps. Good: the particle shows finer detail after the correction. How much of it can be "
    "trusted the FSC says, not the picture: sharpened noise looks fine, too."
)
_SIDE = 200  # px of a slice at most
_GREYS = 64  # more take room and are not told apart
_SINGLE = {"fsc_unmasked": ("no mask", "thin"), "fsc_masked": ("masked", ""),
           "fsc_randomised": ("random phases, masked", "dots"), "fsc_corrected": ("corrected", "thick")}  # fmt: skip


def maps_section(validation: xr.Dataset | None, out: Path | None = None) -> str:
    """Return FSC curves, resolutions, what was gained, and slices of the maps in ``out``; empty without results."""
    if validation is None:
        return ""
    curves = [*fsc(validation), *_mask_effect(validation), *(slices(validation, out) if out else ())]
    return paragraphs(gains(validation)) + grid(curves, "stack") + titled("Resolutions", resolution_table(validation))


def names_of(validation: xr.Dataset) -> list[str]:
    """Return the names of the combinations."""
    return [str(name) for name in validation["combination"].values]


def _references(validation: xr.Dataset) -> range:
    return range(min(validation.sizes.get("reference", 1), MAX_REFERENCES))


def _title(validation: xr.Dataset, reference: int, title: str) -> str:
    return f"{title}, reference {reference + 1}" if validation.sizes.get("reference", 1) > 1 else title


def _curve(validation: xr.Dataset, variable: str, reference: int, combination: int) -> np.ndarray:
    return np.asarray(validation[variable].isel(reference=reference, combination=combination).values)


def fsc(validation: xr.Dataset) -> list[str]:
    """FSC of the combinations, one figure for each reference: corrected, and only masked."""
    frequency = validation["frequency"]
    x = Axis.of(label(frequency), frequency.values, resolution=True)
    figures = []
    for reference in _references(validation):
        legend, drawings = Legend(), []
        for i, name in enumerate(names_of(validation)):
            reached = ""
            if "resolution_0143" in validation:
                reached = f" {fixed(float(validation['resolution_0143'][reference, i]))} Å"
            legend.line(name + reached, CATEGORIES[i % 7], STYLES[i % 4])
        for variable, title in _CURVES.items():
            if variable not in validation:
                continue
            lines = [
                Line(
                    frequency.values, _curve(validation, variable, reference, i), name, CATEGORIES[i % 7], STYLES[i % 4]
                )
                for i, name in enumerate(names_of(validation))
            ]
            y = Axis.of(label(validation[variable]), *(line.y for line in lines), zero=True)
            rules = [(0.143, "0.143"), (0.5, "0.5")]
            drawings.append((title, line_drawing(title, x, y, lines, rules=rules, size=(460, 280))))
        if drawings:
            title = _title(validation, reference, "Agreement of half maps (FSC)")
            figures.append(figure(title, panels(drawings), _FSC, legend=legend, css="wide"))
    return figures


def _mask_effect(validation: xr.Dataset) -> Iterator[str]:
    """Yield the curves of the last combination from which its corrected one was made, for each reference."""
    if not {"fsc_masked", "fsc_randomised", "fsc_corrected"} <= set(validation.data_vars):
        return
    frequency, last = validation["frequency"], len(names_of(validation)) - 1
    x = Axis.of(label(frequency), frequency.values, resolution=True)
    for reference in _references(validation):
        legend, lines = Legend(), []
        for i, (variable, (name, style)) in enumerate(_SINGLE.items()):
            if variable in validation:
                lines.append(
                    Line(frequency.values, _curve(validation, variable, reference, last), name, CATEGORIES[i], style)
                )
                legend.line(name, CATEGORIES[i], style)
        y = Axis.of("FSC", *(line.y for line in lines), zero=True)
        drawing = line_drawing("What the mask does", x, y, lines, rules=[(0.143, "0.143")], size=(430, 270))
        title = _title(validation, reference, f"What the mask does ({names_of(validation)[last]})")
        yield figure(title, drawing, _MASK, legend=legend, css="half")


def slices(validation: xr.Dataset, out: Path) -> Iterator[str]:
    """Yield the central slices of the first and the last combination of which ``out`` has maps, for each reference."""
    several, known = validation.sizes.get("reference", 1), names_of(validation)
    for reference in _references(validation):
        paths = {one.name: map_path(out, one, reference, several) for one in COMBINATIONS if one.name in known}
        there = [name for name, path in paths.items() if path.is_file()]
        try:
            sections = {name: middle_section(paths[name]) for name in there[:: max(1, len(there) - 1)]}
        except InputError:  # of the file, which somebody else may have put there
            continue
        if sections:
            title = _title(validation, reference, "Map, central slice")
            yield figure(title, panels(_pictures(sections)), _SLICE, css="pictures")


def _pictures(sections: dict[str, tuple[np.ndarray, float]]) -> Iterator[tuple[str, str]]:
    """Yield drawings of sections (y, x) of maps and their pixel sizes, binned where they are large, in the same greys."""
    ends = np.array([np.percentile(section, (0.5, 99.8)) for section, _ in sections.values()])
    greys = Axis("Density", float(ends.min()), float(max(ends.max(), ends.min() + 1e-30)))
    for name, (section, pixel_A) in sections.items():
        by = -(-min(section.shape) // _SIDE)
        n = min(section.shape) // by
        binned = section[: n * by, : n * by].reshape(n, by, n, by).mean((1, 3))
        steps = np.round((_GREYS - 1) * np.clip(greys.at(binned), 0, 1)) / (_GREYS - 1)
        reach = 0.5 * pixel_A * by * n
        x, y = (Axis(f"{axis} (Å)", -reach, reach) for axis in "xy")
        values = greys.low + steps * (greys.high - greys.low)
        yield name, heat_drawing(f"{name}: central slice", x, y, values, greys, picture=True)


def resolution_table(validation: xr.Dataset) -> str:
    """Return the resolutions, and B-factors where there are any, of the combinations."""
    if "resolution_0143" not in validation:
        return ""
    columns = [
        (name, head, digits)
        for name, head, digits in (("resolution_0143", "FSC 0.143 (Å)", 2), ("resolution_05", "FSC 0.5 (Å)", 2),
                                   ("b_factor", "B-factor of the map (Å²)", 0))
        if name in validation
    ]  # fmt: skip
    lines, several = [], validation.sizes.get("reference", 1) > 1
    for reference in range(validation.sizes.get("reference", 1)):
        for i, name in enumerate(names_of(validation)):
            values = [Decimals(float(validation[column][reference, i]), digits) for column, _, digits in columns]
            meaning = str(validation["meaning"].values[i]) if "meaning" in validation.coords else ""
            lines.append((*([reference + 1] if several else []), name, *([meaning] if meaning else []), *values))
    head = [
        *(["Reference"] if several else []),
        "Particles",
        *(["Which means"] if "meaning" in validation.coords else []),
    ]
    told = ""
    if "b_factor" in validation:
        told = paragraphs(["The B-factor says how fast the map fades towards fine detail; nearer 0 is better."])
    return told + table((*head, *(head for _, head, _ in columns)), lines, css="narrow")


def resolutions(validation: xr.Dataset) -> Iterator[tuple[str, str]]:
    """Yield for each reference what the half maps of all combinations reach, in a line: what, and how far."""
    for reference, reached in enumerate(validation["resolution_0143"].values):
        shells = [f"{name} {fixed(float(at))} Å" for name, at in zip(names_of(validation), reached)]
        yield _title(validation, reference, "FSC 0.143"), ", ".join(shells)


def gains(validation: xr.Dataset) -> list[str]:
    """Return in words what was gained over the first combination, and by what."""
    if "resolution_0143" not in validation:
        return []
    names, told = names_of(validation), []
    for reference, cut in enumerate(validation["resolution_0143"].values):
        of = f"Reference {reference + 1}: " if validation.sizes["reference"] > 1 else ""
        parts = [
            f"{_accounting(name)} {_change(cut[0], cut[i])}"
            for i, name in enumerate(names)
            if i and np.isfinite(cut[[0, i]]).all()
        ]
        if parts:
            told.append(f"{of}Compared to {names[0]} ({fixed(cut[0])} Å): {'; '.join(parts)}.")
    return [*told, *_imposed(validation), *_ends(validation)]


def _imposed(validation: xr.Dataset) -> list[str]:
    """Say which symmetry the maps were made with."""
    if "symmetry" not in validation.coords:
        return []
    names = validation["symmetry"].values
    each = [f"{name} on those of reference {i + 1}" for i, name in enumerate(names)] if len(names) > 1 else names
    return [f"Symmetry imposed on the maps: {', '.join(each)}."]


def _accounting(name: str) -> str:
    alone = {"+ trajectories": "trajectories alone account for", "+ weights": "empirical weights alone account for",
             "both": "both together account for"}  # fmt: skip
    return alone.get(name, f"{name} accounts for")


def _change(before: float, after: float) -> str:
    by = f"{abs(before - after):.2f} Å" if abs(before - after) >= 0.005 else "less than a shell"  # Å, as told
    return f"{by} ({fixed(after)} Å)" if after <= before else f"a loss of {by} ({fixed(after)} Å)"


def _ends(validation: xr.Dataset) -> list[str]:
    """Say where curves do not come down to 0.143 before they end."""
    if "fsc_corrected" not in validation:
        return []
    limit = 1 / max(float(validation["frequency"].values[-1]), 1e-9)
    return [
        f"The FSC of reference {reference + 1} with {name} is above 0.143 up to its end at {limit:.2f} Å: the resolution is "
        "limited by the size of the pixels, and may be better than told."
        for reference in range(validation.sizes.get("reference", 1))
        for i, name in enumerate(names_of(validation))
        if (_curve(validation, "fsc_corrected", reference, i)[1:] > 0.143).all()
    ]


def tell_maps(validation: xr.Dataset) -> str:
    """Return in words what resolutions were reached."""
    if "resolution_0143" not in validation:
        return "Maps were reconstructed for comparison."
    cut = validation["resolution_0143"].values
    names = names_of(validation)
    of = [f" of reference {i + 1}" if len(cut) > 1 else "" for i in range(len(cut))]
    each = [", ".join(f"{fixed(value)} Å ({name})" for name, value in zip(names, row)) for row in cut]
    return " ".join(
        f"Half maps{which} reconstructed from the same particles agree (FSC 0.143) to {values}."
        for which, values in zip(of, each)
    )


def map_warnings(validation: xr.Dataset) -> list[str]:
    """Return where corrected particles give a worse map."""
    if "resolution_0143" not in validation:
        return []
    return [
        f"Reference {i + 1}: the corrected particles give a worse map ({cut[-1]:.2f} Å) than {names_of(validation)[0]} motion "
        f"({cut[0]:.2f} Å). Check that poses, half sets and reference belong to these particles."
        for i, cut in enumerate(validation["resolution_0143"].values)
        if cut[-1] > cut[0] * WORSE
    ]


def best_resolution(validation: xr.Dataset) -> tuple[str, str] | None:
    """Return what was reached, from the first to the last combination of the first reference, for the summary."""
    if "resolution_0143" not in validation:
        return None
    cut, names = validation["resolution_0143"].values[0], names_of(validation)
    several = len(validation["resolution_0143"]) > 1
    return f"{fixed(cut[0])} → {fixed(cut[-1])} Å", f"FSC 0.143{', reference 1' * several}, {names[0]} → {names[-1]}"
