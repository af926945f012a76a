"""The part of the report on dose weights: how signal fades with dose, and what weight each frame gets for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refmotion_nb.views.report_html import CATEGORIES, folded, grid, label, name_of, paragraphs, table
from refmotion_nb.views.scale import percentile, spread
from refmotion_nb.views.svg import Axis, Legend, Line, figure, heat_drawing, line_drawing, number, panels, step_colour

if TYPE_CHECKING:
    import xarray as xr

MAX_GROUPS = 12  # with figures
CURVES = 6  # frames shown as curves
RESOLUTIONS = 4  # at which weights are drawn
MILD = 0.95  # of the highest weight: less is a frame that is weighted down
SHORT = {"b_factor": "B-factor", "frame_scale": "Scale factor"}  # long names do not fit beside a low chart

_FCC = (
    "How well each frame (upwards, in order of dose) agrees with the reference, from coarse detail (left) to fine detail "
    "(right): the Fourier cylinder correlation (FCC). Good: it fades smoothly upwards, as radiation damages the specimen, and "
    "to the right. A weak lowest row means that the first frame is blurred by motion. Specks all over mean too few particles: "
    "raise target_particles."
)
_CURVES = (
    "The same as curves for a few frames: dots are measured, lines are the model fitted to them, from which weights are made. "
    "Lines should run through the dots. If dots scatter widely about them, measure with more particles (target_particles)."
)
_PER_FRAME = (
    "The model in two numbers per frame. The B-factor says how much more fine detail a frame has lost than the best frame "
    "(0 Å²); it should rise steadily with dose, and may be high in the first frames, which move most. The scale says how much "
    "signal is left at coarse detail, 1 for the best frame. Jumps between neighbouring frames mean too few particles."
)
_IMAGES = (
    "The weight of each frame (upwards, in order of dose) at each level of detail; {unit} {both}Good: even to the left, and to "
    "the right bright at low dose{like}. Beyond the detail at which agreement with the reference can be measured, weights follow "
    "the fitted model."
)
_WEIGHTS = (
    "The weight of frames against dose, at a few levels of detail; {unit} {both}{band}Weights should fall smoothly with dose, "
    "faster for finer detail; in the first frames they may be lower, where motion blurs them."
)
_PER_DOSE = (
    "per e/Å², so that it does not depend on how long a frame is: at any one detail, weight times dose adds up to 1."
)
_PER_FRAME_ONLY = "at any one detail the weights of all frames add up to 1."
_BOTH_IMAGES = "First the weights used, then the standard curve for comparison, in the same colours. "
_BOTH_CURVES = "Solid: as used here; dashed: the standard curve of Grant & Grigorieff. "
_BAND = (
    "The shaded band holds the weight with 90 % confidence: where the dashed line lies outside, these data differ from the "
    "standard. If bands are wide, measure with more particles (target_particles). "
)


def dose_section(dose: xr.Dataset | None) -> str:
    """Return the FCC, the weights and their model for each group; empty without results."""
    if dose is None:
        return ""
    n = dose.sizes.get("group", 1)
    told = paragraphs(tell_groups(dose))
    if n == 1:
        return told + grid(damage(group_of(dose, 0)))
    shown = [
        folded(f"Group {_name(dose, i)}", grid(damage(group_of(dose, i))), is_open=i == 0)
        for i in range(min(n, MAX_GROUPS))
    ]
    return told + group_table(dose) + "".join(shown)


def group_of(dose: xr.Dataset, i: int) -> xr.Dataset:
    """Return one group (frame, frequency) without the frames that only other groups have."""
    group = dose.isel(group=i) if "group" in dose.dims else dose
    known = np.isfinite(group["dose"].values)
    return group.isel(frame=known) if known.any() else group


def _name(dose: xr.Dataset, i: int) -> str:
    return str(dose["group"].values[i]) if "group" in dose.coords else str(i + 1)


def _n_particles(dose: xr.Dataset, i: int) -> float:
    return float(np.atleast_1d(dose["particles"].values)[i]) if "particles" in dose else np.nan


def group_table(dose: xr.Dataset) -> str:
    """Return what each group is: particles, frames, doses, and how far it leans on the pool of all."""
    from refmotion_nb.stages.dose_weights import BORROWED_PARTICLES, POOL

    lines = []
    for i in range(dose.sizes.get("group", 1)):
        group, n, name = group_of(dose, i), _n_particles(dose, i), _name(dose, i)
        exposure = group["dose"].values
        per_frame = group["frame_dose"].values.mean() if "frame_dose" in group else np.nan
        borrowed = (
            "–"
            if name == POOL or not np.isfinite(n)
            else f"{100 * BORROWED_PARTICLES / (BORROWED_PARTICLES + n):.0f} %"
        )
        particles = f"{n:,.0f}" if np.isfinite(n) else "–"
        lines.append((name, particles, f"{len(exposure)}", f"{number(per_frame)}",
                      f"{number(exposure[0])} to {number(exposure[-1])}", borrowed))  # fmt: skip
    head = ("Group", "Particles measured", "Frames", "Dose per frame (e/Å²)", "Dose, first to last (e/Å²)", "Borrowed")
    return table(head, lines, css="narrow")


def tell_groups(dose: xr.Dataset) -> list[str]:
    """Return in words where the weights come from and how groups are treated."""
    from_file = dose.attrs.get("from_file")
    told = []
    if from_file:
        told.append(f"The dose weights were given, in {from_file}, and not measured here.")
    if "fcc" not in dose:
        told.append(
            "They come without the correlations they were made from (FCC), so there are only the weights to show."
        )
    if "fitted_to_A" in dose.attrs and "fcc" in dose:
        told.append(
            "Each frame of each particle is compared with the view of the reference that it should show, of the half map the "
            f"particle is not in, at {number(dose.attrs['fitted_from_A'])} to {number(dose.attrs['fitted_to_A'])} Å; a model "
            "of fading is fitted to that, and gives the weights."
        )
    if dose.sizes.get("group", 1) > 1 and not from_file:
        told.append(
            "Movies that were exposed differently (optics group, number of frames, dose per frame) are groups with weights of "
            "their own. The first group, all, is the pool of them, on the dose axis of the largest. Groups with few particles "
            "cannot be measured well alone: each borrows from the pool, the less the more particles it has (last column)."
        )
    return told


def tell_dose(dose: xr.Dataset) -> str:
    """Return in words what the weights do."""
    from_file = dose.attrs.get("from_file")
    text = (
        f"Dose weights were read from {from_file}."
        if from_file
        else "Dose weights were measured from the correlation of each frame with the reference (FCC)."
    )
    first = group_of(dose, 0)
    if "b_factor" in first and np.isfinite(b := first["b_factor"].values).any():
        exposure, best = first["dose"].values, int(np.nanargmin(b))
        text += (
            f" Frame {best + 1}, at {number(exposure[best])} e/Å², keeps the most high-resolution signal; "
            f"{f'the first frame has a B-factor of {number(b[0])} Å² relative to it, ' if best else ''}the last frame, at "
            f"{number(exposure[-1])} e/Å², has {number(b[-1])} Å²."
        )
    return f"{text} {early_frames(first)}".strip()


def early_frames(dose: xr.Dataset) -> str:
    """Return whether the first frames of one group are weighted down at the finest detail measured."""
    if "weight" not in dose:
        return ""
    shell = int(fitted(dose)[-1])
    weight, frequency = dose["weight"].values[:, shell], float(dose["frequency"].values[shell])
    if not np.isfinite(weight).all() or weight.max() <= 0:
        return ""
    share, best = weight / weight.max(), int(weight.argmax())
    down = int(np.argmax(share >= MILD))  # frames before the first that is as good as the best
    at = f"at {1 / frequency:.1f} Å"
    if not down:
        return f"The first frame is not weighted down ({at}): it is as good as any."
    which = "The first frame is" if down == 1 else f"The first {down} frames are"
    return (
        f"{which} weighted down for blur by early motion: {at} the first gets {100 * share[0]:.0f} % of the weight of frame "
        f"{best + 1}, where the standard curve gives it the most of all."
    )


def damage(dose: xr.Dataset) -> list[str]:
    """FCC and weights of one group (frame, frequency) as images and curves; B-factors and scales per frame."""
    dose, unit = _per_dose(dose)
    frequency, exposure = dose["frequency"], dose["dose"].values
    x = Axis(label(frequency), *_edges(frequency.values), resolution=True)
    y = Axis(label(dose["dose"]), *_edges(exposure))
    figures = []
    if "fcc" in dose:
        # the lowest frequencies correlate so well that they would leave no colours for the rest
        inside = dose["fcc"].values[:, fitted(dose)]
        top, bottom = max(percentile(inside, 99.5), 1e-6), min(0.0, percentile(inside, 0.5))
        title = "Correlation with the reference (FCC)"
        colour = Axis(label(dose["fcc"]), bottom, top)
        finite = np.isfinite(dose["fcc"].values).any(0)
        measured = slice(1, max(3, int(np.flatnonzero(finite).max(initial=1)) + 1))  # at the origin nothing is
        within = Axis(label(frequency), *_edges(frequency.values[measured]), resolution=True)
        figures.append(figure(title, heat_drawing(title, within, y, dose["fcc"].values[:, measured], colour), _FCC))
        figures.append(_fcc_curves(dose))
    names = [name for name in SHORT if name in dose and np.isfinite(dose[name].values).any()]
    if names:
        drawings = [_per_frame(dose, name, CATEGORIES[i]) for i, name in enumerate(names)]
        figures.append(figure("B-factor and scale of each frame", "".join(drawings), _PER_FRAME))
    if "weight" in dose:
        figures.append(_weight_curves(dose, unit))
        both = [(title, dose[name]) for name, title in
                (("weight", "Weights used"), ("reference_weight", "Standard curve (Grant & Grigorieff)"))
                if name in dose]  # fmt: skip
        colour = Axis(label(dose["weight"]), 0.0, max(1e-6, *(percentile(v.values, 99.5) for _, v in both)))
        images = panels([(title, heat_drawing(title, x, y, values.values, colour)) for title, values in both])
        pair = len(both) > 1
        reading = _IMAGES.format(
            unit=unit,
            both=_BOTH_IMAGES if pair else "",
            like=", much like the standard curve but for the first frames" if pair else "",
        )
        figures.append(figure("Weights of all frames", images, reading, css="double" if pair else ""))
    return figures


def fitted(dose: xr.Dataset, beyond: float = 1.0) -> np.ndarray:
    """Return which frequencies the model was fitted to, and up to ``beyond`` times the highest; all but 0 if not known."""
    frequency = dose["frequency"].values
    low, high = 1 / dose.attrs.get("fitted_from_A", np.inf), beyond / max(dose.attrs.get("fitted_to_A", 0.0), 1e-9)
    inside = np.flatnonzero((frequency >= 0.999 * low) & (frequency <= 1.001 * high) & (frequency > 0))
    return inside if inside.size else np.flatnonzero(frequency > 0)


def resolutions(dose: xr.Dataset) -> np.ndarray:
    """Return a few of the frequencies that the model was fitted to, up to the highest, to draw weights at."""
    inside = fitted(dose)
    return np.unique(inside[spread(len(inside), RESOLUTIONS + 1)[1:]])


def _edges(centres: np.ndarray) -> tuple[float, float]:
    """Return where the first cell begins and the last one ends; numbers of cells where that is not known."""
    steps = np.diff(centres) if len(centres) > 1 else np.ones(1)
    low, high = float(centres[0] - steps[0] / 2), float(centres[-1] + steps[-1] / 2)
    return (low, high) if low < high < np.inf else (0.5, len(centres) + 0.5)


def _fcc_curves(dose: xr.Dataset) -> str:
    dose = dose.isel(frequency=fitted(dose, beyond=1.3))
    frequency, exposure = dose["frequency"].values, dose["dose"].values
    lines = []
    for frame in spread(len(exposure), CURVES):
        colour = step_colour(frame / max(len(exposure) - 1, 1))
        name = f"frame {frame + 1}, {number(exposure[frame])} {dose['dose'].attrs.get('units', '')}"
        lines.append(Line(frequency, dose["fcc"].values[frame], name, colour, "dots"))
        if "fcc_model" in dose:
            lines.append(Line(frequency, dose["fcc_model"].values[frame], f"{name}: model", colour))
    unit = dose["dose"].attrs.get("units", "")
    legend = Legend().sequence(f"{number(exposure[0])} {unit}", f"{number(exposure[-1])} {unit}")
    legend.line("measured", "var(--muted)", "dots").line("model", "var(--muted)")
    x = Axis.of(label(dose["frequency"]), frequency, resolution=True)
    y = Axis.of(label(dose["fcc"]), *(line.y for line in lines), zero=True)
    return figure("FCC of some frames", line_drawing("FCC of some frames", x, y, lines), _CURVES, legend=legend)


def _per_frame(dose: xr.Dataset, name: str, colour: str) -> str:
    exposure, values = dose["dose"].values, dose[name].values
    unit = str(dose[name].attrs.get("units", "")).replace("1", "")
    points = [f"frame {i + 1}, {number(d)} {dose['dose'].attrs.get('units', '')}: {number(v, 4)} {unit}".strip()
              for i, (d, v) in enumerate(zip(exposure, values))]  # fmt: skip
    x = Axis.of(label(dose["dose"]), exposure, zero=True)
    title = name_of(dose[name])
    y = Axis.of(f"{SHORT[name]} ({unit})".replace(" ()", ""), values, zero=True)
    return line_drawing(title, x, y, [Line(exposure, values, "", colour, points=points)], size=(400, 160))


def _per_dose(dose: xr.Dataset) -> tuple[xr.Dataset, str]:
    """Return a group with weights per e/Å² where doses are known, and in words what its weights are."""
    from refmotion_nb.stages.dose_weights import per_dose, table_edges

    if "weight" not in dose or not (np.diff(table_edges(dose)) > 0).all():
        return dose, _PER_FRAME_ONLY
    found = per_dose(dose)
    found["weight"].attrs |= {"long_name": "weight per e/Å²", "units": ""}
    return found, _PER_DOSE


def _weight_curves(dose: xr.Dataset, unit: str) -> str:
    frequency, exposure = dose["frequency"].values, dose["dose"].values
    lines, legend = [], Legend()
    for colour, shell in zip(CATEGORIES, resolutions(dose)):
        name = f"{1 / frequency[shell]:.1f} Å"
        band = None
        if "weight_lo" in dose and "weight_hi" in dose:
            limits = dose["weight_lo"].values[:, shell], dose["weight_hi"].values[:, shell]
            band = limits if np.isfinite(limits).all() else None
        lines.append(Line(exposure, dose["weight"].values[:, shell], name, colour, band=band))
        if "reference_weight" in dose:
            reference = dose["reference_weight"].values[:, shell]
            lines.append(Line(exposure, reference, f"{name}, Grant–Grigorieff", colour, "dashed"))
        legend.line(name, colour)
    if "reference_weight" in dose:
        legend.line("Grant–Grigorieff", "var(--muted)", "dashed")
    x = Axis.of(label(dose["dose"]), exposure, zero=True)
    bands = [limit for line in lines if line.band for limit in line.band]
    y = Axis.of(label(dose["weight"]), *(line.y for line in lines), *bands, zero=True)
    subtitle = "" if bands or "weight_lo" not in dose else "no confidence band: that takes three micrographs or more"
    drawing = line_drawing("Weights against dose", x, y, lines)
    standard = "reference_weight" in dose
    reading = _WEIGHTS.format(
        unit=unit, both=_BOTH_CURVES if standard else "", band=_BAND if bands and standard else ""
    )
    return figure("Weights against dose", drawing, reading, legend=legend, subtitle=subtitle)
