"""How a search stands, and that in words: what the Search tab shows, without widgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from refmotion_nb.numerics.prior import Hyperparameters
from refmotion_nb.numerics.rays import ray_table
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.runs import Run, Work
from refmotion_nb.stages.search import HyperparameterSearch
from refmotion_nb.views.app.ending import why
from refmotion_nb.views.app.header import duration_left
from refmotion_nb.views.app.live_rays import Rays
from refmotion_nb.views.svg import number


@dataclass(frozen=True)
class Standing:
    """Where the search stands: the run to look at, whether it goes on, what it has found so far."""

    state: str  # none, coming, running, paused, done, cancelled or failed
    run: Run | None = None  # of the search itself, or (coming, failed) of the job that begins with one
    table: xr.Dataset | None = None  # rays so far, or the result
    error: str = ""

    @property
    def going(self) -> bool:
        """Whether more will come."""
        return self.state in ("coming", "running", "paused")

    @property
    def has_rays(self) -> bool:
        """Whether the table is of a search; given hyperparameters have no rays."""
        return self.table is not None and bool(self.table.sizes.get("ray", 0))


def standing(engine: Any) -> Standing:
    """Return where the search of the present data stands, whoever started it."""
    run, jobs = engine.last(HyperparameterSearch), [one for one in engine.runs if isinstance(one.stage, Job)]
    job = jobs[-1] if jobs else None
    if job is not None and job.inputs[:1] == ("hyperparameters",) and _after(engine, job, run):
        if not job.snapshot.ended:
            return Standing("paused" if job.state == "paused" else "coming", job)
        if job.state == "failed":
            return Standing("failed", job, None if run is not None else engine.result("search"), why(job))
    if run is None:
        table = engine.result("search")
        return Standing("none" if table is None else "done", None, table)
    if run.state == "done":
        return Standing("done", run, run.result)
    if run.snapshot.ended:
        return Standing(run.state, run, run.snapshot.so_far, why(run))
    return Standing("paused" if run.state == "paused" else "running", run, run.snapshot.so_far)


def _after(engine: Any, job: Run, run: Run | None) -> bool:
    runs = list(engine.runs)
    return run is None or runs.index(job) > runs.index(run)


def rays_of(now: Standing, settings: dict[str, Any]) -> Rays:
    """Return the rays that are walked, or would be with ``settings``."""
    if now.has_rays:
        assert now.table is not None
        most = float(now.table.attrs.get("max_strength", np.nanmax(now.table["strength"].values)))
        return Rays(now.table["balance"].values, now.table["distance"].values, most)
    mine = now.run.settings if now.run is not None and "thoroughness" in now.run.settings else settings
    stage = HyperparameterSearch(**{k: v for k, v in mine.items() if k in ("thoroughness", "max_strength")})
    return Rays(*ray_table(stage.thoroughness), float(stage.max_strength))


def progress(now: Standing) -> tuple[int, int, str]:
    """Return units done, units in all (0 if unknown) and what goes on, in words, with the time left."""
    assert now.run is not None
    works = now.run.snapshot.works
    if now.run.stopping:
        return 0, 0, "Stopping …"
    if not works:
        return 0, 0, "Starting …"
    work = works[-1]
    text = _step(now, work)
    left = work.seconds_left
    if now.state == "paused":
        return work.done, work.total, f"Paused. {text}"
    return work.done, work.total, text if left is None else f"{text}; {duration_left(left)}"


def _step(now: Standing, work: Work) -> str:
    facts = now.run.snapshot.facts if now.run else {}
    if work.what == "reading movies":
        return f"1 of 3: reading movies, {work.done} of {work.total}"
    if work.what == "searching hyperparameters":
        text = f"2 of 3: searching, step {work.done} of at most {work.total}"
        return f"{text}, {facts['rays']} rays still walk" if work.done and "rays" in facts else text
    if work.what == "refining the prior":
        return f"3 of 3: refining the prior on the best rays, {work.done} of {work.total}"
    return f"{work.what[:1].upper()}{work.what[1:]}, {work.done} of {work.total}"


def best_tiles(table: xr.Dataset, dose_per_frame_e_A2: float | None, going: bool) -> list[tuple[str, str]]:
    """Return the best so far, or the choice: its numbers and what they are."""
    attrs = table.attrs
    h = Hyperparameters(float(attrs["strength"]), float(attrs["balance_deg"]), float(attrs["distance_A"]))
    tiles = [
        (number(h.strength), "best strength so far" if going else "total strength"),
        (f"{number(h.balance_deg)}°", "balance"),
        (f"{number(h.distance_A, 4)} Å", "correlation distance"),
    ]
    if np.isfinite(score := float(attrs.get("cv_score", np.nan))):
        tiles.append((f"{score:.5f}".replace("-", "−"), "score (lower is better)"))
    if np.isfinite(local := float(attrs.get("activity_local", np.nan))):
        tiles.append((f"{number(local)} Å", "local activity"))
    if dose_per_frame_e_A2:
        same = " · ".join(number(value) for value in h.to_relion(dose_per_frame_e_A2))
        tiles.append((same, "RELION's s_vel · s_div · s_acc"))
    return tiles


def ended_counts(table: xr.Dataset, going: bool) -> str:
    """Return in words how the rays stand; ``going`` is whether they will walk on."""
    retired = int(table["retired"].values.sum())
    at_most = int(sum(str(one) == "maximum strength reached" for one in table["reason"].values))
    walking = table.sizes["ray"] - sum(bool(str(one)) for one in table["reason"].values)
    said = [
        f"{n} {what}"
        for n, what in (
            (walking, "still walking" if going else "had not ended"), (retired, "retired: no motion left"),
            (at_most, "at the maximum strength"),
        )
        if n
    ]  # fmt: skip
    return f"Rays: {', '.join(said)}."


def searched_already(now: Standing, settings: dict[str, Any]) -> bool:
    """Return whether the finished search was made with the very settings."""
    if now.state != "done" or now.run is None or not now.has_rays:
        return False
    stage = HyperparameterSearch(**{k: v for k, v in settings.items() if k in HyperparameterSearch.param})
    return stage.settings() == now.run.settings
