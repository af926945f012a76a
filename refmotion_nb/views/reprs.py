"""What the objects of a notebook show of themselves: settings, state, contents, what was left out and why.

The rooms below know nothing of it: ``attach`` gives the classes that are imported their ``__repr__`` and
``_repr_html_``, when a public name is asked for. Both say the same (``repr_page``).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from html import escape
from itertools import starmap
from typing import Any

from refmotion_nb.views.live_rays import rays_drawing, rays_in_words
from refmotion_nb.views.report_html import count, decoded, duration
from refmotion_nb.views.repr_page import Page, Part, Row, html_of, text_of
from refmotion_nb.views.run_words import how_far, state_of, told
from refmotion_nb.views.setting_words import help_of, value_in_words
from refmotion_nb.views.svg import number

_MAPS = 4  # micrographs drawn
_LISTED = 20  # entries of a list that may be long


def attach() -> None:
    """Give every class below that is imported its reprs."""
    for (module, name), page in _PAGES.items():
        home = sys.modules.get(f"refmotion_nb.{module}")
        kind = getattr(home, name, None)
        if kind is not None and "_repr_html_" not in vars(kind):
            _attach(kind, page)


def _attach(kind: type, page: Callable[[Any], Page]) -> None:
    type.__setattr__(kind, "_repr_html_", lambda self: _html(page(self)))
    type.__setattr__(kind, "__repr__", lambda self: text_of(page(self)))
    type.__setattr__(kind, "__str__", lambda self: text_of(page(self)))  # param has one of its own


def _html(page: Page) -> str:
    return html_of(page, text_of(page))


def stage_page(stage: Any) -> Page:
    """Return what a stage shows: its settings, the changed ones first, and its last run."""
    rows = [_setting(stage, name) for name in stage.param if name != "name"]
    changed = tuple(row for row in rows if row.changed)
    usual = tuple(row for row in rows if not row.changed)
    parts = [Part("other settings, as by default" if changed else "settings, all as by default", usual)]
    ran = stage.ran
    if ran is not None:
        if ran.error:
            parts.insert(0, Part("error", (Row("", ran.error),), open=True))
        if ran.result is not None:
            parts.append(_result(ran.result))
    return Page(type(stage).__name__, state_of(ran) if ran is not None else "not run yet", changed, tuple(parts))


def run_head(run: Any) -> Page:
    """Return what everybody wants to see of a run: each piece of work, how far it has come, what was told last."""
    snapshot = run.snapshot
    rows = [Row(work.what, how_far(work, run.state == "running")) for work in snapshot.works]
    if not snapshot.ended and snapshot.told:
        rows.append(Row("told last", told(snapshot.told)))
    if hasattr(run.stage, "out"):
        rows.append(Row("out", str(run.stage.out)))
    return Page(run.name, state_of(run), tuple(rows), drawing="" if snapshot.ended else work_bar(run))


def run_page(run: Any) -> Page:
    """Return what a run shows: how far it has come, the rays it has walked, the result, the settings it began with."""
    ended = run.snapshot.ended
    parts = [Part("error", (Row("", run.error),), open=True)] if run.error else []
    if (rays := rays_of(run)) is not None:
        parts.append(Part("rays", (Row("", rays_in_words(rays, ended)),), True, rays_drawing(rays, ended)))
    if hasattr(run.result, "data_vars"):  # a job has its results in a folder
        parts.append(_result(run.result))
    return replace(run_head(run), parts=(*parts, _settings_of_run(run)))


def rays_of(run: Any) -> Any:
    """Return the rays of a run: of its result, of its job's, or as far as they have come; None if there are none."""
    for found in (run.result, getattr(run.stage, "search", None), run.snapshot.so_far):
        if found is not None and "cv_score" in getattr(found, "data_vars", ()) and found.sizes.get("ray", 0):
            return found
    return None


def work_bar(run: Any) -> str:
    """Return the bar of the piece of work in hand."""
    if not run.snapshot.works:
        return ""
    work = run.snapshot.works[-1]
    percent = 100.0 if work.seconds is not None else 100 * min(work.done / max(work.total, 1), 1)
    name = escape(work.what)
    return (
        f'<div class="rm-bar" role="progressbar" aria-label="{name}" aria-valuenow="{percent:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{percent:.1f}%"></i></div>'
    )


