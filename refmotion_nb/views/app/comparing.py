"""Runs side by side: what the Compare tab shows of the present run and of stored ones, without widgets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.describe import defaults
from refmotion_nb.stages.job import STAGES, Job
from refmotion_nb.views import plots
from refmotion_nb.views.app import parts
from refmotion_nb.views.report_html import text_of
from refmotion_nb.views.svg import number

PRESENT = "this run"
MOST = 6  # runs beside the present one: there are seven colours
GROUPS = {"search": "a search", "dose_weights": "dose weights", "validation": "a validation"}
HYPERPARAMETERS = {
    "strength": ("total prior strength", ""), "balance_deg": ("balance", "°"), "distance_A": ("correlation distance", " Å"),
    "common_std_A": ("errors of whole-frame alignment, σ", " Å"), "drift_strength": ("drift strength", " (e/Å²)³/Å²"),
    "profile_decay_e_A2": ("local motion fades over", " e/Å²"),
    "profile_floor": ("to this part of its start", ""), "cv_score": ("score (lower is better)", ""),
    "activity_local": ("local activity", " Å"), "n_particles": ("particles searched with", ""),
}  # fmt: skip


@dataclass(frozen=True)
class View:
    """One way to look at several runs: of which results, drawn how."""

    group: str
    needs: tuple[str, ...]  # variables; weights taken from a file may be without
    draw: Callable[[dict[str, xr.Dataset]], Any]
    about: str


_WIDE = {"height": 380, "min_width": 560, "max_width": 1000}  # px


def every_fsc(runs: Mapping[str, xr.Dataset]) -> hv.Layout:
    """Draw half-map FSC (see ``plots.fsc``) of each reference; that of a single one as wide as there is room."""
    n = max(run.sizes["reference"] for run in runs.values())
    panels = [plots.fsc({name: run for name, run in runs.items() if run.sizes["reference"] > i}, i) for i in range(n)]
    if n == 1:
        panels[0].opts(hv.opts.Overlay(frame_width=None, frame_height=None, responsive=True, **_WIDE))
    return hv.Layout(panels).cols(2)


VIEWS = {
    "FCC": View(
        "dose_weights", ("fcc",), plots.fcc, "How well each frame agrees with the reference, by resolution and dose."
    ),
    "Weights": View(
        "dose_weights",
        ("weight",),
        plots.weights,
        "What each e/Å² counts at a few resolutions, so that runs of any dose per frame compare; dashed: the standard curve.",
    ),
    "B-factors": View(
        "dose_weights",
        ("b_factor", "frame_scale"),
        plots.b_factors,
        "Decay of signal in each frame, and its scale, beside the best frame.",
    ),
    "Rays": View("search", (), plots.rays, "Where the rays of each search went: a row of panels for each run."),
    "Scores": View("search", (), plots.scores, "The score of each ray over strength: a row of panels for each run."),
    "FSC": View("validation", (), every_fsc, "Dashed: what each run began with; solid: what it ended with."),
}


class Present:
    """The results of the session at hand, else those in its output folder."""

    def __init__(self, engine: Any):
        """Look at the engine."""
        self.engine = engine

    def stamp(self) -> Any:
        """Return what changes with the results."""
        runs = [run for run in self.engine.runs if run.state == "done"]
        store = self.engine.store
        return len(runs), self.engine.session, None if store is None else _stamp(store)

    def read(self, group: str) -> xr.Dataset | None:
        """Return a result, if there is one."""
        return self.engine.result(group)

    @property
    def attrs(self) -> dict[str, Any]:
        """What was recorded of the run; settings are those its results were made with, not what the next run will take."""
        store = self.engine.store
        known = {"defaults": defaults(STAGES), **({} if store is None else store.attrs)}
        given = dict(known.get("settings", {}))
        for run in self.engine.runs:
            if run.state == "done" and isinstance(run.stage, Job):
                given = dict(run.settings)
            elif run.state == "done":
                given.update(run.settings)
        return {**known, "settings": {name: value for name, value in given.items() if value is not None}}


class Stored:
    """Results in a folder."""

    def __init__(self, store: ResultStore):
        """Look at a store."""
        self.store = store

    def stamp(self) -> Any:
        """Return what changes with the results."""
        return _stamp(self.store)

    def read(self, group: str) -> xr.Dataset | None:
        """Return a result, if there is one."""
        return self.store.read(group)

    @property
    def attrs(self) -> dict[str, Any]:
        """What was recorded of the run."""
        return self.store.attrs


def _stamp(store: ResultStore) -> tuple[Any, ...]:
    return (str(store.path), store.stamp(), *map(store.stamp, GROUPS))


def sources(engine: Any) -> dict[str, Present | Stored]:
    """Return the runs to compare by name, the present one first if it has results."""
    here: dict[str, Present | Stored] = {}
    kinds = ("HyperparameterSearch", "DoseWeights", "Validation")
    store = engine.store
    if any(run.state == "done" and run.name in kinds for run in engine.runs) or (store and any(map(store.has, GROUPS))):
        here[PRESENT] = Present(engine)
    return here | {name: Stored(store) for name, store in engine.compared.items()}


def add(engine: Any, folder: str) -> str:
    """Take the results of a folder among the runs to compare; return how they are called.

    Raises
    ------
    InputError
        The folder is outside those that may be used or has no results, or there are too many already.
    """
    if not folder.strip():
        raise InputError("no folder is given; give one that a run has written, with results.zarr in it")
    path = engine.roots.resolve(folder.strip())
    path = path if path.name.endswith(".zarr") else path / "results.zarr"
    store = ResultStore(engine.roots.resolve(path), engine.roots.folders)
    if not any(store.has(name) for name in GROUPS):
        raise InputError(
            f"{folder} has no results to compare; give the output folder of a run, with results.zarr in it"
        )
    if path == (Path(engine.out) / "results.zarr").resolve():
        raise InputError(f"{folder} is the folder of this run, which is compared already; give another")
    for name, known in engine.compared.items():
        if known.path == store.path:
            raise InputError(f"{folder} is compared already, as {name}; give another")
    if len(engine.compared) >= MOST:
        raise InputError(f"{MOST} runs are compared already; remove one first")
    name, n = path.parent.name, 1
    while name in engine.compared or name == PRESENT:
        n += 1
        name = f"{path.parent.name} ({n})"
    engine.compared = {**engine.compared, name: store}
    engine.changed()
    return name


def remove(engine: Any, name: str) -> None:
    """Compare a run no longer."""
    engine.compared = {other: store for other, store in engine.compared.items() if other != name}
    engine.changed()


def read(
    runs: Mapping[str, Any], group: str, rays: bool = False, needs: Iterable[str] = ()
) -> tuple[dict[str, xr.Dataset], list[str]]:
    """Return a result of each run that has it, and what to say of those that have not.

    ``rays``: with rays; ``needs``: with these variables.
    """
    found, said = {}, []
    for name, source in runs.items():
        try:
            table = source.read(group)
        except (InputError, OSError) as error:
            said.append(f"{name} cannot be read: {error}")
            continue
        if table is None:
            said.append(f"{name} has not got as far as {GROUPS[group]}.")
        elif rays and not table.sizes.get("ray", 0):
            said.append(f"{name} was given its hyperparameters: it has no rays.")
        elif missing := _lacking(name, table, needs):
            said.append(missing)
        else:
            found[name] = table
    return found, said


def _lacking(name: str, table: xr.Dataset, needs: Iterable[str]) -> str:
    """Return what to say of a result without some variables; nothing if it has them."""
    missing = ", ".join(one for one in needs if one not in table)
    return f"{name} has weights of a file, without {missing}: it is left out where these are drawn." if missing else ""


def drawing(runs: Mapping[str, Any], view: View) -> Any:
    """Return the figure of a view (HoloViews).

    Raises
    ------
    InputError
        No run has what it shows.
    """
    found, said = read(runs, view.group, view.group == "search", view.needs)
    if not found:
        raise InputError(" ".join(said))
    return view.draw(found)


def tables(runs: Mapping[str, Any]) -> str:
    """Return the HTML of what differs and what was gained."""
    attrs, said = {}, []
    for name, source in runs.items():
        try:
            attrs[name] = source.attrs
        except (InputError, OSError) as error:
            said.append(f"{name} cannot be read: {error}")
    searches, not_searched = read(runs, "search")
    validations, not_validated = read(runs, "validation")
    dose_weights, not_weighted = read(runs, "dose_weights")
    said += [line for line in (*not_searched, *not_weighted, *not_validated) if "cannot be read" in line]
    said += filter(None, (_lacking(name, table, ("fcc", "b_factor")) for name, table in dose_weights.items()))
    pieces = [
        ("Hyperparameters", hyperparameters(searches)),
        ("Settings that differ", settings(attrs, dose_weights)),
        ("Data and axes", axes(attrs, dose_weights)),
        ("Resolution gained, FSC 0.143", resolutions(validations)),
    ]
    body = "".join(f"<div><h4>{escape(title)}</h4>{html}</div>" for title, html in pieces if html)
    missing = "".join(f"<p>{escape(line)}</p>" for line in dict.fromkeys((*said, *not_validated)))
    return f'<div style="display: flex; flex-wrap: wrap; gap: 4px 40px">{body}</div><small>{missing}</small>'


def hyperparameters(searches: Mapping[str, xr.Dataset]) -> str:
    """Return the hyperparameters of each run, a column for each."""
    rows = []
    for key, (label, unit) in HYPERPARAMETERS.items():
        digits = 5 if key == "cv_score" else 4
        values = [_value(table.attrs.get(key), unit, digits) for table in searches.values()]
        if any(value != "–" for value in values):
            rows.append((label, *values))
    return parts.table(rows, ("", *searches)) if rows else ""


def _value(value: Any, unit: str, digits: int) -> str:
    if value is None or not np.isfinite(float(value)):
        return "–" if value is None or np.isnan(float(value)) else "not at all"
    return f"{number(float(value), digits)}{unit}"


def settings(attrs: Mapping[str, Mapping[str, Any]], dose_weights: Mapping[str, xr.Dataset]) -> str:
    """Return the settings in which runs differ, a column for each run; and whose dose weights they have."""
    defaults = {name: value for one in attrs.values() for name, value in dict(one.get("defaults", {})).items()}
    given = {name: {**defaults, **dict(one.get("settings", {}))} for name, one in attrs.items()}
    keys = sorted({key for one in given.values() for key in one})
    told = {key: [_said(one.get(key)) for one in given.values()] for key in keys}
    weighted = [dose_weights.get(name) for name in attrs]
    told["dose weights"] = ["–" if one is None else one.attrs.get("from_file", "measured") for one in weighted]
    rows = [(key, *values) for key, values in told.items() if len(set(values)) > 1]
    if not rows:
        return "<small>None: all were made with the same settings.</small>" if len(given) > 1 else ""
    return parts.table(rows, ("", *given))


def _said(value: Any) -> str:
    return "–" if value is None else text_of(value)


def axes(attrs: Mapping[str, Mapping[str, Any]], dose_weights: Mapping[str, xr.Dataset]) -> str:
    """Return what each run was made of: particles, movies, frames, dose, how far its frequencies go."""
    rows: list[tuple[str, ...]] = []
    for name, label in (("particles", "particles"), ("movies", "movies")):
        values = [_said(dict(one.get("inputs", {})).get(name)) for one in attrs.values()]
        if any(value != "–" for value in values):
            rows.append((label, *values))
    weighted = [dose_weights.get(name) for name in attrs]
    if any(table is not None for table in weighted):
        rows.append(("frames", *("–" if one is None else str(one.sizes["frame"]) for one in weighted)))
        doses = ["–" if one is None else f"{number(float(one['dose'].max()))} e/Å²" for one in weighted]
        rows.append(("dose at the middle of the last frame", *doses))
        ends = ["–" if one is None else f"{number(1 / float(one['frequency'].max()))} Å" for one in weighted]
        rows.append(("finest shell", *ends))
    return parts.table(rows, ("", *attrs)) if rows else ""


def resolutions(validations: Mapping[str, xr.Dataset]) -> str:
    """Return the resolution that each run began and ended with."""
    rows = []
    for name, table in validations.items():
        if "resolution_0143" not in table:
            continue
        several = table.sizes["reference"] > 1
        for i in range(table.sizes["reference"]):
            one = table["resolution_0143"].isel(reference=i).values
            first, last = (str(table["combination"].values[j]) for j in (0, -1))
            who = f"{name}, reference {i + 1}" if several else name
            gain = f"{one[0] - one[-1]:.2f} Å".replace("-", "−")
            rows.append((who, f"{one[0]:.2f} Å ({first})", f"{one[-1]:.2f} Å ({last})", gain))
    return parts.table(rows, ("Run", "began with", "ended with", "gain")) if rows else ""
