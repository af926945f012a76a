"""The report: one HTML file that shows what a run did, with nothing to load from anywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refmotion_nb.data.files import atomic
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import PER_MICROGRAPH, SINGLE, ResultStore
from refmotion_nb.views.report_dose import dose_section
from refmotion_nb.views.report_html import mapping
from refmotion_nb.views.report_inputs import inputs_section
from refmotion_nb.views.report_maps import maps_section
from refmotion_nb.views.report_micrographs import micrographs_section
from refmotion_nb.views.report_run import citations, run_section
from refmotion_nb.views.report_search import search_section
from refmotion_nb.views.report_summary import summary_section
from refmotion_nb.views.report_tracks import noise_section, tracks_section
from refmotion_nb.views.scale import spread

if TYPE_CHECKING:
    import xarray as xr

MAX_SPECTRA = 40
SHOWN = 20  # micrographs with trajectories


def write_report(
    results: ResultStore | xr.DataTree | str | Path,
    path: str | Path,
    *,
    title: str = "",
    micrographs: int = SHOWN,
    remark: str = "",
) -> None:
    """Write the report of a run, from its results alone; atomically.

    Parameters
    ----------
    results
        The result store, its path, or a DataTree of the same layout. Any group may be missing: the report shows what
        there is, and says what to run for the rest.
    path
        The file to write, usually ``report.html``.
    title
        The heading; by default what the results are of.
    micrographs
        How many to show trajectories of, from the first to the last.
    remark
        A sentence to begin the summary with.

    Raises
    ------
    InputError
        There are no results.
    """
    source = ResultStore(results) if isinstance(results, str | Path) else results
    if isinstance(results, str | Path) and not (Path(results) / ".zgroup").is_file():
        raise InputError(f"{results} holds no results; give the results.zarr of a run")
    text = render_report(source, title=title or _title(source), micrographs=micrographs, remark=remark)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(results: ResultStore | xr.DataTree, *, title: str, micrographs: int = SHOWN, remark: str = "") -> str:
    """Return the report as HTML."""
    groups = {name: found for name in SINGLE if (found := _get(results, name)) is not None}
    limits = dict(zip(PER_MICROGRAPH, (micrographs, MAX_SPECTRA, micrographs)))
    each = {name: _some(results, name, limit) for name, limit in limits.items()}
    attrs = {str(name): value for name, value in results.attrs.items()}
    there = {*groups, *(name for name, found in each.items() if found)}
    out = results.path.parent if isinstance(results, ResultStore) else None
    total = {name: len(_names(results, name)) for name in PER_MICROGRAPH}
    shown = {name: body for name, body in _sections(groups, each, attrs, there, total, remark, out).items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in shown)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in shown.items())
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    folder = results.path.resolve().parent.name if isinstance(results, ResultStore) else ""
    of = f"{escape(folder)} · " if folder else ""  # so that the reports of several runs can be told apart
    body = _bound(body)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{of}{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_style()}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p>refmotion_nb {escape(_version(attrs))} · {of}written {written}</p></header>"
        f"<nav>{links}</nav><main>{body}</main></body></html>\n"
    )


def _sections(
    groups: Mapping[str, xr.Dataset], each: Mapping[str, Mapping[str, xr.Dataset]], attrs: Mapping[str, Any],
    there: set[str], total: Mapping[str, int], remark: str, out: Path | None,
) -> dict[str, str]:  # fmt: skip
    """Return the sections by heading; one without anything to show is empty."""
    inputs, dose = mapping(attrs, "inputs"), groups.get("dose_weights")
    return {
        "Summary": summary_section(groups, attrs, there, remark),
        "Inputs": inputs_section(inputs, groups.get("particles"), groups.get("audit")),
        "Hyperparameters": search_section(groups.get("search"), inputs, dose),
        "Trajectories": tracks_section(each["tracks"], total["tracks"]),
        "Dose weights": dose_section(dose),
        "Maps": maps_section(groups.get("validation"), out),
        "Micrographs": micrographs_section(groups.get("corrected_micrographs"), each["micrographs"], attrs),
        "Noise": noise_section(each["noise"], total["noise"]),
        "Run": run_section(attrs),
        "References": citations(groups, _version(attrs)) if groups else "",
    }


def _version(attrs: Mapping[str, Any]) -> str:
    """Return the version that made the results: of a run, or of whole micrographs without one."""
    return str(attrs.get("version") or mapping(attrs, "micrographs").get("version", ""))


def _title(results: ResultStore | xr.DataTree) -> str:
    of_a_run = "inputs" in results.attrs or _get(results, "corrected_micrographs") is None
    return "Reference-based motion correction" if of_a_run else "Motion-corrected micrographs"


def _get(results: ResultStore | xr.DataTree, name: str) -> xr.Dataset | None:
    if isinstance(results, ResultStore):
        return results.read(name)
    try:
        return results[name].to_dataset()
    except KeyError:
        return None


def _names(results: ResultStore | xr.DataTree, section: str) -> list[str]:
    if isinstance(results, ResultStore):
        return results.groups(section)
    return [f"{section}/{name}" for name in results[section].children] if section in results.children else []


def _some(results: ResultStore | xr.DataTree, section: str, limit: int) -> dict[str, xr.Dataset]:
    names = _names(results, section)  # of the first alone, all may be of one grid square
    found = {names[i].removeprefix(f"{section}/"): _get(results, names[i]) for i in spread(len(names), limit)}
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def _bound(body: str) -> str:
    """Return HTML in which no line ends between a number and its unit, or within a unit; drawings have no lines to break."""
    parts = re.split('(<svg.*?</svg>|<pre>.*?</pre>|<div class="legend">.*?</div>|<[^>]*>)', body, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        text = re.sub(r"(?<=\d) (?=(e/)?Å|%|px|×)|(?<=×) (?=\d)", "\N{NO-BREAK SPACE}", parts[i])
        parts[i] = re.sub(r"\(?e/Å²\)?", r'<span class="unit">\g<0></span>', text)
    return "".join(parts)


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


@cache
def _style() -> str:
    return resources.files("refmotion_nb.views").joinpath("report.css").read_text(encoding="utf-8")
