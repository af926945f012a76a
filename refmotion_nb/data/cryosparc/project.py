"""A CryoSPARC project as a data set: exposures with their motion, refined particles and volumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from refmotion_nb.data.check import Check, Findings, check_dataset
from refmotion_nb.data.cryosparc.csfile import names, text
from refmotion_nb.data.cryosparc.csfile import table as cs_table
from refmotion_nb.data.cryosparc.exposures import exposure_names, read_exposures, read_movies
from refmotion_nb.data.cryosparc.files import Entry, first_file, read_reference
from refmotion_nb.data.cryosparc.motion import ORIENTATIONS
from refmotion_nb.data.cryosparc.notes import defect_lists, earlier_iterations, of_particles, other_pixel_sizes
from refmotion_nb.data.cryosparc.orientation import best_orientation
from refmotion_nb.data.cryosparc.particles import micrograph_shapes, particle_table, read_particle_rows
from refmotion_nb.data.micrographs import MovieTable, beside_absolute
from refmotion_nb.data.relion.micrographs import MovieSet, Options, as_gain, from_root
from refmotion_nb.data.relion.particles import assemble, off_their_movies, repeated, shared_places, unfit
from refmotion_nb.data.relion.results import find_root, given_root
from refmotion_nb.data.schema import Dataset, Gain, InputError, Reference, Skipped, as_path, several
from refmotion_nb.data.star import table

Entries = str | Path | Sequence[Entry]
Tables = Sequence[tuple[Path, np.ndarray]]
_SAMPLE = 5  # micrographs to find the orientation by


def open_cryosparc(
    exposures: Entries,
    particles: Entries,
    volumes: Entries,
    masks: str | Path | Sequence[str | Path] | None = None,
    root: str | Path | None = None,
    *,
    orientation: str = "auto",
    gain: Gain | str | Path | None = None,
    dose_per_frame_e_A2: float | None = None,
    pre_exposure_e_A2: float | None = None,
    eer_fractions: int | None = None,
    first_frame: int = 1,
    last_frame: int = 0,
    skip_movies_with_wrong_frame_count: bool = False,
    mixed_frame_counts: bool = False,
    hot_pixel_threshold: float = 6.0,
    subtract_background: bool = True,
    skip_unusable_movies: bool = False,
) -> Dataset:
    """Open results of CryoSPARC as a checked data set.

    Parameters
    ----------
    exposures
        ``.cs`` tables or ``.csg`` groups of motion-corrected exposures. What a table lacks is taken from passthrough
        files in its folder; ``[(table, passthrough)]``, a tuple in a list, names those that lie elsewhere.
    particles
        The same of refined particles, one for each reference.
    volumes
        The same of volumes with half maps, one for each reference.
    masks
        A mask for each reference (``.cs``, ``.csg`` or ``.mrc``) instead of the volume's own.
    root
        CryoSPARC's project folder, which paths in the tables start from; else found as the nearest parent folder of
        the tables from which they lead to files.
    orientation
        How the rows of TIFF movies lie: ``cryosparc`` as stored, with everything else in that frame (movies corrected
        by CryoSPARC); ``relion`` reversed, with particle images likewise but locations and motion in the stored
        frame; ``imported`` reversed, with everything in that frame (micrographs made elsewhere); ``auto`` finds out
        by comparing particles with the reference.
    gain, dose_per_frame_e_A2, pre_exposure_e_A2
        Replace what the exposures say.
    eer_fractions, first_frame, last_frame, skip_movies_with_wrong_frame_count, mixed_frame_counts, skip_unusable_movies
        As for ``open_relion``.
    hot_pixel_threshold, subtract_background
        As for ``open_relion``; CryoSPARC lists no hot pixels, and writes backgrounds.

    Raises
    ------
    InputError
        Anything needed is missing, contradictory or not a number; one line for each kind of problem.
    """
    options = Options(
        as_gain(gain, root), dose_per_frame_e_A2, pre_exposure_e_A2, eer_fractions, first_frame, last_frame,
        skip_movies_with_wrong_frame_count, mixed_frame_counts, hot_pixel_threshold, subtract_background,
        skip_unusable_movies,
    )  # fmt: skip
    read = _read(exposures, particles, volumes, masks, root, orientation, options)
    return read.opened()


def survey_cryosparc(
    exposures: Entries,
    particles: Entries,
    volumes: Entries = (),
    masks: str | Path | Sequence[str | Path] | None = None,
    root: str | Path | None = None,
    *,
    orientation: str = "auto",
    gain: Gain | str | Path | None = None,
    **options: Any,
) -> Check:
    """Go through CryoSPARC results without stopping at the first problem; the arguments are ``open_cryosparc``'s."""
    asked = Options(as_gain(gain, root), **options)
    read = _read(exposures, particles, volumes, masks, root, orientation, asked)
    return check_dataset(read.dataset, read.problems, read.notes, title=f"CryoSPARC project in {read.root.absolute()}")


