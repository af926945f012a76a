"""Whether the input fits together: particles look like their reference, and are split into half sets as the maps are.

It works on micrographs that the job reads anyway; movies are read again only to find out why particles do not look like
their reference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import param
import xarray as xr

from refmotion_nb.data.resemblance import AHEAD, HIGH_A, LOW_A, SURE, VIEWS
from refmotion_nb.data.schema import Dataset, InputError, Reference
from refmotion_nb.numerics.backend import to_host
from refmotion_nb.numerics.energy import grant_grigorieff
from refmotion_nb.numerics.half_sets import (
    OwnNoise,
    ShellProducts,
    displacement_window,
    grey_scale,
    map_correlation,
    own_noise,
    resemblance,
    shell_products,
    standard_errors,
    wrong_share,
)
from refmotion_nb.numerics.recombine import recombined_band
from refmotion_nb.stages.alignment import Alignment
from refmotion_nb.stages.base import Reporter, Silent
from refmotion_nb.stages.micrograph import Micrograph
from refmotion_nb.stages.misfit import cause_of_misfit, misfit
from refmotion_nb.stages.sampling import draw
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.stages.session import Session

ENOUGH = 500  # particles
NOISE_FROM_A = 20.0  # own noise is looked for from here on; many programs join half maps below 40 Å
LAST_SHELLS = 0.9  # of the highest shell: where half maps should have nothing in common
ALIKE, VERY_ALIKE, THE_SAME = 0.25, 0.5, 0.9999  # correlations there: with the own noise, or by themselves
FEW = 30  # particles that may fail to resemble their reference by chance
FINDABLE = 0.5  # own noise of this size, against the expectation, is there; less may be blurred by refined poses
SOME, MANY, EVEN, MOST = 0.05, 0.1, 0.3, 0.9  # shares with the wrong half set: named, an error, by chance, all
DISPLACED_A = 1.0  # all particles alike: enough for their own noise not to be found where it is looked for
PLACES_A = np.arange(-10.0, 10.1, 0.5)  # along x and y, where particles are looked for
CLEAR = 0.7  # own noise of labelled particles in independent maps, at poses about as good as those of the maps


@dataclass(frozen=True)
class Finding:
    """Something the audit has to say: one line, with the remedy where there is one."""

    severity: str  # error, warning or note
    text: str


class InputAudit(Alignment):
    """Check that particles look like their reference and are split into half sets as the half maps are."""

    check_input = param.Boolean(
        default=True,
        doc="Stop where particles do not look like their reference because axes or contrast are wrong, or where half "
        "sets are not those of the half maps; off: go on with a warning.",
    )  # fmt: skip
    target_particles = copy(HyperparameterSearch.param["target_particles"])
    seed = copy(HyperparameterSearch.param["seed"])

    def settings(self) -> dict[str, Any]:
        """Return the settings that can change the figures, not what is made of them."""
        return {name: value for name, value in super().settings().items() if name != "check_input"}

    def run(self, data: Dataset | Session, reporter: Reporter | None = None) -> xr.Dataset:
        """Return the figures of every reference; ``findings`` reads what follows from them.

        Raises
        ------
        InputError
            The references cannot be used.
        """
        session = data if isinstance(data, Session) else Session(data)
        reporter = reporter or Silent()
        names = self.choose(session)
        reporter.start(len(names), "checking the input")
        products: dict[int, list[tuple[ShellProducts, np.ndarray, np.ndarray]]] = {}
        extent_A, used = np.inf, []
        with closing(session.place.each(names, self, self._compare)) as each:
            for name, compared in each:
                if name not in session.failed:
                    used.append(name)
                    extent_A = min(extent_A, compared[0])
                    for number, part in compared[1]:
                        products.setdefault(number, []).append(part)
                reporter.advance(micrograph=name)
        reporter.done()
        rows, found = [], list[Finding]()
        for number, reference in enumerate(session.data.references):
            parts = products.get(number)
            together = ShellProducts.together([part for part, _, _ in parts]) if parts else None
            half = np.concatenate([h for _, h, _ in parts]) if parts else np.zeros(0, int)
            figures = _figures(together, half, extent_A)
            if parts:
                figures |= _displaced(np.sum([window for _, _, window in parts], axis=0))
            said = _about_resemblance(figures, session.data, used, number)
            if figures["resemblance"] >= SURE and not any(one.severity == "error" for one in said):
                said += _about_half_sets(figures, reference)
            several = f"reference {number + 1}: " if len(session.data.references) > 1 else ""
            found += [replace(one, text=several + one.text) for one in said]
            rows.append(figures)
        return _table(rows, found, used)

    def choose(self, session: Session) -> list[str]:
        """Return the names of the first micrographs of the search with enough particles."""
        names = [name for name in session if session.particle_count(name) > 1] or list(session)
        chosen, count = [], 0
        for name in draw(session, names, self.target_particles, self.seed):
            if count >= ENOUGH:
                break
            chosen.append(name)
            count += session.particle_count(name)
        return chosen

    def judge(self, audit: xr.Dataset) -> list[str]:
        """Return what is worth a warning.

        Raises
        ------
        InputError
            Something is wrong, unless ``check_input`` is off.
        """
        errors = [one.text for one in findings(audit) if one.severity == "error"]
        if errors and self.check_input:
            raise InputError("\n".join(f"{text} (or go on all the same with check_input off)" for text in errors))
        return errors + [one.text for one in findings(audit) if one.severity == "warning"]

    def _compare(
        self, session: Session, m: Micrograph
    ) -> tuple[float, list[tuple[int, tuple[ShellProducts, np.ndarray, np.ndarray]]]]:
        """Return the width of the boxes, Å, and the products of a micrograph's particles with their references."""
        return m.extent_A, list(self._products(m.distinct(), session.threads))

    def _products(
        self, m: Micrograph, threads: int
    ) -> Iterator[tuple[int, tuple[ShellProducts, np.ndarray, np.ndarray]]]:
        """Products of the particles of each reference, in units of the noise, with their half sets, and where all are."""
        k = m.own.shape[2] - 1
        frequency = m.frequency(int(np.ceil(np.sqrt(2) * (k + 1))) + 1)
        weight = grant_grigorieff(frequency, m.mid_dose, m.movie.voltage_kV)
        weight /= np.sqrt((weight**2).sum(0))  # noise stays white, as motion correction leaves it
        shift = m.placement.initial_A / m.pixel_size_A
        observed = to_host(recombined_band(m.spectra, shift, weight, k, threads))
        own, opposite = to_host(m.own), to_host(m.opposite)
        std = float(np.sqrt(m.noise_power[len(m.noise_power) // 2 :].mean()))
        which, half = m.particles["reference"].values, m.particles["half"].values
        for number in np.unique(which):
            mine = np.flatnonzero(which == number)
            part = shell_products(observed[mine], own[mine], opposite[mine], threads).divided(std)
            seen = part.weight.copy()
            seen[: max(1, int(m.extent_A / LOW_A))] = 0
            window = displacement_window(observed[mine], opposite[mine], seen, m.extent_A, PLACES_A)
            yield int(number), (part, half[mine], window)


def findings(audit: xr.Dataset) -> list[Finding]:
    """Return what an audit found."""
    return [Finding(*one) for one in audit.attrs["findings"]]


def summary(audit: xr.Dataset) -> list[str]:
    """Return a line on each reference whose particles could be looked at."""
    lines = []
    for number in range(audit.sizes["reference"]):
        row = {str(name): float(audit[name].values[number]) for name in audit.data_vars}
        if not np.isfinite(row["resemblance"]):
            continue
        lines.append(
            f"input, reference {number + 1}: {row['particles']:.0f} particles resemble it by {row['resemblance']:.1f} "
            f"standard errors (mirrored {row['resemblance_mirrored']:.1f}); own noise in the own half map "
            f"{row['own_noise']:.2f} ± {row['own_noise_error']:.2f} of what is expected"
        )
    return lines


def _figures(products: ShellProducts | None, half: np.ndarray, extent_A: float) -> dict[str, float]:
    """Return the figures of one reference, NaN where there is nothing to take them from."""
    figures = dict.fromkeys(_FIGURES, np.nan) | {"particles": float(len(half))}
    if products is None:
        return figures
    last = len(products.count) - 1
    first = max(1, int(extent_A / LOW_A))
    seen = {view: resemblance(products, view, first, min(last, int(extent_A / HIGH_A))) for view in VIEWS}
    figures["resemblance"] = standard_errors(seen["opposite"])
    for view in VIEWS[1:]:
        figures[f"resemblance_{view}"] = standard_errors(seen[view])
        figures[f"lead_{view}"] = standard_errors(seen[view] - seen["opposite"])
    noise_from = max(1, int(extent_A / NOISE_FROM_A))
    figures["map_correlation"] = map_correlation(products, int(np.ceil(LAST_SHELLS * last)), last)
    figures["map_correlation_at_A"] = extent_A / last
    scale = grey_scale(products, noise_from, max(noise_from + 1, min(last, int(extent_A / HIGH_A))))
    if scale <= 0:
        return figures
    noise = own_noise(products, scale, noise_from)
    figures["own_noise"], figures["own_noise_error"] = noise.found
    figures["power"] = noise.power
    figures["amplitude"], figures["amplitude_square_error"] = noise.amplitude
    figures["wrong_share"], figures["wrong_share_error"] = wrong_share(noise, max(figures["amplitude"], 0.1))
    for number in (1, 2):
        figures[f"wrong_share_{number}"] = _share_of(noise, half == number, figures["amplitude"])
    return figures


def _displaced(window: np.ndarray) -> dict[str, float]:
    y, x = np.unravel_index(np.argmax(window), window.shape)
    return {"displaced_x": float(PLACES_A[x]), "displaced_y": float(PLACES_A[y])}


def _share_of(noise: OwnNoise, rows: np.ndarray, amplitude: float) -> float:
    return wrong_share(noise.of(rows), max(amplitude, 0.1))[0] if rows.any() else np.nan


_FIGURES = {
    "particles": ("1", "particles looked at"),
    "resemblance": ("standard errors", "correlation with the reference"),
    "resemblance_mirrored": ("standard errors", "the same of images mirrored in y"),
    "resemblance_exchanged": ("standard errors", "the same of images with x and y exchanged"),
    "lead_mirrored": ("standard errors", "gain by mirroring images in y"),
    "lead_exchanged": ("standard errors", "gain by exchanging x and y of images"),
    "displaced_x": ("Å", "where particles are, from where they should be, along x"),
    "displaced_y": ("Å", "the same along y"),
    "own_noise": ("1", "own noise in the own rather than the other half map, of what is expected"),
    "own_noise_error": ("1", "standard error of it"),
    "power": ("standard errors", "what is expected"),
    "amplitude": ("1", "own noise in either half map, RMS, of what is expected"),
    "amplitude_square_error": ("1", "standard error of its square"),
    "wrong_share": ("1", "share of particles whose noise is in the other half map"),
    "wrong_share_error": ("1", "standard error of it"),
    "wrong_share_1": ("1", "the same of half set 1"),
    "wrong_share_2": ("1", "the same of half set 2"),
    "map_correlation": ("1", "correlation of the half maps in their last shells"),
    "map_correlation_at_A": ("Å", "where the last shell lies"),
}


def _about_resemblance(figures: dict[str, float], data: Dataset, names: list[str], number: int) -> list[Finding]:
    given = figures["resemblance"]
    for view in VIEWS[1:]:
        if figures[f"lead_{view}"] >= SURE and figures[f"resemblance_{view}"] >= SURE:
            return [Finding("error", misfit(("given", view), figures[f"resemblance_{view}"], given))]
    if given >= SURE or not np.isfinite(given):
        return []
    if given <= -SURE:
        return [
            Finding(
                "error", f"the contrast of the reference is inverted: particles are its negative by {-given:.1f} "
                "standard errors; multiply the half maps by -1, or check that the movies are not inverted",
            )
        ]  # fmt: skip
    if found := cause_of_misfit(data, names, number):
        return [Finding("error", found)]
    if figures["particles"] < FEW:
        return [Finding("note", f"{figures['particles']:.0f} particles are too few to tell whether they resemble the "
                        f"reference ({given:.1f} standard errors)")]  # fmt: skip
    return [Finding("warning", f"particles hardly resemble their reference ({given:.1f} standard errors); check that "
                    "coordinates, poses, pixel sizes and half maps belong to these movies")]  # fmt: skip


def _about_half_sets(figures: dict[str, float], reference: Reference) -> list[Finding]:
    """Judge in which half maps the particles are."""
    alike, at_A = figures["map_correlation"], figures["map_correlation_at_A"]
    if alike > THE_SAME:
        return [Finding("error", f"leaky split: half maps {reference.half1} and {reference.half2} are the same but for "
                        "rounding; give one of each half set")]  # fmt: skip
    if not figures["power"] >= SURE:
        few = f"{figures['particles']:.0f} particles do not tell whether their half sets are those of the half maps"
        if alike > VERY_ALIKE:
            return [Finding("warning", f"{few}, which still correlate by {alike:.2f} at {at_A:.1f} Å: make sure that they "
                            "are not both made from all particles")]  # fmt: skip
        return [Finding("note", few)]
    wrong, error = figures["wrong_share"], figures["wrong_share_error"]
    one_sided = abs(figures["wrong_share_1"] - figures["wrong_share_2"]) > MOST
    fate = _fate(figures)
    found = f"particles' own noise is in their own rather than the other half map by {figures['own_noise']:.2f} ± " \
            f"{figures['own_noise_error']:.2f} of what is expected"  # fmt: skip
    blurred = figures["own_noise"] > SURE * figures["own_noise_error"]
    off = figures["displaced_x"], figures["displaced_y"]
    if np.hypot(*off) >= DISPLACED_A and alike <= ALIKE and (fate in ("absent", "swapped") or wrong > SOME):
        return [Finding("warning", f"particles lie {off[0]:g} Å in x and {off[1]:g} Å in y from where they should, all alike: "
                        "coordinates, origins and motion are not those that the half maps were made with; give those, else half "
                        "sets cannot be checked")]  # fmt: skip
    if fate == "absent" and alike <= ALIKE and blurred:
        return [Finding("note", f"the half maps hold these particles, but not as rigid motion has them ({found}): those of "
                        "corrected particles, or of few of these, do so")]  # fmt: skip
    if fate == "absent" and alike <= ALIKE:
        return [Finding("warning", f"the half maps hold hardly anything of these particles ({found}); if they are of "
                        "another refinement, its half sets may leak into these")]  # fmt: skip
    if fate == "absent" or (fate == "known" and alike > ALIKE and wrong > EVEN and (one_sided or wrong < 1 - EVEN)):
        return [Finding("error", f"leaky split: both half maps are made from all particles, for they still correlate by "
                        f"{alike:.2f} at {at_A:.1f} Å, and {found}; reconstruct each from one half set of a refinement "
                        "that kept them apart")]  # fmt: skip
    if fate == "swapped" or (fate == "known" and wrong > MOST):
        return [Finding("error", f"half1 and half2 are swapped: {found}; exchange {reference.half1} and "
                        f"{reference.half2}")]  # fmt: skip
    if fate == "known" and one_sided:
        one = 1 if figures["wrong_share_2"] > figures["wrong_share_1"] else 2
        return [Finding("error", f"leaky split: half map {one} is made from the particles of both half sets ({found}); "
                        "give particles and half maps of one refinement")]  # fmt: skip
    if fate == "known" and wrong - AHEAD * error > SOME:
        why = "" if wrong < EVEN or figures["amplitude"] > CLEAR else ", or both are made from all particles"
        return [Finding("error" if wrong > MANY else "warning",
                        f"leaky split: half sets are not those of the half maps, {100 * wrong:.0f} ± {100 * error:.0f} % of "
                        f"the particles are in the other half map{why}; give particles and half maps of one "
                        "refinement")]  # fmt: skip
    return []


def _fate(figures: dict[str, float]) -> str:
    """Tell whether the particles' own noise is in the maps: ``known``, ``absent``, ``swapped``, or ``""`` if unclear.

    With much less than one standard error per particle its sum alone speaks, and says nothing about shares.
    """
    square, square_error = figures["amplitude"] ** 2, figures["amplitude_square_error"]
    if square > max(SURE * square_error, FINDABLE**2 / 2):
        return "known"
    highest = figures["own_noise"] + SURE * figures["own_noise_error"]
    if highest < -FINDABLE / 2:
        return "swapped"
    return "absent" if highest < FINDABLE / 2 else ""


def _table(rows: list[dict[str, float]], found: list[Finding], names: list[str]) -> xr.Dataset:
    columns = {
        name: ("reference", np.array([row[name] for row in rows]), {"units": units, "long_name": about})
        for name, (units, about) in _FIGURES.items()
    }
    attrs = {"findings": [[one.severity, one.text] for one in found], "micrographs": names}
    return xr.Dataset(columns, {"reference": np.arange(len(rows))}, attrs)
