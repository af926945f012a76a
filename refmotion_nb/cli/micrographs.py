"""``refmotion micrographs``: dose-weighted micrographs from movies."""

from __future__ import annotations

import argparse
import shlex
import time
from dataclasses import replace
from typing import Any

import xarray as xr

from refmotion_nb.cli.console import Console
from refmotion_nb.cli.inputs import add_input_options, entry, input_settings, is_cryosparc, telling_of_files
from refmotion_nb.cli.options import add_dose_weights_options, add_parameter, declared, path
from refmotion_nb.data.cryosparc.project import open_exposures
from refmotion_nb.data.files import writable
from refmotion_nb.data.maps import map_header
from refmotion_nb.data.micrographs import MovieTable
from refmotion_nb.data.reasons import told_once
from refmotion_nb.data.relion.micrographs import from_root
from refmotion_nb.data.relion.project import open_movies
from refmotion_nb.data.schema import InputError
from refmotion_nb.data.store import ResultStore
from refmotion_nb.stages.describe import of_other_versions
from refmotion_nb.stages.execute import Execution
from refmotion_nb.stages.micrographs import MicrographCorrection
from refmotion_nb.stages.particle_motion import ParticleMotion
from refmotion_nb.stages.reuse import read_weights
from refmotion_nb.views.report import write_report

NOT_NEEDED = ("particles", "half2", "mask", "fsc", "volume")
EXECUTION = ("threads", "device", "gpus", "gpu_oversubscription_GB", "workers", "dask")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those of the input, of which particles are not required here, and of what is done with it."""
    add_input_options(parser, required=False)
    parser.add_argument("--out", type=path, required=True, help="output folder; the same folder again resumes")
    add_dose_weights_options(
        parser,
        "dose_weights.nc of a run, RELION's bfactors.star (with --half1 of its reference) or CryoSPARC's "
        "refm_empirical_dw.npy; else the standard curve",
    )
    parser.add_argument(
        "--tracks", type=path, help="output folder of a run: micrographs move as their particles did, where it has some"
    )
    group = parser.add_argument_group("parameters")
    for name, parameter in declared(MicrographCorrection).items():
        add_parameter(group, name, parameter)
    for name in EXECUTION:
        add_parameter(group, name, Execution.param[name])


def run(options: argparse.Namespace) -> int:
    """Write the micrographs of all movies; the exit code is 0 only if all were written."""
    stage, execution = MicrographCorrection.of(vars(options)), Execution.of(vars(options))
    execution.check()
    command = shlex.join(["refmotion", *options.arguments])
    moved = ParticleMotion.of_run(options.tracks) if options.tracks else None
    with telling_of_files():
        data, moved, about = _open_movies(options, moved)
    dose = _dose_weights(options, data)
    writable(options.out)
    with Console(options.out / "run.log") as console:
        console.say(command, log_only=True)
        device = execution.choose_device()
        console.say(f"running on {device.about(execution.n_threads)}")
        if unused := [f"--{name}" for name in NOT_NEEDED if getattr(options, name)]:
            console.say(f"not needed for micrographs: {', '.join(unused)}; all movies of the table are processed")
        for line in (*about, *_without_effect(options, data)):
            console.say(line)
        start = time.perf_counter()
        with execution.opened() as workers:
            if workers:
                console.say(f"work is done by {workers.about}{device.of_workers}")
            table = stage.run(
                data, dose, options.out, console, data.root, execution.threads, moved, command, workers, device
            )
        left = ~table["written"].values
        for line in told_once(zip(*(table[name].values[left].tolist() for name in ("micrograph", "reason")))):
            console.say(f"warning: {line}")
        for warning in of_other_versions(ResultStore(options.out / "results.zarr").attrs["micrographs"]):
            console.say(f"warning: {warning}")
        write_report(options.out / "results.zarr", options.out / "report.html")
        complete = bool(table["written"].all())
        console.say(_summary(options, table, time.perf_counter() - start))
        if not complete:
            console.say("refmotion: not everything was written; the reasons stand above")
    return 0 if complete else 1


def _without_effect(options: argparse.Namespace, data: MovieTable) -> list[str]:
    """Name options of reading that were given and change nothing here, in one line with the reasons."""
    found = []
    if options.skip_movies_with_wrong_frame_count:
        found.append("--skip-movies-with-wrong-frame-count (each movie is weighted by its own dose)")
    if options.skip_unusable_movies:
        found.append("--skip-unusable-movies (movies that cannot be used are listed in any case)")
    if options.mixed_frame_counts and not options.last_frame:  # else it lets movies end before that
        found.append("--mixed-frame-counts (each movie is weighted by its own dose)")
    if options.subtract_background and not any(movie.background for movie in data.movies):
        found.append("--subtract-background (only backgrounds that CryoSPARC has measured are)")
    return [f"without effect on micrographs: {', '.join(found)}"] if found else []


def _summary(options: argparse.Namespace, table: xr.Dataset, seconds: float) -> str:
    rows = {
        "micrographs": f"{seconds:8.1f} s",
        "dose weights": options.dose_weights or "the standard curve (Grant & Grigorieff 2015)",
        "micrographs written": f"{int(table['written'].sum())} of {table.sizes['row']}",
    }
    return "\n".join(["", *(f"  {what:28s}{value}" for what, value in rows.items()), f"  results in {options.out}"])


def _dose_weights(options: argparse.Namespace, data: MovieTable) -> xr.Dataset | None:
    """Read the dose weights given, None for the standard curve; RELION's come without frequencies."""
    if options.dose_weights is None:
        return None
    box, pixel_A = 0, 1.0
    if options.dose_weights.suffix == ".star":
        if not options.half1:
            raise InputError(f"{options.dose_weights} does not say at which frequencies; give --half1 of its reference")
        (box, _, _), pixel_A = map_header(from_root(options.half1[0], options.root))
    return read_weights(options.dose_weights, data.movies, box, pixel_A, options.dose_weights_last_frequency_per_A)