def _read(
    exposures: Entries, particles: Entries, volumes: Entries, masks: Any, root: str | Path | None, orientation: str,
    options: Options,
) -> Findings:  # fmt: skip
    if orientation not in (*ORIENTATIONS, "auto"):
        raise InputError(f"orientation {orientation!r}; give auto, {', '.join(ORIENTATIONS)}")
    problems, notes = list[str](), list[str]()
    root = given_root(root)
    exposures, particles = _entries(exposures, "exposures", root), _entries(particles, "particles", root)
    volumes, masks = _entries(volumes, "volumes", root), _entries(masks, "masks", root)
    exposure_tables = read_exposures(exposures, problems)
    files = [first_file(entry) for entry in (*exposures, *particles, *volumes)]
    home = (root if root is not None else _root(files, exposure_tables)).absolute()
    references, jobs = _references(volumes, masks, home, problems)

    particle_rows = _particle_rows(particles, problems)
    if orientation == "auto":
        orientation = "cryosparc"
        if exposure_tables and particle_rows and references and not problems:
            orientation, why = _oriented(exposure_tables, particle_rows, references, home, options)
            notes.append(why)
    dataset, found = _assembled(exposure_tables, particle_rows, references, home, orientation, options)
    problems += found.problems
    notes += [
        *of_particles(particle_rows, jobs),
        *earlier_iterations([first_file(entry) for entry in (*particles, *volumes)]),
        *other_pixel_sizes(particle_rows, found),
        *defect_lists(exposure_tables),
        *found.notes,
        *off_their_movies(dataset.particles, dataset.movies),
        *shared_places(dataset.particles),
        *repeated(dataset.particles),
    ]
    if (n := len(volumes)) != len(particles) and n:
        problems.append(f"{len(particles)} particle files for {n} volumes; give one for each")
    elif not n:
        problems.append("no volume given; give the volume of a refinement of half sets")
    return Findings(dataset, home, problems, notes)


def _particle_rows(entries: list[Entry], problems: list[str]) -> list[tuple[Path, np.ndarray]]:
    found = []
    for entry in entries:
        try:
            found.append((first_file(entry), read_particle_rows(entry)))
        except InputError as error:
            problems.append(str(error))
    return found


def _assembled(
    exposures: Tables, particles: Tables, references: tuple[Reference, ...], root: Path, name: str, options: Options
) -> tuple[Dataset, MovieSet]:
    """Put particles on movies in one orientation; problems and notes are in the second."""
    orientation = ORIENTATIONS[name]
    shapes = micrograph_shapes(rows for _, rows in particles)
    tables = [particle_table(path, rows, orientation.y_reversed, shapes) for path, rows in particles]
    wanted = {str(uid) for part in tables for uid in pd.unique(pd.Series(part.micrograph))}
    movies, voltages_kV = MovieSet(), {one.voltage_kV for part in tables for one in part.optics.values()}
    if exposures and tables:
        voltage_kV = voltages_kV.pop() if len(voltages_kV) == 1 else 300.0
        movies = read_movies(exposures, wanted, root, options, orientation, shapes, voltage_kV)
    source = " and ".join(str(path) for path, _ in exposures)
    values, optics, skipped = assemble(tables, movies.find, movies.movies, movies.unusable, source)
    dataset = Dataset(
        movies.movies, values, optics, references, (*skipped, *movies.idle),
        tuple({block: table(part.blocks, block) for block in part.blocks} for part in tables),
        tuple(rows for _, rows in particles),
        sources=(*(("particles", path) for path, _ in particles), *(("exposures", path) for path, _ in exposures)),
        orientation=name,
    )  # fmt: skip
    problems = [*(problem for part in tables for problem in part.problems), *movies.problems]
    if movies.movies or (exposures and not movies.problems):
        problems += unfit(values, skipped, tables, "exposures")
    return dataset, replace(movies, problems=tuple(problems))


def _oriented(
    exposures: Tables, particles: Tables, references: tuple[Reference, ...], root: Path, options: Options
) -> tuple[str, str]:
    """Find the orientation by a few micrographs with many particles."""
    path, rows = particles[0]
    uid, count = np.unique(rows["location/micrograph_uid"], return_counts=True)
    listed = np.isin(uid, np.concatenate([table["uid"] for _, table in exposures]))
    if not listed.any():
        return "cryosparc", "orientation cryosparc is taken: no particles are on these exposures to compare"
    some = uid[listed][np.argsort(-count[listed], kind="stable")][:_SAMPLE]
    few_exposures = [(one, table[np.isin(table["uid"], some)]) for one, table in exposures]
    few_particles = [(path, rows[np.isin(rows["location/micrograph_uid"], some)])]
    relaxed = replace(options, skip_movies_with_wrong_frame_count=not options.mixed_frame_counts)
    return best_orientation({
        name: _assembled([one for one in few_exposures if len(one[1])], few_particles, references[:1], root, name, relaxed)[0]
        for name in ORIENTATIONS})  # fmt: skip


