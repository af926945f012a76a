"""What a job works on and with, as plain values for the record: inputs, what was skipped, default settings, versions."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from refmotion_nb import __version__
from refmotion_nb.data.check import left_out, movies_left_out
from refmotion_nb.data.jsonfiles import plain
from refmotion_nb.data.micrographs import MovieTable
from refmotion_nb.data.schema import Dataset, Movie
from refmotion_nb.stages.base import Stage

PROGRAMS = ("numpy", "scipy", "numba", "xarray")  # that numbers depend on
NAMED = 5  # micrographs named for each reason


def describe_inputs(data: Dataset, reused: Mapping[str, Path | None] | None = None) -> dict[str, Any]:
    """Return the files, numbers and skipped particles of a dataset; ``reused`` are files of other runs."""
    references = list(enumerate(data.references, 1))
    maps = [
        (f"{what}{f', reference {i}' * (len(references) > 1)}", path)
        for i, r in references
        for what, path in (("half map 1", r.half1), ("half map 2", r.half2), ("mask", r.mask), ("FSC", r.postprocess))
    ]
    gains = [("gain", path) for path in sorted({movie.gain.path for movie in data.movies if movie.gain})]
    given = [*data.sources, *maps, *gains, *(reused or {}).items()]
    return {
        "program": "CryoSPARC" if data.cs_rows else "RELION",
        "orientation": data.orientation,
        "files": [[what, str(path)] for what, path in given if path is not None],
        "movies": len(data.movies),
        "particles": int(data.particles.sizes["particle"]),
        "exposures": _exposures(data.movies),
        "half_sets": _half_sets(data),
        "optics_groups": _optics_groups(data),
        "skipped": _skipped(data),
    }


def files_read(data: Dataset) -> list[tuple[str, Path]]:
    """Return all files that a dataset is read from, with what they are, in words."""
    named = [(str(what), Path(path)) for what, path in describe_inputs(data)["files"]]
    return [*named, *(("movie", movie.path) for movie in data.movies)]


REUSED = ("hyperparameters", "dose weights")  # among the files: of other runs


def describes(inputs: Mapping[str, Any], data: Dataset) -> bool:
    """Return whether ``inputs``, the record of a run, is what ``describe_inputs`` says of ``data``.

    What was skipped and files of other runs do not count; relative paths are of a run that was started anywhere.
    """
    mine = plain(describe_inputs(data))
    if any(inputs.get(name) != value for name, value in mine.items() if name not in ("files", "skipped")):
        return False
    theirs = [(what, path) for what, path in inputs.get("files", []) if what not in REUSED]
    return len(theirs) == len(mine["files"]) and all(
        what == my_what and _same_file(Path(path), Path(my_path))
        for (what, path), (my_what, my_path) in zip(theirs, mine["files"])
    )


def _same_file(recorded: Path, path: Path) -> bool:
    if recorded.is_absolute():
        return recorded == path or recorded.resolve() == path.resolve()
    parts = [part for part in recorded.parts if part != ".."]
    return list(path.parts[-len(parts) :]) == parts


def _exposures(movies: Iterable[Movie]) -> list[dict[str, Any]]:
    """Return how many movies were exposed alike, the most common first."""
    counts = Counter(
        (m.n_frames, m.first_frame, m.dose_per_frame_e_A2, m.pre_exposure_e_A2, m.pixel_size_A, m.width, m.height, m.voltage_kV)
        for m in movies
    )  # fmt: skip
    names = ("frames", "first_frame", "dose_per_frame_e_A2", "pre_exposure_e_A2", "pixel_size_A", "width_px", "height_px",
             "voltage_kV")  # fmt: skip
    return [{"movies": n, **dict(zip(names, exposure))} for exposure, n in counts.most_common()]


def _half_sets(data: Dataset) -> list[list[int]]:
    """Return rows of reference (from 1), particles in half set 1 and in half set 2."""
    reference, half = data.particles["reference"].values, data.particles["half"].values
    return [
        [i + 1, *(int(np.count_nonzero((reference == i) & (half == h))) for h in (1, 2))]
        for i in range(len(data.references))
    ]


def _optics_groups(data: Dataset) -> list[dict[str, Any]]:
    counts = Counter(data.particles["optics"].values.tolist())
    return [
        {"name": o.name, "particles": counts[i], "pixel_size_A": o.pixel_size_A, "box_size": o.box_size}
        for i, o in enumerate(data.optics)
    ]


def _skipped(data: Dataset) -> list[dict[str, Any]]:
    """Return for each reason how many particles and micrographs were left out, and the first of these by name."""
    of_particles = [(reason, names, len(names)) for reason, names in left_out(data).items()]
    without = [(reason, names, 0) for reason, names in movies_left_out(data).items()]
    return [
        {
            "reason": reason,
            "particles": n,
            "n_micrographs": len({*names}),
            "micrographs": [*dict.fromkeys(names)][:NAMED],
        }
        for reason, names, n in (*of_particles, *without)
    ]


def record(
    stages: Iterable[type[Stage]],
    settings: Mapping[str, Any],
    inputs: Mapping[str, Any],
    command: str,
    before: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what a result store notes of how its results came about: version, command, settings, inputs.

    ``before`` is what stood there: finished results are kept, and may be of the versions it names.
    """
    earlier = [*before.get("earlier_versions", []), before.get("version", __version__)]
    return {
        "version": __version__,
        "earlier_versions": [one for one in dict.fromkeys(earlier) if one != __version__],
        "command": command,
        "settings": {name: value for name, value in settings.items() if value is not None},
        "defaults": defaults(stages),
        "inputs": dict(inputs),
        "versions": versions(),
    }


def of_other_versions(noted: Mapping[str, Any]) -> list[str]:
    """Return in one line, if it is so, that some results of a store may be of other versions of this package."""
    if not (earlier := noted["earlier_versions"]):
        return []
    return [f"what version {', '.join(earlier)} of refmotion_nb finished in this folder is kept as far as it holds, this is "
            f"{noted['version']}; for results of one version give another folder"]  # fmt: skip


def describe_movies(
    data: MovieTable, tracks: Path | None = None, dose_weights: str | Path | None = None
) -> dict[str, Any]:
    """Return the files and numbers of movies without particles, and which files of other runs they take."""
    gains = [("gain", path) for path in sorted({movie.gain.path for movie in data.movies if movie.gain})]
    given = [*data.sources, *gains, ("tracks", tracks), ("dose weights", dose_weights)]
    return {
        "program": "CryoSPARC" if data.relion is None else "RELION",
        "orientation": data.orientation,
        "files": [[what, str(path)] for what, path in given if path is not None],
        "movies": len(data.movies),
        "exposures": _exposures(data.movies),
        "skipped": [[skip.micrograph, skip.reason] for skip in data.skipped],
    }


def defaults(stages: Iterable[type[Stage]]) -> dict[str, Any]:
    """Return the default of every parameter of the stages."""
    return {name: stage.param[name].default for stage in stages for name in stage.param if name != "name"}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on, and the machine's type."""
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in PROGRAMS},
        "machine": f"{platform.system()} {platform.machine()}",
    }
