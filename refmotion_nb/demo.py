"""The demonstration: simulate a small set of a real protein, run the whole job on it, say what was gained."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from refmotion_nb.data.relion.motion import initial_displacement
from refmotion_nb.data.relion.results import read_tracks
from refmotion_nb.data.schema import Dataset
from refmotion_nb.data.store import ResultStore
from refmotion_nb.data.synthetic.simulate import Simulation, SimulationSettings, simulate, trajectory_error_A
from refmotion_nb.stages.base import Reporter
from refmotion_nb.stages.job import Job
from refmotion_nb.stages.validation import COMBINATIONS
from refmotion_nb.views.app.opening import Opening
from refmotion_nb.views.report import write_report


def run_demo(
    out: Path, reporter: Reporter, device: str = "auto", settings: SimulationSettings | None = None, command: str = ""
) -> str:
    """Simulate into ``out/simulated``, correct into ``out``, write the report and return a table of what was gained.

    ``command`` is what the report says to type to repeat it.
    """
    start = time.perf_counter()
    simulation = simulate(settings or SimulationSettings.demo(), out / "simulated", reporter)
    simulated = time.perf_counter() - start
    data = simulation.open()
    job = Job(
        data, out, {} if device == "auto" else {"device": device}, image_root=out, command=command,
        combinations=(COMBINATIONS[0], COMBINATIONS[-1]),
    )  # fmt: skip
    job.seconds["simulation"] = simulated
    job.run("validate", reporter)
    ResultStore(out / "results.zarr").update_attrs(opening=_opening(simulation).record())
    errors = _trajectory_errors_A(job, simulation, data)
    what = f"{simulation.n_particles} particles of mouse apoferritin (PDB 7A4M) on {len(data.movies)} simulated movies"
    write_report(
        out / "results.zarr", out / "report.html",
        remark=f"{what}, so that the true motion is known: rigid motion is off by {errors[0]:.2f} Å, the trajectories found "
        f"by {errors[1]:.2f} Å.",
    )  # fmt: skip
    return _table(job, what, *errors)


def _opening(simulation: Simulation) -> Opening:
    """Return how the app opens the data, to go on with the results."""
    home = replace(simulation, folder=simulation.folder.absolute())
    return Opening(
        "open_relion",
        {
            "particles": list(home.particle_tables), "micrographs": home.micrographs, "references": list(home.references),
            "root": home.folder,
        },
    )  # fmt: skip


def _trajectory_errors_A(job: Job, simulation: Simulation, data: Dataset) -> tuple[float, float]:
    """Return how far rigid motion and the trajectories found are from the true ones (RMS), Å."""
    truth = simulation.truth()
    rigid, ours = [], []
    for movie, particles in data.micrographs():
        true = truth[f"{movie.micrograph}_total"]
        initial = initial_displacement(movie, particles["coordinate"].values)
        tracks = read_tracks(job.out / "Tracks" / f"{movie.micrograph}_tracks.star")
        rigid.append(trajectory_error_A(initial, true, truth["dose_mid"]))
        ours.append(trajectory_error_A(tracks, true, truth["dose_mid"]))
    first, second = (float(np.sqrt(np.mean(np.square(errors)))) for errors in (rigid, ours))
    return first, second


def _table(job: Job, what: str, rigid_A: float, ours_A: float) -> str:
    fsc = job.validation
    assert fsc is not None
    before, after = (float(fsc["resolution_0143"].sel(combination=c)[0]) for c in ("rigid", "both"))
    rows = [
        "", what, "",
        f"{'':28s}{'rigid':>10s}{'corrected':>12s}",
        f"{'trajectory error':28s}{rigid_A:8.2f} Å{ours_A:10.2f} Å",
        f"{'FSC 0.143':28s}{before:8.2f} Å{after:10.2f} Å", "",
    ]  # fmt: skip
    rows += [f"{what:28s}{seconds:8.1f} s" for what, seconds in job.seconds.items()]
    show = f"refmotion app {shlex.quote(str(job.out))} --show"
    return "\n".join([*rows, "", f"report: {job.out / 'report.html'}", f"in the app: {show}"])
