"""A RELION project (3.1 and later) as a data set: particles, motion-corrected micrographs and references."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from refmotion_nb.data.check import Check, Findings, check_dataset
from refmotion_nb.data.micrographs import MovieTable
from refmotion_nb.data.relion.micrographs import (
    MovieSet,
    Options,
    as_gain,
    from_root,
    read_micrographs,
    read_movies,
    short_names,
)
from refmotion_nb.data.relion.mtf import with_mtf
from refmotion_nb.data.relion.particles import (
    ParticleTable,
    assemble,
    needs_optics,
    off_their_movies,
    read_particles,
    repeated,
    shared_places,
    subtracted,
    unfit,
)  # fmt: skip
from refmotion_nb.data.relion.results import find_root, given_root
from refmotion_nb.data.schema import Dataset, Gain, InputError, Reference, Skipped, as_path, several, wanted
from refmotion_nb.data.star import read_star, table

Paths = str | Path | Sequence[str | Path]


def open_relion(
    particles: Paths,
    micrographs: str | Path,
    references: Reference | Sequence[Reference],
    root: str | Path | None = None,
    *,
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
    """Open a RELION project as a checked data set.

    Parameters
    ----------
    particles
        Refined particles (``run_data.star``); several files belong to as many references, in the same order.
    micrographs
        ``corrected_micrographs.star`` of motion correction, or a later selection of its rows.
    references
        Half maps and mask, one reference for each particle file.
    root
        The folder that the paths in the STAR files start from; else the current folder or the nearest parent folder of
        the given files from which they lead to files.
    gain, dose_per_frame_e_A2, pre_exposure_e_A2
        Replace what motion correction noted.
    eer_fractions
        Into how many fractions to cut each EER movie, instead of those of motion correction, whose motion and dose are
        carried over; it must have seen all of them.
    first_frame, last_frame
        Use these frames of every movie only, counted from 1, both included; ``last_frame`` 0 is the last.
    skip_movies_with_wrong_frame_count
        Keep the movies with the most common number of frames and list the others as skipped, instead of failing.
    mixed_frame_counts
        Keep movies of all frame counts, each on its own dose axis.
    hot_pixel_threshold
        Find the hot pixels of movies that none are listed for: they count more than their neighbourhood by more than is
        expected at this many standard deviations of a normal distribution; 0: never.
    subtract_background
        Subtract the background of each movie, which is estimated from it where none is given.
    skip_unusable_movies
        List movies that are missing or cannot be read as skipped, with the reason, instead of failing.

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
    read = _read(_paths(particles, "particles"), micrographs, _references(references), root, options)
    if not read.dataset.references:
        read.problems.append("no reference given; give the half maps of a refinement")
    return read.opened()


def survey(
    particles: Paths,
    micrographs: str | Path,
    references: Reference | Sequence[Reference] = (),
    root: str | Path | None = None,
    *,
    gain: Gain | str | Path | None = None,
    **options: Any,
) -> Check:
    """Go through a RELION project without stopping at the first problem: what it holds, and all that is wrong with it.

    The arguments are those of ``open_relion``, which looks at the headers of maps only; here they are read.
    """
    asked = Options(as_gain(gain, root), **options)
    read = _read(_paths(particles, "particles"), micrographs, _references(references), root, asked)
    return check_dataset(read.dataset, read.problems, read.notes, title=f"RELION project in {read.root.absolute()}")


