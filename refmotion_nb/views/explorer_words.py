"""What the explorer's numbers mean, in sentences; nothing is escaped here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from refmotion_nb.numerics.rays import QUIET_A
from refmotion_nb.views.report_search import motion_model
from refmotion_nb.views.svg import number

if TYPE_CHECKING:
    from refmotion_nb.numerics.prior import Hyperparameters
    from refmotion_nb.stages.exploration import PriorExploration
    from refmotion_nb.views.explorer import Snapshot, Tried

NOISE = 0.002  # of the score: differences below this share of it are called equal


def words(snapshot: Snapshot, at_best: Tried | None, exploration: PriorExploration) -> list[str]:
    """Return sentences on motion, score, neighbours, RELION's numbers, what no slider moves, and what is pinned."""
    h = snapshot.now.hyperparameters
    found = [
        _motion(snapshot.now),
        _score(snapshot, at_best),
        _neighbours(h, exploration.layout["coordinate"].values),
        _relion(h, exploration.dose_per_frame_e_A2),
    ]
    if not exploration.settings.relion:
        found.append(_unmoved(vars(exploration.prior)))
    if snapshot.pinned is not None and snapshot.pinned_tracks is not None:
        found.append(_pinned(snapshot, snapshot.pinned))
    if hits := int(snapshot.tracks.attrs["edge_hits"]):
        found.append(f"{hits} positions lie beyond the windows; raise window_reach_A, or the prior's strength.")
    if snapshot.error:
        found.insert(0, snapshot.error)
    return found


def place(h: Hyperparameters) -> str:
    """Return hyperparameters in a few words."""
    return f"strength {number(h.strength)}, balance {h.balance_deg:.0f}°, distance {number(h.distance_A)} Å"


def _motion(now: Tried) -> str:
    if now.activity_local < QUIET_A:
        bound_A = max(np.ceil(100 * now.activity_local) / 100, 0.01)
        return (
            f"The prior holds all particles still: three in four move by less than {bound_A:.2f} Å "
            "against the micrograph as a whole."
        )
    return (
        f"Local motion: three particles in four have paths shorter than {now.activity_local:.2f} Å; "
        f"{now.activity_total:.2f} Å with the correction to the motion of the whole micrograph."
    )


def _score(snapshot: Snapshot, at_best: Tried | None) -> str:
    score = snapshot.now.cv_score
    what = f"Score {score:.5f}".replace("-", "−")
    what += " (agreement of finer detail, which did not align, with the other half map; lower is better): "
    others = [one for one in snapshot.trail if one.hyperparameters != snapshot.now.hyperparameters]
    if at_best is not None and at_best.hyperparameters != snapshot.now.hyperparameters:
        return what + _against(score, at_best, "what the search chose")
    if at_best is not None:
        return what + "this is what the search chose, by the score of all its micrographs."
    if others:
        return what + _against(score, min(others, key=lambda one: one.cv_score), "the best tried before")
    return what + "move a slider to compare."


def _against(score: float, other: Tried, name: str) -> str:
    gap = (score - other.cv_score) / abs(other.cv_score) if other.cv_score else 0.0
    where = f"{name} ({place(other.hyperparameters)})"
    if abs(gap) < NOISE:
        return f"as good as {where}."
    return f"{100 * abs(gap):.1f} % {'worse' if gap > 0 else 'better'} than {where}."


def _neighbours(h: Hyperparameters, position_A: np.ndarray) -> str:
    apart = np.linalg.norm(position_A[:, None] - position_A[None], axis=-1)
    widest = float(apart.max())
    apart[apart < 1] = np.inf  # the particle itself, and others in its place
    nearest = float(np.median(apart.min(1)))
    near, far = (100 * np.exp(-d / h.distance_A) for d in (nearest, widest))
    kind = (
        "only how far neighbours move alike counts, velocity may change at once" if h.balance_deg < 15
        else "almost only smoothness over dose counts, neighbours are nearly free of each other" if h.balance_deg > 80
        else "both smoothness over dose and likeness of neighbours count"
    )  # fmt: skip
    return (
        f"Balance {h.balance_deg:.0f}°: {kind}. Distance {number(h.distance_A)} Å: velocities of neighbours ({number(nearest)} Å "
        f"apart) are {near:.0f} % alike, those of the farthest two ({number(widest)} Å) {far:.0f} %."
    )


def _relion(h: Hyperparameters, dose_per_frame_e_A2: float) -> str:
    s_vel, s_div, s_acc = h.to_relion(dose_per_frame_e_A2)
    return (
        f"In RELION's units, at {number(dose_per_frame_e_A2)} e/Å² per frame: s_vel {sigma(s_vel)}, s_div {number(s_div)}, "
        f"s_acc {sigma(s_acc)} (Å per e/Å², Å, Å per e/Å²). Equal numbers give equal tracks only with equal data terms."
    )


def _unmoved(prior: Mapping[str, Any]) -> str:
    told = "; ".join(f"{name[:1].lower()}{name[1:]} {value}" for name, value in motion_model(prior))
    return f"Not moved by sliders: {told}. A search estimates them."


def sigma(value: float) -> str:
    """Return a standard deviation of RELION's priors; beyond 1000 it holds nothing."""
    return number(value) if value < 1000 else "∞"


def readout(name: str, value: float) -> str:
    """Return a slider's value with its unit."""
    if name in ("s_vel", "s_acc"):
        return f"{sigma(value)} Å per e/Å²"
    units = {"strength": "(e/Å²)/Å²", "distance_A": "Å", "s_div": "Å"}
    return f"{value:.1f}°".replace(".0", "") if name == "balance_deg" else f"{number(value)} {units[name]}"


def _pinned(snapshot: Snapshot, pinned: Tried) -> str:
    other = snapshot.pinned_tracks
    assert other is not None
    apart = snapshot.tracks["shift"].values - other["shift"].values
    rms = float(np.sqrt((apart**2).sum(-1).mean()))
    return (
        f"Pinned: {place(pinned.hyperparameters)}, score {pinned.cv_score:.5f}".replace("-", "−")
        + f", local motion {pinned.activity_local:.2f} Å. The trajectories are {rms:.2f} Å (RMS) from it."
    )
