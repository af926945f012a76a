"""The micrographs of a RELION project: which movie each particle is on, and which movies can be used."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from refmotion_nb.data.reasons import alike, listed
from refmotion_nb.data.relion.motion import read_motion
from refmotion_nb.data.relion.particles import needs_optics
from refmotion_nb.data.schema import Gain, InputError, Movie, Skipped, as_path, in_words
from refmotion_nb.data.star import read_star, table

_JOB_PREFIX = re.compile(r"^(?:.*?/)?[^/]+/job\d{3,}/")
MOST_DOSE_E_A2 = 2000.0  # beyond, the signal left is less than numbers hold at any frequency
_GIVE_ROOT = "give root, the folder that paths in the tables start from"
_OR_SKIP = "; or leave them out by skip_unusable_movies"


@dataclass(frozen=True)
class Options:
    """What may replace or relax what the files say."""

    gain: Gain | None = None
    dose_per_frame_e_A2: float | None = None
    pre_exposure_e_A2: float | None = None
    eer_fractions: int | None = None
    first_frame: int = 1
    last_frame: int = 0
    skip_movies_with_wrong_frame_count: bool = False
    mixed_frame_counts: bool = False
    hot_pixel_threshold: float = 6.0
    subtract_background: bool = True
    skip_unusable_movies: bool = False

    def __post_init__(self) -> None:
        whole, any_ = ((int, np.integer), "a whole number"), ((int, float, np.number), "a number")
        for name, low, (kind, what) in (("eer_fractions", 1, whole), ("first_frame", 1, whole), ("last_frame", 0, whole),
                                        ("hot_pixel_threshold", 0, any_), ("pre_exposure_e_A2", 0, any_)):  # fmt: skip
            value = getattr(self, name)
            if value is None and getattr(type(self), name) is None:
                continue
            if not isinstance(value, kind):
                raise InputError(f"{name} is {in_words(value)}; give {what}")
            if not (math.isfinite(value) and value >= low):
                raise InputError(f"{name} is {value}; give {low} or more")
        dose = self.dose_per_frame_e_A2
        if dose is not None and not isinstance(dose, int | float | np.number):
            raise InputError(f"dose_per_frame_e_A2 is {in_words(dose)}; give a positive dose")
        if dose is not None and not 0 < dose < math.inf:
            raise InputError(f"dose_per_frame_e_A2 is {dose}; give a positive dose")
        if 0 < self.last_frame < self.first_frame:
            raise InputError(f"last_frame {self.last_frame} comes before first_frame {self.first_frame}; swap them")
        if self.skip_movies_with_wrong_frame_count and self.mixed_frame_counts:
            raise InputError(
                "skip_movies_with_wrong_frame_count leaves movies out that mixed_frame_counts keeps; give one"
            )


@dataclass(frozen=True)
class MovieSet:
    """Movies that can be used, how to find them, and what is wrong with the others."""

    movies: tuple[Movie, ...] = ()
    find: Mapping[str, int] = field(default_factory=dict)  # name as particles write it -> index of movies
    unusable: Mapping[str, str] = field(default_factory=dict)  # such a name -> why its movie cannot be used
    idle: tuple[Skipped, ...] = ()  # movies without particles that cannot be used
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_micrographs(path: str | Path) -> pd.DataFrame:
    """Read the micrograph table, with the number of their optics groups and the voltage (``rlnVoltage``) that these give.

    Raises
    ------
    InputError
        No RELION 3.1 micrograph file, empty, without the motion STAR files' names, or optics groups are not as they should.
    """
    blocks = read_star(path, ("optics", "micrographs", "global", "global_shift"))
    rows, optics = table(blocks, "micrographs"), needs_optics(blocks, path)
    if rows.empty:
        raise InputError(f"{path} lists no micrographs; give motion correction's corrected_micrographs.star")
    if missing := [label for label in ("rlnMicrographName", "rlnMicrographMetadata") if label not in rows.columns]:
        raise InputError(f"{path} lacks {', '.join(missing)}; give corrected_micrographs.star of RELION's motion "
                         "correction, which names the motion of each micrograph")  # fmt: skip
    if (nameless := np.flatnonzero(rows["rlnMicrographName"].astype(str) == "")).size:
        raise InputError(f"{path}: row {nameless[0] + 1} of data_micrographs has no rlnMicrographName; take it out")
    rows = rows.drop_duplicates(["rlnMicrographName", "rlnMicrographMetadata"])
    if (again := rows["rlnMicrographName"].duplicated()).any():
        raise InputError(
            f"{path} lists {rows['rlnMicrographName'][again].iloc[0]} twice, with different motion; take one out"
        )
    rows = rows.reset_index(drop=True)
    if "rlnOpticsGroup" not in rows.columns:
        if len(optics) > 1:
            raise InputError(f"{path} lacks rlnOpticsGroup in data_micrographs; write the file again from RELION")
        rows["rlnOpticsGroup"] = optics["rlnOpticsGroup"].iloc[0]
    if "rlnVoltage" in optics.columns:
        voltage = pd.to_numeric(optics["rlnVoltage"], errors="coerce")
        if not (np.isfinite(voltage) & (voltage > 0)).all():
            raise InputError(f"{path}: rlnVoltage must be above 0 in every row of data_optics; correct it")
        rows["rlnVoltage"] = rows["rlnOpticsGroup"].map(dict(zip(optics["rlnOpticsGroup"], voltage)))
        if (lost := np.flatnonzero(rows["rlnVoltage"].isna())).size:
            raise InputError(f"{path}: no such group in data_optics for {rows['rlnMicrographName'].iloc[lost[0]]}; write the "
                             "file again from RELION")  # fmt: skip
    return rows


def read_movies(
    rows: pd.DataFrame, source: str | Path, wanted: Collection[str], root: Path, options: Options
) -> MovieSet:
    """Read the motion of all listed micrographs and check their movies; ``wanted`` are those that particles name.

    A micrograph without particles whose files are missing is only left out; one with particles is a problem, unless such may be
    skipped.
    """
    names = rows["rlnMicrographName"].astype(str).tolist()
    read, failed = _read_motion(rows, short_names(names), root, options)
    return usable_movies(read, failed, names, match_micrographs(wanted, names), wanted, source, root, options)


def usable_movies(
    read: Mapping[int, Movie], failed: Mapping[int, tuple[Path, str]], names: Sequence[str],
    listed_as: Mapping[str, int], wanted: Collection[str], source: str | Path, root: Path, options: Options,
) -> MovieSet:  # fmt: skip
    """Check movies that were ``read``, by row of the micrograph table, and sort out those that cannot be used.

    ``failed`` are file and reason of rows without a movie, ``names`` those of all rows, and ``listed_as`` leads from
    the ``wanted`` names, as particles write them, to rows.
    """
    needed = set(listed_as.values())
    out = _without_last_frame(read, options)
    read, unlike = _as_asked({i: movie for i, movie in read.items() if i not in out}, options)
    failed = {**failed, **unlike}
    absent = [i for i, movie in read.items() if not movie.path.is_file()]
    problems = [] if options.skip_unusable_movies else _unusable(failed, read, absent, needed, root)
    out |= {i: message for i, (_, message) in failed.items()}
    out |= {
        i: f"its movie {read[i].path} was not found" for i in absent if options.skip_unusable_movies or i not in needed
    }
    problems += _missing_extras((movie for i, movie in read.items() if i in needed and i not in out), root)
    out |= _wrong_frame_count(read, needed, options, problems)
    out |= _too_short({i: read[i] for i in needed - set(out) - set(absent) if i in read}, options, problems, root)
    usable = [i for i in read if i not in out]
    if options.skip_unusable_movies and needed and not needed & set(usable):
        problems.append(f"none of {len(needed)} movies can be used; the first: {out[min(needed)]}")
    idle = [Skipped(-1, names[i], reason) for i, reason in out.items() if i not in needed]
    notes = []
    if idle:
        some = listed([skip.micrograph for skip in idle])
        notes.append(f"{len(idle)} micrographs without particles cannot be used: {some}")
    if unlisted := sorted(set(wanted) - set(listed_as)):
        notes.append(f"{len(unlisted)} micrographs of particles are not in {source}: {listed(unlisted)}")
    position = {i: k for k, i in enumerate(usable)}
    return MovieSet(
        movies=tuple(read[i] for i in usable),
        find={name: position[i] for name, i in listed_as.items() if i in position},
        unusable={name: out[i] for name, i in listed_as.items() if i in out},
        idle=tuple(idle), problems=tuple(problems), notes=tuple(notes),
    )  # fmt: skip


def _unusable(
    failed: Mapping[int, tuple[Path, str]],
    read: Mapping[int, Movie],
    absent: Iterable[int],
    needed: set[int],
    root: Path,
) -> list[str]:
    """Return a line for each kind of movie, of those with particles, that failed or is absent."""
    problems = _skippable({i: failure for i, failure in failed.items() if i in needed}, needed)
    if lost := [_within(read[i].path, root) for i in absent if i in needed]:
        problems.append(f"{len(lost)} of {len(needed)} movies not found in {root}: {listed(lost)}; put them there, or "
                        f"{_GIVE_ROOT}{_OR_SKIP}")  # fmt: skip
    return problems


def from_root(path: str | Path, root: str | Path | None) -> Path:
    """Take a path given by the user as it stands, or from the root where only that leads to a file."""
    path = Path(path)
    return Path(root) / path if root is not None and not path.exists() and (Path(root) / path).exists() else path


def as_gain(gain: Gain | str | Path | None, root: str | Path | None) -> Gain | None:
    """Return a gain reference given as such or by its path, found wherever work is done."""
    if gain is None:
        return None
    gain = gain if isinstance(gain, Gain) else Gain(as_path(gain, "gain"))
    return replace(gain, path=from_root(gain.path, root).absolute())


def strip_job(name: str) -> str:
    """Path of a file within the RELION job that made it: ``MotionCorr/job002/Movies/a.mrc`` is ``Movies/a.mrc``."""
    return _JOB_PREFIX.sub("", name)


def short_names(paths: Sequence[str]) -> list[str]:
    """Name micrographs uniquely: by base name where that is enough, else path within their job, else whole path.

    Those that would still have the name of an earlier one are numbered, as where one movie was imported twice.
    """
    whole = [os.path.splitext(str(Path(path)))[0] for path in paths]
    levels = [[Path(path).name for path in whole], [strip_job(path).replace("/", "_") for path in whole],
              [path.strip("/").replace("/", "_") for path in whole]]  # fmt: skip
    levels = [[name.lstrip(".") or "_" for name in level] for level in levels]  # results are not hidden
    counts = [Counter(level) for level in levels]
    names: dict[str, None] = {}
    for i in range(len(paths)):
        name = next((level[i] for level, count in zip(levels, counts) if count[level[i]] == 1), levels[-1][i])
        numbered = (name if n == 1 else f"{name}_{n}" for n in itertools.count(1))
        names[next(one for one in numbered if one not in names)] = None
    return [*names]


def match_micrographs(wanted: Iterable[str], names: Sequence[str]) -> dict[str, int]:
    """Where each wanted micrograph is listed: under its very name, or the same name within another job."""
    exact = {name: i for i, name in enumerate(names)}
    within_job = [strip_job(name) for name in names]
    count = Counter(within_job)
    loose = {name: i for i, name in enumerate(within_job) if count[name] == 1}
    found = {name: exact.get(name, loose.get(strip_job(name))) for name in wanted}
    return {name: i for name, i in found.items() if i is not None}


def _read_motion(
    rows: pd.DataFrame, shorts: Sequence[str], root: Path, options: Options
) -> tuple[dict[int, Movie], dict[int, tuple[Path, str]]]:
    """Movies by row of the micrograph table; for those that fail, the file and what is wrong with it."""
    read: dict[int, Movie] = {}
    failed: dict[int, tuple[Path, str]] = {}
    voltages = rows["rlnVoltage"].tolist() if "rlnVoltage" in rows.columns else [None] * len(rows)
    for i, (metadata, short, voltage) in enumerate(zip(rows["rlnMicrographMetadata"].astype(str), shorts, voltages)):
        path = root / metadata if metadata else Path(short)
        try:
            if not metadata:
                raise InputError(f"{path}: no motion STAR file is named for it; run motion correction again")
            if not path.is_file():
                raise InputError(f"{path}, the motion STAR file of a micrograph, was not found; {_GIVE_ROOT}")
            read[i] = _one_movie(path, short, root, voltage, options)
        except InputError as error:
            failed[i] = path, str(error)
    return read, failed


def _one_movie(path: Path, short: str, root: Path, voltage_kV: float | None, options: Options) -> Movie:
    return read_motion(
        path, short, locate=lambda name: root / name, dose_per_frame_e_A2=options.dose_per_frame_e_A2,
        pre_exposure_e_A2=options.pre_exposure_e_A2, voltage_kV=voltage_kV, gain=options.gain,
    )  # fmt: skip


def _without_last_frame(read: Mapping[int, Movie], options: Options) -> dict[int, str]:
    """Movies to leave out since they end before ``last_frame``, with the reason, if such may be left out."""
    if not options.skip_movies_with_wrong_frame_count or options.eer_fractions is not None:
        return {}
    ends = {i: movie.first_frame + movie.n_frames for i, movie in read.items()}
    return {i: f"its movie has {end} frames, last_frame is {options.last_frame}"
            for i, end in ends.items() if end < options.last_frame}  # fmt: skip


def _as_asked(read: Mapping[int, Movie], options: Options) -> tuple[dict[int, Movie], dict[int, tuple[Path, str]]]:
    """Cut movies into the frames asked for and keep those to be used; and file and reason of those that cannot be."""
    from refmotion_nb.data.movies.frames import keep_frames, regroup_eer

    cut: dict[int, Movie] = {}
    failed: dict[int, tuple[Path, str]] = {}
    for i, movie in read.items():
        try:
            if options.eer_fractions is not None and movie.path.is_file():
                movie = regroup_eer(movie, options.eer_fractions)
            last = options.last_frame
            if options.mixed_frame_counts:
                last = min(last, movie.first_frame + movie.n_frames)
            movie = keep_frames(movie, options.first_frame, last)
            if (dose := movie.dose_edges[-1]) > MOST_DOSE_E_A2:
                raise InputError(f"{movie.path} would have had {dose:g} e/Å² when it ends, more than any specimen stands; give "
                                 "dose_per_frame_e_A2 and pre_exposure_e_A2 in e/Å²")  # fmt: skip
        except InputError as error:
            failed[i] = movie.path, str(error)
        else:
            detect = options.hot_pixel_threshold if not len(movie.hot_pixels) else 0.0
            background = movie.background if options.subtract_background else None
            cut[i] = replace(movie, hot_pixel_threshold=detect, background=background,
                             estimate_background=options.subtract_background and background is None)  # fmt: skip
    return cut, failed


def _wrong_frame_count(
    read: Mapping[int, Movie], needed: set[int], options: Options, problems: list[str]
) -> dict[int, str]:
    """Movies to leave out for their frame count, with the reason; a problem instead, unless they may be skipped."""
    counts = Counter(movie.n_frames for i, movie in read.items() if i in needed)
    if len(counts) < 2 or options.mixed_frame_counts:
        return {}
    usual = max(counts, key=lambda n: (counts[n], n))
    wrong = {i: f"its movie has {movie.n_frames} frames, most have {usual}"
             for i, movie in read.items() if movie.n_frames != usual}  # fmt: skip
    if options.skip_movies_with_wrong_frame_count:
        return wrong
    named = [f"{read[i].micrograph} ({read[i].n_frames})" for i in wrong if i in needed]
    problems.append(f"{len(named)} of {sum(counts.values())} movies do not have {usual} frames: {listed(named)}; "
                    "use skip_movies_with_wrong_frame_count to leave them out, or mixed_frame_counts to keep them")  # fmt: skip
    return {}


def _too_short(movies: Mapping[int, Movie], options: Options, problems: list[str], root: Path) -> dict[int, str]:
    """Open movies: those with too few frames, or all that fail, are left out if they may be; all else that is wrong is a problem.

    Gain references and defect files are read, each once, for the first movie that has them.
    """
    from refmotion_nb.data.movies.detector import load_camera
    from refmotion_nb.data.movies.reader import check_movie, movie_shape

    short: dict[int, str] = {}
    cameras: set[object] = set()
    damaged: dict[int, tuple[Path, str]] = {}
    failed: dict[int, tuple[Path, str]] = {}  # since their gain or defect file did
    for i, movie in sorted(movies.items()):
        if _missing_extras([movie], root):
            continue  # said already
        try:
            check_movie(movie)
        except InputError as error:
            n_in_file = None
            with suppress(InputError):  # not a movie at all: the first error says why
                n_in_file = movie_shape(movie.path, movie.eer_upsampling, movie.eer_grouping)[0]
            is_short = n_in_file is not None and n_in_file < movie.first_frame + movie.n_frames
            if is_short and options.skip_movies_with_wrong_frame_count:
                short[i] = f"its movie has {n_in_file} frames, motion correction saw more"
            elif options.skip_unusable_movies:
                short[i] = str(error)
            else:
                damaged[i] = movie.path, str(error)
            continue
        # rows the other way up change nothing of what is looked at, and would be read again
        gain = movie.gain and replace(movie.gain, rows_as_stored=False)
        if (camera := (gain, movie.defects, movie.height, movie.width)) not in cameras:
            cameras.add(camera)
            try:
                load_camera(replace(movie, gain=gain, hot_pixels=np.zeros((0, 2), int)))
            except InputError as error:
                failed[i] = movie.path, str(error)
    problems.extend([*_skippable(damaged, movies), *_grouped(failed)])
    return short


def _missing_extras(movies: Iterable[Movie], root: Path) -> list[str]:
    """Name gain references and defect files that are not there, one line each."""
    extras: Counter[tuple[Path, str]] = Counter()
    for movie in movies:
        if movie.gain is not None:
            extras[Path(movie.gain.path), "gain reference {}; put it there, or give gain"] += 1
        if movie.defects is not None:
            extras[movie.defects, "defect file {}; put it there"] += 1
    return [text.format(f"{_within(path, root)} not found in {root} ({count} movies)")
            for (path, text), count in extras.items() if not path.is_file()]  # fmt: skip


def _grouped(failed: Mapping[int, tuple[Path, str]]) -> list[str]:
    """One line for each kind of failure, however many files have it."""
    lines = list(alike((path.stem, message) for path, message in failed.values()))
    return lines if len(lines) <= 10 else [*lines[:10], f"{len(lines) - 10} more files have problems of their own"]


def _skippable(failed: Mapping[int, tuple[Path, str]], movies: Collection[int]) -> list[str]:
    """Return such lines on movies that may be left out, which they say unless all ``movies`` failed."""
    return [line + _OR_SKIP * (len(failed) < len(movies)) for line in _grouped(failed)]


def _within(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path
