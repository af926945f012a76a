"""The explorer as SVG and HTML: trajectories over the micrograph, what was tried, the numbers and what they mean."""

from __future__ import annotations

from html import escape

import numpy as np

from refmotion_nb.numerics.rays import QUIET_A
from refmotion_nb.views.explorer import ExplorerModel, Snapshot, Tried, paths_A
from refmotion_nb.views.explorer_words import place
from refmotion_nb.views.scale import MOST_FRAMES, MOST_PARTICLES, spread
from refmotion_nb.views.svg import Axis, Legend, Line, Mark, line_drawing, number, track_drawing


def html(body: str) -> str:
    """Return ``body`` (HTML) where the explorer's style holds."""
    return f'<div class="rm-explorer">{body}</div>'


def trajectories(model: ExplorerModel, snapshot: Snapshot, width: int = 470) -> str:
    """Return the trajectories over the micrograph, those pinned beneath in grey."""
    tracks = snapshot.tracks
    paths, shown, frames = drawn(snapshot)
    what = "All motion" if snapshot.whole else "Local motion"
    lengths = np.linalg.norm(np.diff(paths, axis=1), axis=-1).sum(1)
    names = [f"particle {row}: path of {length:.2f} Å" for row, length in zip(tracks["row"].values[shown], lengths)]
    beneath = None
    if snapshot.pinned_tracks is not None:
        beneath = paths_A(snapshot.pinned_tracks, snapshot.whole)[shown][:, frames]
    title = f"{model.exploration.name}: {what.lower()} of {len(paths)} particles"
    drawing = track_drawing(
        title, Axis("x (Å)", 0.0, tracks.attrs["width_A"]), Axis("y (Å)", 0.0, tracks.attrs["height_A"]),
        tracks["coordinate"].values[shown], paths[:, frames], names, width=width, magnified=snapshot.magnified, beneath=beneath,
    )  # fmt: skip
    legend = Legend().sequence("first frame", f"frame {tracks.sizes['frame']}")
    if beneath is not None:
        legend.line("pinned", "var(--muted)")
    head = f'<b class="t">{escape(what)}</b> <small>{escape(model.exploration.name)}</small>'
    return html(f"{head}{drawing}{legend}")


def drawn(snapshot: Snapshot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return paths (particle, frame, 2) Å of the particles drawn, which those are, and which frames."""
    sizes = snapshot.tracks.sizes
    shown, frames = spread(sizes["particle"], MOST_PARTICLES), spread(sizes["frame"], MOST_FRAMES)
    return paths_A(snapshot.tracks, snapshot.whole)[shown], shown, frames


def along(snapshot: Snapshot) -> list[Tried]:
    """Return what was tried with the present balance and distance, by strength."""
    h = snapshot.now.hyperparameters
    same = [
        t
        for t in snapshot.trail
        if abs(t.hyperparameters.balance_deg - h.balance_deg) < 0.01
        and abs(t.hyperparameters.distance_A / h.distance_A - 1) < 1e-4
    ]
    return sorted(same, key=lambda t: t.hyperparameters.strength)


def trail(model: ExplorerModel, snapshot: Snapshot, size: tuple[int, int] = (400, 155)) -> str:
    """Return two charts over strength: the score and the local activity of all that was tried."""
    x = Axis("Strength, (e/Å²)/Å²", *model.strengths, log=True)
    score = _chart(model, snapshot, x, "cv_score", "Score (lower is better)", size)
    activity = _chart(model, snapshot, x, "activity_local", "Local activity (Å)", size)
    legend = Legend().line("this balance and distance", "var(--c0)").line("others tried", "var(--c6)", "dots")
    legend.note("✕ now")
    if model.at_best is not None:
        legend.note("★ chosen by the search")
    if snapshot.pinned is not None:
        legend.line("pinned", "var(--c1)", "dots")
    return html(f"{score}{activity}{legend}")


def _chart(model: ExplorerModel, snapshot: Snapshot, x: Axis, what: str, label: str, size: tuple[int, int]) -> str:
    values = [getattr(t, what) for t in snapshot.trail]
    y = Axis.of(label, values, score_limits(values)) if what == "cv_score" else Axis.of(label, values, zero=True)
    now, line = snapshot.now, along(snapshot)
    lines = [
        Line(_strengths(snapshot.trail), np.array(values), "tried", "var(--c6)", "dots"),
        Line(_strengths(line), np.array([getattr(t, what) for t in line]), "this balance and distance", "var(--c0)"),
    ]
    if snapshot.pinned is not None:
        at = [snapshot.pinned.hyperparameters.strength], [getattr(snapshot.pinned, what)]
        told = [f"pinned: {place(snapshot.pinned.hyperparameters)}"]
        lines.append(Line(*at, "pinned", "var(--c1)", "only-points", points=told))
    marks = [] if model.at_best is None else [_mark(model.at_best, what, "chosen by the search", "best")]
    marks.append(_mark(now, what, "now", "end"))
    rules = [(QUIET_A, "no motion left below")] if what == "activity_local" else []
    return line_drawing(label, x, y, lines, marks=marks, rules=rules, size=size)


def score_limits(scores: list[float]) -> tuple[float, float]:
    """Return what an axis of scores holds at least: two percent about the best."""
    best = min(scores)
    return best - 0.005 * abs(best), best + 0.02 * abs(best)


def _strengths(tried: tuple[Tried, ...] | list[Tried]) -> np.ndarray:
    return np.array([t.hyperparameters.strength for t in tried])


def _mark(one: Tried, what: str, name: str, kind: str) -> Mark:
    return Mark(
        one.hyperparameters.strength, getattr(one, what), f"{name}: {place(one.hyperparameters)}", kind, "var(--text)"
    )


def numbers(snapshot: Snapshot) -> str:
    """Return score and activities in large letters."""
    now = snapshot.now
    tiles = (
        (f"{now.cv_score:.5f}".replace("-", "−"), "score, lower is better"),
        (f"{number(now.activity_local)} Å", "local activity"),
        (f"{number(now.activity_total)} Å", "total activity"),
    )
    return "".join(
        f"<span><strong>{escape(value)}</strong><small>{escape(name)}</small></span>" for value, name in tiles
    )


def text(model: ExplorerModel, snapshot: Snapshot) -> str:
    """Return what the numbers mean."""
    said = "".join(f"<p>{escape(sentence)}</p>" for sentence in model.words(snapshot))
    return html(said)
