"""The part of the report on inputs: files, movies, particles, what was skipped and why, and whether it all fits together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.data.reasons import alike
from refmotion_nb.views.report_html import (
    count,
    decoded,
    folded,
    grid,
    listing,
    name_of,
    paragraphs,
    rows,
    table,
    text_of,
    titled,
)
from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    import xarray as xr

NAMED = 3  # micrographs named for each reason
LISTED = 12  # ways in which movies were exposed
_ORDER = (  # of the figures of the check: some are told by the one before
    "particles", "resemblance", "resemblance_mirrored", "resemblance_exchanged", "lead_mirrored", "lead_exchanged",
    "displaced_x", "displaced_y", "own_noise", "own_noise_error", "power", "amplitude", "amplitude_square_error", "wrong_share",
    "wrong_share_error", "wrong_share_1", "wrong_share_2", "map_correlation", "map_correlation_at_A",
)  # fmt: skip
_KNOWN = {"program", "files", "movies", "particles", "exposures", "half_sets", "optics_groups", "skipped"}


def inputs_section(inputs: Mapping[str, Any], particles: xr.Dataset | None, audit: xr.Dataset | None) -> str:
    """Return what went in, what was left out, and what the check of the input found."""
    parts = [
        titled("Files", files_table(inputs)),
        titled("Movies", _exposures(rows(inputs, "exposures"))),
        titled("Particles", _half_sets(rows(inputs, "half_sets")) + _optics(rows(inputs, "optics_groups"))),
        titled("What was skipped, and why", skipped(inputs, particles)),
    ]
    found = grid(filter(None, parts), "beside")
    told = paragraphs([_told(inputs)]) if "particles" in inputs and "movies" in inputs else ""
    body = told + found if any(parts) else ""
    return body + (titled("Does the input fit together?", _audit(audit)) if audit is not None else "")


def _told(inputs: Mapping[str, Any]) -> str:
    if not all(isinstance(inputs[name], int) for name in ("movies", "particles")):
        return ""
    program = f", as {inputs['program']} left them" if isinstance(inputs.get("program"), str) else ""
    several = len(rows(inputs, "half_sets"))
    references = f", of {several} references" if several > 1 else ""
    return (
        f"{count(inputs['particles'], 'particle')} on {count(inputs['movies'], 'movie')}{references}{program}. Half sets "
        "are kept apart throughout: a particle is compared with the half map it is in or, where that would flatter the "
        "result, with the other."
    )


def files_table(inputs: Mapping[str, Any]) -> str:
    """Return the files that went in, and what else is noted of the input."""
    files = [(str(what), str(path)) for what, path in rows(inputs, "files")]
    others = [(str(name), text_of(value)) for name, value in inputs.items() if name not in _KNOWN and value != ""]
    return table(("What", "File"), files + others, css="narrow") if files or others else ""


def _exposures(exposures: list[Any]) -> str:
    lines = [
        (
            int(e["movies"]), int(e["frames"]), float(e["dose_per_frame_e_A2"]),
            float(e["pre_exposure_e_A2"] + (e["first_frame"] + e["frames"]) * e["dose_per_frame_e_A2"]),
            float(e["pixel_size_A"]), f"{e['width_px']}\u00a0×\u00a0{e['height_px']}", float(e["voltage_kV"]),
        )
        for e in exposures
    ]  # fmt: skip
    head = (
        "Movies",
        "Frames",
        "Dose per frame (e/Å²)",
        "Dose in the end (e/Å²)",
        "Pixel (Å)",
        "Size (px)",
        "Voltage (kV)",
    )
    more = paragraphs([f"And movies of {len(lines) - LISTED} other doses."]) if len(lines) > LISTED else ""
    return table(head, lines[:LISTED], css="narrow") + more if lines else ""


def _half_sets(half_sets: list[Any]) -> str:
    lines = [(int(reference), int(one), int(two), int(one) + int(two)) for reference, one, two in half_sets]
    return table(("Reference", "Half set 1", "Half set 2", "Particles"), lines, css="narrow") if lines else ""


def _optics(groups: list[Any]) -> str:
    if len(groups) < 2:
        return ""
    lines = [(str(g["name"]), int(g["particles"]), float(g["pixel_size_A"]), int(g["box_size"])) for g in groups]
    return table(("Optics group", "Particles", "Pixel refined (Å)", "Box refined (px)"), lines, css="narrow")


def skipped(inputs: Mapping[str, Any], particles: xr.Dataset | None) -> str:
    """Return why particles and movies were left out: reason, how many, where; what is known of that."""
    lines = _left_at_opening(rows(inputs, "skipped"), movies_only=particles is not None)
    if particles is not None:
        lines = _left_of(particles) + lines
    if lines:
        return table(("Left out because", "Particles", "Micrographs", "Which"), lines)
    known = particles is not None or "skipped" in inputs
    return paragraphs(["Nothing: every particle of the input was used."]) if known else ""


def _left_at_opening(entries: list[Any], movies_only: bool) -> list[tuple[object, ...]]:
    """Rows from what was skipped on opening; particles are also in the table of particles, if there is one."""
    return [
        (
            str(e["reason"]),
            int(e["particles"]),
            int(e["n_micrographs"]),
            some_of(e["micrographs"], int(e["n_micrographs"])),
        )
        for e in entries
        if not (movies_only and e["particles"])
    ]


def _left_of(particles: xr.Dataset) -> list[tuple[object, ...]]:
    left = ~particles["written"].values.astype(bool)
    if "row" in particles:  # row -1: a movie without particles
        left &= particles["row"].values >= 0
    names, reasons = particles["micrograph"].values[left], particles["reason"].values[left].astype(str)
    lines: list[tuple[object, ...]] = []
    for reason, of in alike(zip(names.astype(str).tolist(), reasons.tolist())).items():
        where = sorted(set(of))
        lines.append((reason or "no reason given", len(of), len(where), some_of(where, len(where))))
    return lines


def some_of(names: list[Any], total: int) -> str:
    """Return the first of ``total`` names."""
    shown = ", ".join(str(name) for name in names[:NAMED])
    return shown + (f" and {total - NAMED:,} more" if total > NAMED else "")


def audit_findings(audit: xr.Dataset | None) -> list[tuple[str, str]]:
    """Return (severity, text) of everything the check of the input found."""
    found = decoded(audit.attrs.get("findings", [])) if audit is not None else []
    return [(str(one[0]), str(one[1])) for one in found or [] if len(one) == 2]


def _audit(audit: xr.Dataset) -> str:
    found = audit_findings(audit)
    marks = {"error": "Wrong: ", "warning": "Worth a look: "}
    verdict = listing(marks.get(severity, "") + text for severity, text in found) if found else paragraphs(
        ["Nothing speaks against it: particles look like their reference, and half sets are those of the half maps as far as "
         "that can be told."]
    )  # fmt: skip
    found_in = sorted(audit.data_vars, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER))
    figures = [
        v for v in (audit[name] for name in found_in) if v.dims in ((), ("reference",)) and v.dtype.kind in "fiu"
    ]
    if not figures:
        return verdict
    n = max(int(np.atleast_1d(v.values).size) for v in figures)
    head = ("Figure", *([f"Reference {i + 1}" for i in range(n)] if n > 1 else ["Value"]), "Unit")
    lines = [
        (
            name_of(v),
            *[number(float(one)) for one in np.atleast_1d(v.values)],
            str(v.attrs.get("units", "")).replace("1", ""),
        )
        for v in figures
        if np.atleast_1d(v.values).size == n
    ]
    told = paragraphs(["Resemblance is how much better particles agree with views of their reference than chance would have "
                       "it, in standard errors; above 5 or so they belong together."])  # fmt: skip
    return verdict + told + folded("The figures of this check", table(head, lines, css="narrow"))
