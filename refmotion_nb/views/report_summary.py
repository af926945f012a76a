"""The first part of the report: what was done, what was found, what to look at and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.views.report_dose import tell_dose
from refmotion_nb.views.report_html import count, decoded, duration, mapping, paragraphs, rows
from refmotion_nb.views.report_inputs import audit_findings
from refmotion_nb.views.report_maps import best_resolution, map_warnings, tell_maps
from refmotion_nb.views.report_micrographs import tell_micrographs
from refmotion_nb.views.report_run import stage_seconds
from refmotion_nb.views.report_search import best_activity, search_warnings, tell_search
from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    import xarray as xr

FEW_WRITTEN = 0.9  # share of particles
STAGES = {
    "search": ("the hyperparameter search", "hyperparameters"),
    "dose_weights": ("dose weights", "dose-weights"),
    "tracks": ("trajectories", "correct"),
    "particles": ("corrected particles", "correct"),
    "validation": ("the comparison of maps", "validate"),
}


def summary_section(
    groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any], there: set[str], remark: str = ""
) -> str:
    """Return the summary; ``there`` are the names of the groups and sections that have results."""
    found = "".join(
        f"<div><small>{escape(what)}</small><strong>{escape(value)}</strong><small>{escape(remark)}</small></div>"
        for what, value, remark in tiles(groups, attrs)
    )
    parts = [f'<div class="tiles">{found}</div>'] if found else []
    if noted := warnings(groups, attrs):
        items = "".join(f"<li>{escape(text)}</li>" for text in noted)
        parts.append(f'<div class="note warn"><b>Worth a look</b><ul>{items}</ul></div>')
    parts.append(f'<div class="told">{paragraphs([*filter(None, [remark]), *sentences(groups)])}</div>')
    if "particles" in groups and groups["particles"]["written"].values.any():
        parts.append(f'<div class="note"><b>What next</b>{paragraphs([next_step(attrs)])}</div>')
    if absent := missing(there):
        items = "".join(f"<li>{escape(what)}: <code>{escape(command)}</code></li>" for what, command in absent)
        parts.append(f'<div class="note"><b>Not among these results</b><ul>{items}</ul></div>')
    return "".join(parts)


def tiles(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the figures to see first: (what, value, remark)."""
    found = []
    if "particles" in groups:
        written = groups["particles"]["written"].values.astype(bool)
        names = np.unique(groups["particles"]["micrograph"].values[written])
        found.append(
            ("Particles corrected", f"{written.sum():,}", f"of {written.size:,}, in {names.size:,} micrographs")
        )
    if "search" in groups and "strength" in groups["search"].attrs:
        values = groups["search"].attrs
        three = f"{number(values['strength'])} · {number(values['balance_deg'])}° · {number(values['distance_A'], 4)} Å"
        found.append(("Hyperparameters", three, "total prior strength · balance · correlation distance"))
        local, total = best_activity(groups["search"])
        if np.isfinite(local):
            found.append(
                ("Trajectory activity", f"{number(local)} Å", f"local; {number(total)} Å with that of whole frames")
            )
    if "validation" in groups and (reached := best_resolution(groups["validation"])):
        found.append(("Resolution", *reached))
    if "corrected_micrographs" in groups:
        whole = groups["corrected_micrographs"]["written"].values.astype(bool)
        found.append(("Micrographs written", f"{whole.sum():,}", f"of {whole.size:,}"))
    if seconds := stage_seconds(attrs):
        found.append(("Time", duration(sum(seconds)), f"in {count(len(seconds), 'stage')}"))
    return found


def sentences(groups: Mapping[str, xr.Dataset]) -> list[str]:
    """Return what was done, in plain words, a sentence or two for each stage that has results."""
    tell = {"particles": _tell_particles, "search": tell_search, "dose_weights": tell_dose, "validation": tell_maps,
            "corrected_micrographs": tell_micrographs}  # fmt: skip
    return [function(groups[name]) for name, function in tell.items() if name in groups]


def next_step(attrs: Mapping[str, Any]) -> str:
    """Return what to do with the corrected particles, in words; ``attrs`` are those of the store."""
    inputs = mapping(attrs, "inputs")
    cryosparc, n = inputs.get("program") == "CryoSPARC", len(rows(inputs, "half_sets"))
    ends = "csg" if cryosparc else "star"
    between = "and" if n == 2 else "to"
    tables = f"particles_1.{ends} {between} particles_{n}.{ends}" if n > 1 else f"particles.{ends}"
    how = (
        f"Import Result Group takes {tables}; refine what it holds" if cryosparc
        else f"Refine {tables} in RELION (3D auto-refine), in the folder that image names in it start from"
    )  # fmt: skip
    return (
        f"{how}, with half sets as they are and the settings of the refinement before, and compare with that one under the same "
        "mask. The new half maps may serve a second round: motion is followed better with a sharper reference."
    )


def _tell_particles(particles: xr.Dataset) -> str:
    written = particles["written"].values.astype(bool)
    left = int((~written).sum())
    if not left:
        return f"All {count(written.size, 'particle')} were corrected for their own motion and written."
    return (
        f"{written.sum():,} of {count(written.size, 'particle')} were corrected for their own motion and written; "
        f"{left:,} were not, for the reasons listed under Inputs."
    )


def warnings(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> list[str]:
    """Return what needs attention, each with its remedy: what the stages noted, and what the results show."""
    found = [text for severity, text in audit_findings(groups.get("audit")) if severity != "note"]
    found += [str(text) for text in decoded(attrs.get("warnings", [])) or []]
    found += search_warnings(groups["search"]) if "search" in groups else []
    found = [_sentence(text) for text in dict.fromkeys(found)]
    if "particles" in groups:
        written = groups["particles"]["written"].values.astype(bool)
        if written.size and written.mean() < FEW_WRITTEN:
            found.append(
                f"{100 - 100 * written.mean():.0f} % of the particles were not written: see Inputs for what was skipped, and why."
            )
    if "validation" in groups:
        found += map_warnings(groups["validation"])
    return found


def _sentence(text: str) -> str:
    """Return ``text`` with a capital, unless it begins with a name."""
    return text[:1].upper() + text[1:] if text.split(" ")[0].strip(",;").isalpha() else text


def missing(there: set[str]) -> list[tuple[str, str]]:
    """Return what is not among the results of a run: (what, the command that computes it); nothing of whole micrographs."""
    if there and there <= {"corrected_micrographs", "micrographs"}:
        return []
    return [(what, f"refmotion run … --until {stage}") for name, (what, stage) in STAGES.items() if name not in there]