def _settings_of_run(run: Any) -> Part:
    rows = [_given(name, value, type(run.stage)) for name, value in run.settings.items()]
    rows.sort(key=lambda row: not row.changed)
    n_changed = sum(row.changed for row in rows)
    return Part(f"settings, {n_changed} changed" if n_changed else "settings, all as by default", tuple(rows))


def _given(name: str, value: Any, kind: type | None = None) -> Row:
    """Return a setting of a run of ``kind``, or of a job, which has those of all stages."""
    from refmotion_nb.stages.inputs import Inputs
    from refmotion_nb.stages.job import STAGES

    kinds = [kind] if hasattr(kind, "param") else [Inputs, *STAGES]
    defaults = [one.param[name].default for one in kinds if name in one.param]  # type: ignore[union-attr]
    return Row(name, value_in_words(value), changed=not defaults or bool(value != defaults[0]))


def _setting(stage: Any, name: str) -> Row:
    declared, value = type(stage).param[name], getattr(stage, name)
    changed = bool(value != declared.default)
    remark = f"default {value_in_words(declared.default)}" if changed else ""
    return Row(name, value_in_words(value), remark, help_of(declared), changed)


def _result(result: Any) -> Part:
    rows = tuple(Row(name, found) for name, found in _contents(result))
    drawing = f"<div>{result._repr_html_()}</div>" if hasattr(result, "_repr_html_") else ""
    return Part("result", rows, drawing=drawing)


def _contents(result: Any) -> list[tuple[str, str]]:
    if not hasattr(result, "data_vars"):
        return [(type(result).__name__, str(result))]
    sizes = " × ".join(f"{size} {name}" for name, size in result.sizes.items())
    chosen = result.attrs
    found = [("dimensions", sizes or "none"), ("variables", ", ".join(map(str, result.data_vars)) or "none")]
    if {"strength", "balance_deg", "distance_A"} <= set(chosen):
        found.append(("chosen", f"strength {number(chosen['strength'], 4)}, balance {chosen['balance_deg']:.3g}°, "
                                f"distance {number(chosen['distance_A'], 4)} Å"))  # fmt: skip
    return found


def dataset_page(data: Any) -> Page:
    """Return what a data set shows: counts, doses, pixel sizes, what was left out and why, where the particles lie."""
    from refmotion_nb.data.check import dataset_facts, left_out, movies_left_out

    held = {"particle": data.particles.sizes["particle"], "movie": len(data.movies), "reference": len(data.references)}
    state = ", ".join(count(n, noun) for noun, n in held.items())
    rows = [Row(name, text) for name, text in dataset_facts(data)]
    references = tuple(
        row for i, one in enumerate(data.references) for row in _reference_rows(one, i, len(data.references))
    )
    reasons = left_out(data)
    without = movies_left_out(data)
    parts = [Part("references", references)]
    if reasons:
        entries = [Row(count(len(on), "particle"), why, f"e.g. on {on[0]}") for why, on in reasons.items()]
        parts.append(Part(f"left out: {count(sum(map(len, reasons.values())), 'particle')}", tuple(entries), True))
    if without:
        entries = [Row(count(len(names), "movie"), why) for why, names in without.items()]
        parts.append(Part("movies left out", tuple(entries), True))
    if data.notes:
        parts.append(Part("worth a look", tuple(Row("", note) for note in data.notes), True))
    parts.append(Part("where the particles lie", drawing=partial(_maps, data)))
    return Page("Dataset", state, tuple(rows), tuple(parts))


