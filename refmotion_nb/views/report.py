"""The report: one HTML file that shows what a run did, with nothing to load from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refmotion_nb.data.files import atomic
from refmotion_nb.data.store import PER_MICROGRAPH, SINGLE, ResultStore
from refmotion_nb.views import report_figures as figures
from refmotion_nb.views import report_words as words

if TYPE_CHECKING:
    import xarray as xr

MAX_SPECTRA = 40
MAX_GROUPS = 4


def write_report(
    results: ResultStore | xr.DataTree | str | Path,
    path: str | Path,
    *,
    title: str = "Reference-based motion correction",
    micrographs: int = 6,
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
        The heading.
    micrographs
        How many to show trajectories of.
    """
    source = ResultStore(results) if isinstance(results, str | Path) else results
    text = render_report(source, title=title, micrographs=micrographs)
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render_report(results: ResultStore | xr.DataTree, *, title: str, micrographs: int = 6) -> str:
    """Return the report as HTML."""
    groups = {name: found for name in SINGLE if (found := _get(results, name)) is not None}
    limits = dict(zip(PER_MICROGRAPH, (micrographs, MAX_SPECTRA)))
    each = {name: _some(results, name, limit) for name, limit in limits.items()}
    attrs = {str(name): value for name, value in results.attrs.items()}
    sections = {
        "Summary": _summary(groups, each, attrs),
        "Hyperparameters": _search(groups),
        "Trajectories": _trajectories(each["tracks"], len(_names(results, "tracks"))),
        "Dose weights": _dose(groups),
        "Maps": _maps(groups),
        "Noise": _noise(each["noise"]),
        "Run": _run(attrs),
    }
    shown = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in shown)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in shown.items())
    version = escape(str(attrs.get("version", "")))
    written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_style()}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p>refmotion_nb {version} · written {written}</p></header>"
        f"<nav>{links}</nav><main>{body}</main></body></html>\n"
    )


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
    found = {name.removeprefix(f"{section}/"): _get(results, name) for name in _names(results, section)[:limit]}
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def _summary(
    groups: Mapping[str, xr.Dataset], each: Mapping[str, Mapping[str, xr.Dataset]], attrs: Mapping[str, Any]
) -> str:
    seconds = words.decoded(attrs.get("seconds", {})) or {}
    tiles = "".join(
        f"<div><small>{escape(what)}</small><strong>{escape(value)}</strong><small>{escape(remark)}</small></div>"
        for what, value, remark in words.tiles(groups, seconds)
    )
    parts = [f'<div class="tiles">{tiles}</div>'] if tiles else []
    noted = words.warnings(groups, attrs)
    if noted:
        items = "".join(f"<li>{escape(text)}</li>" for text in noted)
        parts.append(f'<div class="note warn"><b>Worth a look</b><ul>{items}</ul></div>')
    told = "".join(f"<p>{escape(text)}</p>" for text in words.sentences(groups))
    left = words.skipped_table(groups["particles"]) if "particles" in groups else ""
    skipped = f"<div><h3>What was skipped, and why</h3>{left}</div>" if left else ""
    parts.append(f'<div class="split"><div class="words">{told}</div>{skipped}</div>' if told else "")
    absent = words.missing({**groups, **{name: found for name, found in each.items() if found}})
    if absent:
        items = "".join(f"<li>{escape(what)}: <code>{escape(command)}</code></li>" for what, command in absent)
        parts.append(f'<div class="note"><b>Not among these results</b><ul>{items}</ul></div>')
    return "".join(parts)


def _search(groups: Mapping[str, xr.Dataset]) -> str:
    search = groups.get("search")
    if search is None:
        return ""
    tables = _grid(words.hyperparameter_tables(search, groups.get("dose_weights")), "tables")
    if not search.sizes.get("ray", 0):
        return tables
    return (
        '<p class="words">A ray has a fixed balance and correlation distance; along it the total prior strength grows '
        "until nothing moves any more. The cross-validation score (lower is better) says how well the high-frequency "
        "part of the images, corrected by trajectories from the low-frequency part, agrees with the opposite half map."
        f"</p>{tables}{_grid(figures.rays(search))}<h3>Rays, the best first</h3>{words.ray_table(search)}"
    )


def _trajectories(tracks: Mapping[str, xr.Dataset], total: int) -> str:
    if not tracks:
        return ""
    shown = [picture for name, found in tracks.items() for picture in figures.micrograph(name, found)]
    return (
        f'<p class="words">{len(tracks)} of {words.count(total, "micrograph")}. Each track starts at a dot, at its '
        "particle, and is magnified as the scale bar under it says; local motion is what remains after the motion of "
        f"the micrograph as a whole (rigid motion and its common correction per frame).</p>{_grid(shown)}"
    )


def _dose(groups: Mapping[str, xr.Dataset]) -> str:
    if "dose_weights" not in groups:
        return ""
    dose = groups["dose_weights"]
    several = dose.sizes.get("group", 1) > 1
    parts = []
    for i in range(min(dose.sizes.get("group", 1), MAX_GROUPS)):
        name = dose["group"].values[i] if "group" in dose.coords else i + 1
        heading = f"<h3>Group {escape(str(name))}</h3>" if several else ""
        parts.append(heading + _grid(figures.damage(dose.isel(group=i))))
    return "".join(parts)


def _maps(groups: Mapping[str, xr.Dataset]) -> str:
    if "validation" not in groups:
        return ""
    validation = groups["validation"]
    table = words.resolution_table(validation) if "resolution_0143" in validation else ""
    return f'<div class="beside">{"".join(figures.fsc(validation))}{table}</div>'


def _noise(spectra: Mapping[str, xr.Dataset]) -> str:
    return _grid(figures.noise(spectra) + figures.reference_scale(spectra)) if spectra else ""


def _run(attrs: Mapping[str, Any]) -> str:
    parts = []
    seconds = words.decoded(attrs.get("seconds", {}))
    if seconds:
        parts.append(f"<div><h3>Time</h3>{words.seconds_table(seconds)}</div>")
    for name, head in (
        ("settings", ("Setting", "Value")),
        ("inputs", ("Input", "Value")),
        ("versions", ("Program", "Version")),
    ):
        values = words.decoded(attrs.get(name, {}))
        if isinstance(values, Mapping) and values:
            parts.append(f"<div><h3>{name.capitalize()}</h3>{words.mapping_table(values, head)}</div>")
    return f'<div class="beside">{"".join(parts)}</div>' if parts else ""


def _grid(items: list[str], css: str = "grid") -> str:
    return f'<div class="{css}">{"".join(items)}</div>'


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


@cache
def _style() -> str:
    return resources.files("refmotion_nb.views").joinpath("report.css").read_text(encoding="utf-8")