def _open_movies(
    options: argparse.Namespace, moved: ParticleMotion | None
) -> tuple[MovieTable, ParticleMotion | None, list[str]]:
    """Open the movies and bring the motion of particles to their orientation; the last is what to say about it."""
    settings: dict[str, Any] = input_settings(options)
    settings.pop("skip_movies_with_wrong_frame_count")  # each movie has weights of its own
    not_needed = dict.fromkeys(("half1", "half2", "fsc", "volume"))
    if not is_cryosparc(argparse.Namespace(**{**vars(options), **not_needed})):
        return open_movies(options.micrographs, **settings), moved, []
    orientation, why = _orientation(options, moved)
    tables = [entry(path, options.root) for path in options.exposures]
    data = open_exposures(tables, orientation=orientation, **settings)
    return data, moved and replace(moved, orientation=orientation), [why]


def _orientation(options: argparse.Namespace, moved: ParticleMotion | None) -> tuple[str, str]:
    """Return the orientation of CryoSPARC's movies and where it is from: a run found it out, here nothing can be compared."""
    given = None if options.orientation == "auto" else options.orientation
    if moved is None:
        if given:
            return given, f"orientation {given}: as given"
        return "cryosparc", (
            "orientation cryosparc is taken: there are no particles to compare; give --orientation imported where the "
            "exposures are micrographs of another program, or --tracks of a run, which found it out"
        )
    if moved.program == "RELION":
        raise InputError(f"{options.tracks} is of a run on RELION's input; give its --micrographs, or --tracks of a run "
                         "on these exposures")  # fmt: skip
    if given and moved.orientation not in ("", given):
        raise InputError(f"--orientation {given}, but {options.tracks} is of a run with orientation {moved.orientation}; "
                         "leave --orientation out")  # fmt: skip
    if not (given or moved.orientation):
        raise InputError(f"{options.tracks} does not record the orientation of its run; give it as --orientation")
    return (given, f"orientation {given}: as given") if given else (
        moved.orientation, f"orientation {moved.orientation}: as of the run in {options.tracks}"
    )  # fmt: skip