def _maps(data: Any) -> str:
    """Draw the particles of the first micrographs."""
    drawn = []
    for i, (movie, particles) in enumerate(data.micrographs()):
        if i == _MAPS:
            break
        width, height = movie.width * movie.pixel_size_A, movie.height * movie.pixel_size_A
        tall = round(140 * height / width)
        dots = "".join(
            f'<circle cx="{140 * x / width:.1f}" cy="{tall * (1 - y / height):.1f}" r="1.8"/>'
            for x, y in particles["coordinate"].values
        )
        name = escape(movie.micrograph)
        drawn.append(
            f'<figure><svg width="141" height="{tall + 1}" viewBox="-.5 -.5 141 {tall + 1}" role="img" aria-label="{name}">'
            f'<rect width="140" height="{tall}"/>{dots}</svg><figcaption>{name}<br>{count(len(particles["row"]), "particle")}, '
            f"{width / 1e4:.3g} × {height / 1e4:.3g} µm</figcaption></figure>"
        )
    return f'<div class="rm-maps">{"".join(drawn)}</div>' if drawn else ""


def _reference_rows(reference: Any, i: int = 0, of: int = 1) -> list[Row]:
    from refmotion_nb.data.maps import check_reference
    from refmotion_nb.data.schema import InputError

    number = f" {i + 1}" if of > 1 else ""
    rows = [Row(f"half map 1{number and f', reference{number}'}", str(reference.half1)), Row("half map 2", str(reference.half2)),
            Row("mask", str(reference.mask) if reference.mask else "none")]  # fmt: skip
    if reference.postprocess:
        rows.append(Row("FSC from", str(reference.postprocess)))
    try:
        box, pixel = check_reference(reference)
    except InputError as error:
        return [*rows, *(Row("cannot be used", line, changed=True) for line in str(error).splitlines())]
    return [*rows, Row("box", f"{box} px of {pixel:.4g} Å, {box * pixel:.4g} Å wide")]


def reference_page(reference: Any) -> Page:
    """Return what a reference shows: its files, box and pixel size."""
    return Page("Reference", "", tuple(_reference_rows(reference)))


def hyperparameters_page(h: Any) -> Page:
    """Return what hyperparameters show: the three, the strengths that follow, and RELION's units."""
    s_vel, s_div, s_acc = h.to_relion(1.0)
    rows = (
        Row("strength", f"{number(h.strength, 4)} (e/Å²)/Å²", "", "Total prior strength r: larger allows less motion."),
        Row("balance", f"{h.balance_deg:.4g}°", "0°: spatial only, 90°: acceleration only", "Balance θ."),
        Row("distance", f"{number(h.distance_A, 4)} Å", "over which neighbours move alike", "Correlation distance z."),
    )
    follow = (
        Row("spatial strength", number(h.spatial_strength, 4), "", "r cos θ"),
        Row("acceleration strength", number(h.acceleration_strength, 4), "", "r sin θ"),
        Row("s_vel", f"{number(s_vel)} Å per e/Å²", "", "RELION's sigma of velocity, for frames of 1 e/Å²"),
        Row("s_div", f"{number(s_div, 4)} Å", "", "RELION's sigma of divergence"),
        Row("s_acc", f"{number(s_acc)} Å per e/Å²", "", "RELION's sigma of acceleration, for frames of 1 e/Å²"),
    )
    return Page(
        "Hyperparameters", "", rows, (Part("as strengths, and in RELION's units for frames of 1 e/Å²", follow),)
    )


def session_page(session: Any) -> Page:
    """Return what a session shows: what is in memory, what took time, what could not be used."""
    kept = session.spool.held_bytes
    tracked = len({name for name, _ in list(session.tracks)})  # a run may add to it meanwhile
    particles = sum(session.particle_count(name) for name in session)
    state = f"{count(particles, 'particle')} on {count(len(session.micrographs), 'micrograph')}"
    rows = (
        Row(
            "in memory",
            f"{kept / 1e9:.2f} of {session.cache_bytes / 1e9:.2f} GB",
            "",
            "Transforms and views of micrographs.",
        ),
        Row("processors", str(session.threads)),
        Row("trajectories", f"found for {tracked} of {count(len(session.micrographs), 'micrograph')}"),
    )
    return Page("Session", state, rows, (*_runs(session.runs), *_failures(dict(session.failed)), *_warnings(session.warnings),
                                         *_times(dict(session.seconds)), _data_part(session.data)))  # fmt: skip