def _references(
    volumes: list[Entry], masks: list[Any], root: Path, problems: list[str]
) -> tuple[tuple[Reference, ...], list[str]]:
    references, jobs = [], []
    if masks and len(masks) != len(volumes):
        problems.append(f"{len(masks)} masks for {len(volumes)} volumes; give one for each, or none")
    for volume, mask in zip(volumes, masks if len(masks) == len(volumes) else [None] * len(volumes)):
        try:
            reference, job = read_reference(volume, mask, root)
        except InputError as error:
            problems.append(str(error))
        else:
            references.append(replace(reference, half1=reference.half1.absolute(), half2=reference.half2.absolute(),
                                      mask=reference.mask and reference.mask.absolute()))  # fmt: skip
            jobs.append(job)
    return tuple(references), jobs


def _root(files: list[Path], tables: list[tuple[Path, np.ndarray]]) -> Path:
    sample = [
        name for _, rows in tables for key in ("movie_blob/path", "rigid_motion/path") for name in text(rows[:2], key)
    ]
    return find_root(files, [name for name in sample if not name.startswith(">")])


def _entries(value: Any, what: str, root: Path | None) -> list[Entry]:
    """Return one or several tables, each a path or a tuple of them, as a list; InputError where something is none.

    As for RELION's, paths may start at the root, too.
    """
    if value is None:
        return []
    entries = list[Entry]()
    for one in several(value):
        said = what if one is value else f"one of {what}"
        if isinstance(one, tuple | list) and one:
            entries.append(tuple(from_root(as_path(path, said), root) for path in one))
        else:
            entries.append(from_root(as_path(one, said), root))
    return entries


def open_exposures(
    exposures: Entries,
    root: str | Path | None = None,
    *,
    orientation: str = "cryosparc",
    gain: Gain | str | Path | None = None,
    **options: Any,
) -> MovieTable:
    """Open the movies of motion-corrected exposures, without particles; what cannot be used is ``skipped``.

    The arguments are those of ``open_cryosparc``; ``orientation`` is ``cryosparc`` or ``relion`` (rows as stored, for so
    lie locations and motion in both), or ``imported`` (rows reversed).

    Raises
    ------
    InputError
        A table cannot be read, or none of its movies can be used.
    """
    if orientation not in ORIENTATIONS:
        raise InputError(f"orientation {orientation!r}; without particles, give {', '.join(ORIENTATIONS)}")
    problems, root = list[str](), given_root(root)
    tables = read_exposures(_entries(exposures, "exposures", root), problems)
    if problems or not tables:
        raise InputError("\n".join(problems) or "no exposures given; give those of Patch Motion Correction")
    home = (root if root is not None else _root([path for path, _ in tables], list(tables))).absolute()
    tables = [(path, beside_absolute(rows, path.parent)) for path, rows in tables]
    shapes = {uid: shape for _, rows in tables for uid, shape in _micrograph_blobs(rows).items()}
    # RELION's rows are those of particle images only: micrographs lie as the locations that the exposures go with
    frame = ORIENTATIONS["cryosparc" if orientation == "relion" else orientation]
    found = read_movies(tables, (), home, Options(as_gain(gain, root), **options), frame, shapes)
    if not found.movies:
        raise InputError(f"{tables[0][0]}: none of its movies can be used; the first: {found.idle[0].reason}")
    common = [name for name in names(tables[0][1]) if all(name in names(rows) for _, rows in tables)]
    joined = cs_table({name: np.concatenate([rows[name] for _, rows in tables]) for name in common})
    reasons = {skip.micrograph: skip.reason for skip in found.idle}
    listed = exposure_names(text(joined, "movie_blob/path"))
    usable = [i for i, name in enumerate(listed) if name not in reasons]
    group = "mscope_params/exp_group_id"
    groups = tuple(f"exposureGroup{int(joined[group][i])}" if group in common else "" for i in usable)
    return MovieTable(
        found.movies, tuple(usable), groups, home, cryosparc=joined, orientation=orientation,
        sources=tuple(("exposures", path) for path, _ in tables),
        skipped=tuple(Skipped(i, name, reasons[name]) for i, name in enumerate(listed) if name in reasons),
    )  # fmt: skip


def _micrograph_blobs(rows: np.ndarray) -> dict[str, tuple[int, int]]:
    """Height and width (px) of the micrographs that the exposures list, by uid."""
    if "micrograph_blob/shape" not in names(rows):
        return {}
    return {str(uid): (int(y), int(x)) for uid, (y, x) in zip(rows["uid"], rows["micrograph_blob/shape"])}