def _read(
    particle_paths: list[Path],
    micrographs: str | Path,
    references: list[Any],
    root: str | Path | None,
    options: Options,
) -> Findings:
    root = given_root(root)
    problems, notes = list[str](), list[str]()
    tables = _read_tables([from_root(path, root) for path in particle_paths], problems)
    micrographs, rows = from_root(as_path(micrographs, "micrographs"), root), pd.DataFrame()
    try:
        rows = read_micrographs(micrographs)
    except InputError as error:
        problems.append(str(error))
    metadata = rows["rlnMicrographMetadata"].astype(str).tolist() if len(rows) else []
    # absolute, since movies are also opened by workers that run in another folder
    home = (root if root is not None else find_root([micrographs, *particle_paths], metadata)).absolute()
    tables = [with_mtf(part, home, problems, notes) for part in tables]
    wanted = {str(name) for part in tables for name in pd.unique(pd.Series(part.micrograph))}
    voltages_kV = {one.voltage_kV for part in tables for one in part.optics.values()}
    if len(voltages_kV) == 1 and "rlnVoltage" not in rows.columns:  # nor, perhaps, in the motion STAR files
        rows["rlnVoltage"] = voltages_kV.pop()
    found = read_movies(rows, micrographs, wanted, home, options) if len(rows) else MovieSet()
    particles, optics, skipped = assemble(tables, found.find, found.movies, found.unusable, micrographs)
    dataset = Dataset(
        movies=found.movies, particles=particles, optics=optics, skipped=(*skipped, *found.idle),
        references=tuple(_located(reference, home) for reference in references),
        tables=tuple({name: table(part.blocks, name) for name in part.blocks} for part in tables),
        sources=(*(("particles", part.path) for part in tables), ("micrographs", micrographs)), root=home,
    )  # fmt: skip
    if references and len(references) != len(particle_paths):
        problems.append(f"{len(particle_paths)} particle files for {len(references)} references; give one for each")
    problems += found.problems
    if found.movies or (len(rows) and not found.problems):
        problems += unfit(particles, skipped, tables, "micrographs")
    notes += [
        *found.notes, *off_their_movies(particles, found.movies), *shared_places(particles), *repeated(particles),
        *subtracted(tables),
    ]  # fmt: skip
    return Findings(dataset, home, problems, notes)


def _read_tables(paths: Sequence[Path], problems: list[str]) -> list[ParticleTable]:
    tables = []
    for path in paths:
        try:
            tables.append(read_particles(path))
        except InputError as error:
            problems.append(str(error))
        else:
            problems += tables[-1].problems
    return tables


def _located(reference: Reference, root: Path) -> Reference:
    given = {name: getattr(reference, name) for name in ("half1", "half2", "mask", "postprocess")}
    found = {name: from_root(as_path(path, name), root).absolute() for name, path in given.items() if path is not None}
    return replace(reference, **found)


def _paths(value: Any, what: str) -> list[Path]:
    """Return one or several paths as a list; InputError where something is none."""
    return [as_path(one, what if one is value else f"one of {what}") for one in several(value)]


def _references(value: Any) -> list[Reference]:
    """Return one or several references as a list; InputError where something is none."""
    remedy = "Reference(half1, half2, mask), one for each particle file"
    return [
        wanted(one, Reference, "references" if one is value else "one of references", remedy) for one in several(value)
    ]


def open_movies(
    micrographs: str | Path, root: str | Path | None = None, *, gain: Gain | str | Path | None = None, **options: Any
) -> MovieTable:
    """Open the movies of a ``corrected_micrographs.star``, without particles; what cannot be used is ``skipped``.

    The arguments are those of ``open_relion``.

    Raises
    ------
    InputError
        The table cannot be read, or none of its movies can be used.
    """
    root = given_root(root)
    path = from_root(as_path(micrographs, "micrographs"), root)
    rows = read_micrographs(path)
    metadata = rows["rlnMicrographMetadata"].astype(str).tolist()
    home = (root if root is not None else find_root([path], metadata)).absolute()
    found = read_movies(rows, path, (), home, Options(as_gain(gain, root), **options))
    if not found.movies:
        raise InputError(f"{path}: none of its movies can be used; the first: {found.idle[0].reason}")
    names = rows["rlnMicrographName"].astype(str).tolist()
    reasons = {skip.micrograph: skip.reason for skip in found.idle}
    usable = [i for i, name in enumerate(names) if name not in reasons]
    shorts = short_names(names)
    optics = needs_optics(read_star(path, ("optics",)), path)
    label = "rlnOpticsGroupName" if "rlnOpticsGroupName" in optics.columns else "rlnOpticsGroup"  # as for particles
    called = dict(zip(optics["rlnOpticsGroup"], optics[label].astype(str)))
    return MovieTable(
        found.movies, tuple(usable), tuple(called.get(rows["rlnOpticsGroup"].iloc[i], "") for i in usable), home,
        relion={"optics": optics, "micrographs": rows.drop(columns="rlnVoltage", errors="ignore")},
        sources=(("micrographs", path),),
        skipped=tuple(Skipped(i, shorts[i], reasons[name]) for i, name in enumerate(names) if name in reasons),
    )  # fmt: skip