def _runs(runs: Iterable[Any]) -> list[Part]:
    """Return the runs, the last first, each with its state and with what it is at or found."""
    rows = tuple(Row(run.name, state_of(run), _at(run), changed=not run.snapshot.ended) for run in reversed([*runs]))
    return [Part(count(len(rows), "run"), _cut(rows), True)] if rows else []


def _at(run: Any) -> str:
    if run.error:
        return run.error
    if run.snapshot.ended:
        return dict(_contents(run.result)).get("chosen", "") if run.state == "done" else ""
    *_, work = run.snapshot.works or (None,)
    return f"{work.what}: {how_far(work, run.state == 'running')}" if work is not None else ""


def job_page(job: Any) -> Page:
    """Return what a job shows: where it writes, its settings, which results are there."""
    done = [name for name in ("search", "dose", "particles", "validation") if getattr(job, name) is not None]
    rows = [Row("out", str(job.out)), *starmap(_given, job.settings.items())]
    for name in ("hyperparameters_file", "dose_weights_file"):
        if getattr(job, name):
            rows.append(Row(name, str(getattr(job, name))))
    parts = [*_warnings(job.warnings), *_times(dict(job.seconds))]
    for name in done:
        parts.append(Part(f"result: {name}", _result(getattr(job, name)).rows))
    state = f"done: {', '.join(done)}" if done else "not run yet"
    if job.ran is not None and job.ran.state not in ("done", "running" if done else ""):
        state = state_of(job.ran)
    return Page("Job", state, tuple(rows), (*parts, _data_part(job.data)))


def store_page(store: Any) -> Page:
    """Return what a result store shows: which results are there, and how the run that wrote them went."""
    groups = Counter(name.split("/")[0] for name in store.groups())
    rows = [Row(name, count(n, "micrograph") if name in ("tracks", "noise") else "there") for name, n in groups.items()]
    attrs = store.attrs
    settings = decoded(attrs.get("settings") or {})
    parts = [*_warnings(_list(decoded(attrs.get("warnings")))), *_times(decoded(attrs.get("seconds") or {}))]
    if isinstance(settings, Mapping):
        parts.append(Part("settings of the run", tuple(Row(str(k), value_in_words(v)) for k, v in settings.items())))
    known = [Row(name, str(attrs[name])) for name in ("version", "command") if attrs.get(name)]
    return Page(f"ResultStore {store.path}", "" if groups else "empty", (*rows, *known), tuple(parts))


def _data_part(data: Any) -> Part:
    page = dataset_page(data)
    return Part(f"data: {page.state}", page.rows)


def _failures(failed: Mapping[str, str]) -> list[Part]:
    rows = tuple(Row(name, reason) for name, reason in failed.items())
    return [Part(f"could not be used: {count(len(rows), 'micrograph')}", _cut(rows), True)] if rows else []


def _warnings(warnings: Iterable[str]) -> list[Part]:
    rows = tuple(Row("", str(text)) for text in warnings)
    return [Part(count(len(rows), "warning"), _cut(rows), True)] if rows else []


def _times(seconds: Any) -> list[Part]:
    if not isinstance(seconds, Mapping) or not seconds:
        return []
    whole = sum(value for name, value in seconds.items() if not name.endswith("(part)"))
    title = f"time: {duration(whole)}" if whole else "time"
    return [Part(title, tuple(Row(name, duration(value)) for name, value in seconds.items()))]


def _cut(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return rows if len(rows) <= _LISTED else (*rows[:_LISTED], Row("", f"… and {len(rows) - _LISTED} more"))


def _list(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list | tuple) else []


# where the classes live; nothing is imported for their sake
_PAGES: dict[tuple[str, str], Callable[[Any], Page]] = {
    ("data.schema", "Dataset"): dataset_page,
    ("data.schema", "Reference"): reference_page,
    ("data.store", "ResultStore"): store_page,
    ("numerics.prior", "Hyperparameters"): hyperparameters_page,
    ("stages.base", "Stage"): stage_page,
    ("stages.job", "Job"): job_page,
    ("stages.runs", "Run"): run_page,
    ("stages.session", "Session"): session_page,
}
