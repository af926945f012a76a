"""What every input is turned into: movies, particles, optics groups and references, checked and labelled.

Conventions used everywhere: x runs along a row (the fast axis), y along a column; frames count from 0; a *displacement*
is where the specimen has moved to (the opposite of RELION's motion-correction shift); coordinates count from the first
pixel stored in an MRC file, with RELION's flip of TIFF rows already applied.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

AXES = ("x", "y")
T = TypeVar("T")
OPENED = "what open_relion or open_cryosparc returns, or a Session of it"


class InputError(ValueError):
    """Input that cannot be used; the message is one line: what, where (file, row, movie), and the remedy."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the line alone, since the way to where it was noticed does not help."""
        return [f"{type(self).__name__}: {self}"]


class OutputError(InputError):
    """An output folder that cannot be used as it is; whoever shows it adds how another one is chosen there."""


class SettingError(InputError):
    """A setting whose value is not allowed: its ``name``, and ``why``, with the remedy."""

    def __init__(self, name: str, why: str):
        """Say ``name why``; the command line puts the option in place of the name."""
        super().__init__(name, why)
        self.name, self.why = name, why

    def __str__(self) -> str:
        """Return the line."""
        return f"{self.name} {self.why}"


def wanted(value: Any, kind: type[T], what: str, remedy: str) -> T:
    """Return ``value`` if it is of that kind; ``what`` names it.

    Raises
    ------
    InputError
        It is of another: which, and what to give.
    """
    if isinstance(value, kind):
        return value
    raise InputError(f"{what} is {in_words(value)}; give {remedy}")


def as_path(value: Any, what: str) -> Path:
    """Return ``value`` as a path; InputError where it is none, as a list of paths or an empty text is."""
    if isinstance(value, str) and not value:
        raise InputError(f"{what} is empty; give a path")
    if isinstance(value, Path):  # as thousands of files are opened by
        return value
    if isinstance(value, str | os.PathLike):
        return Path(value)
    raise InputError(f"{what} is {in_words(value)}; give one path")


def several(value: Any) -> list[Any]:
    """Return one or several things as a list; a text is one."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def in_words(value: Any) -> str:
    """Return what kind of thing a value is, of a short one also what it says."""
    text = repr(value)
    if value is None:
        return text
    short = isinstance(value, str | int | float | os.PathLike) and len(text) < 60
    return f"of type {type(value).__name__}" + (f" ({text})" if short else "")


def failure_in_words(error: OSError | MemoryError, again: str, less_memory: str) -> str:
    """Return one line on what the machine refused: where, what, and the remedy.

    ``again`` says how the work is started again, ``less_memory`` how it is given less.
    """
    resumed = f"{again}: it goes on where it stopped"
    if isinstance(error, MemoryError):
        what = str(error).rstrip(".") or "it was not said at what"
        return f"the memory is full ({what}); end other programs or {less_memory}, and {resumed}"
    where = f"{error.filename}: " if error.filename else ""
    remedy = f"make room and {resumed}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the path"
    return f"{where}{error.strerror or error}; {remedy}"


@dataclass(frozen=True)
class Mtf:
    """How much of a signal a detector passes on (its modulation transfer function), by spatial frequency."""

    frequency_per_A: tuple[float, ...]  # rising
    value: tuple[float, ...]

    def at(self, frequency_per_A: np.ndarray) -> np.ndarray:
        """Return it at some frequencies (any shape), linearly in between and constant beyond the ends."""
        return np.interp(frequency_per_A, self.frequency_per_A, self.value)


@dataclass(frozen=True)
class Optics:
    """One optics group: what the particles of one microscope session and camera share."""

    name: str
    voltage_kV: float
    spherical_aberration_mm: float
    amplitude_contrast: float
    pixel_size_A: float  # of the particle images that were refined
    box_size: int  # px, of the particle images that were refined
    ctf_premultiplied: bool = False
    beam_tilt_mrad: tuple[float, float] = (0.0, 0.0)
    odd_zernike: tuple[float, ...] = ()  # RELION's order, radians
    even_zernike: tuple[float, ...] = ()
    magnification: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))
    mtf_file: str = ""  # as the table names it
    mtf: Mtf | None = None  # of the detector, where its file could be read
    relative_mtf: Mtf | None = None  # against that of the half maps, the mean of several detectors; None: the same


@dataclass(frozen=True)
class Gain:
    """A gain reference and how it lies on the movie; ``invert=None`` follows RELION (EER: .mrc inverted, .gain not)."""

    path: Path
    flip_x: bool = False
    flip_y: bool = False
    rotate_quarter_turns: int = 0
    invert: bool | None = None
    rows_as_stored: bool = False  # a TIFF is not flipped on reading, as CryoSPARC takes it


@dataclass(frozen=True)
class Background:
    """An image of how bright the field is, coarsely sampled; its scale does not matter."""

    path: Path
    rows_reversed: bool = False  # against the rows of the movie as read


@dataclass(frozen=True)
class Movie:
    """One movie with what motion correction found out about it."""

    micrograph: str  # unique short name, used in output names and in Dataset coordinates
    path: Path
    n_frames: int  # frames used, from first_frame on
    height: int  # px of the movie as rendered (EER upsampling included)
    width: int
    pixel_size_A: float  # of the movie as rendered
    dose_per_frame_e_A2: float
    pre_exposure_e_A2: float = 0.0
    voltage_kV: float = 300.0
    binning: float = 1.0  # micrograph pixel over movie pixel
    first_frame: int = 0  # 0-based
    gain: Gain | None = None
    defects: Path | None = None  # rectangles "x y width height" per line, or a map (MRC, TIFF; non-zero is bad)
    hot_pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), int))  # (pixel, 2) x y
    eer_upsampling: int = 1
    eer_grouping: int = 1
    global_shift: np.ndarray | None = None  # (frame, 2) movie px, RELION's sign: the correction, minus the displacement
    local_motion: np.ndarray | None = None  # (36,) RELION's third-order polynomial, 18 for x then 18 for y
    spline_motion: np.ndarray | None = None  # (2, KZ, KY, KX) px: B-spline of the local displacement, x, y
    motion_frames: int | None = None  # how many frames motion correction saw, where they are not those used
    # (frame, sample) where frames lie on its frames, from 0: local motion is the mean over samples; None: one by one
    motion_time: np.ndarray | None = None
    rows_as_stored: bool = False  # TIFF rows are not flipped; all positions and poses are CryoSPARC's
    background: Background | None = None  # subtracted from every frame
    estimate_background: bool = False  # from the movie, where there is none
    hot_pixel_threshold: float = 0.0  # standard deviations; 0: hot pixels are those listed

    @property
    def dose_edges(self) -> np.ndarray:
        """Accumulated dose before each frame and after the last, pre-exposure included: (frame + 1,) e/Å²."""
        n = self.first_frame + np.arange(self.n_frames + 1)
        return self.pre_exposure_e_A2 + n * self.dose_per_frame_e_A2

    @property
    def local_times(self) -> np.ndarray:
        """Where each frame lies on the frames of motion correction, from 0: (frame, sample)."""
        return np.arange(self.n_frames)[:, None] if self.motion_time is None else self.motion_time


@dataclass(frozen=True)
class Reference:
    """A refined reference: its two unfiltered half maps, the mask, and optionally RELION's postprocess.star."""

    half1: Path
    half2: Path
    mask: Path | None = None
    postprocess: Path | None = None  # its FSC is used where it is given; else it is computed from the half maps


@dataclass(frozen=True)
class Skipped:
    """An input particle (or a movie without any) that is not processed, and why."""

    row: int  # row of the input particle table, from 0; -1: a movie without particles
    micrograph: str
    reason: str
    reference: int = 0  # whose particle table it is


@dataclass(frozen=True)
class Dataset:
    """Movies, particles and references that belong together, checked.

    ``particles`` has dimension ``particle`` in the order of the input rows and the variables ``micrograph``, ``row``
    (of the input table), ``stack_index`` (the number before the @ of rlnImageName: RELION's order within a micrograph),
    ``reference`` (from 0), ``half`` (1 or 2), ``optics`` (index), ``coordinate`` (particle, axis) Å, ``euler``
    (particle, angle = rot, tilt, psi) degrees, ``origin`` (particle, axis) Å, ``defocus_u``, ``defocus_v`` Å,
    ``defocus_angle``, ``phase_shift`` degrees, ``ctf_b_factor`` Å², ``ctf_scale`` and ``scale``.
    """

    movies: tuple[Movie, ...]
    particles: xr.Dataset
    optics: tuple[Optics, ...]
    references: tuple[Reference, ...]
    skipped: tuple[Skipped, ...] = ()
    tables: tuple[dict[str, pd.DataFrame], ...] = ()  # the input tables, one per reference, for writing them back
    cs_rows: tuple[np.ndarray, ...] = ()  # CryoSPARC's particle rows, one structured array per reference, likewise
    notes: tuple[str, ...] = ()  # what is worth a look, one line each
    sources: tuple[tuple[str, Path], ...] = ()  # what each table it was made from holds, and where that lies
    orientation: str = ""  # how CryoSPARC's tables lie on the movies (see ``open_cryosparc``); empty for RELION
    root: Path | None = None  # where paths in RELION's tables start

    @cached_property
    def movies_with_particles(self) -> tuple[Movie, ...]:
        """The movies that are read; the others are part of no result."""
        import pandas as pd

        names = set(pd.unique(self.particles["micrograph"].values))
        return tuple(movie for movie in self.movies if movie.micrograph in names)

    def micrographs(self) -> Iterator[tuple[Movie, xr.Dataset]]:
        """Each movie with its particles, in RELION's order (by stack index)."""
        import pandas as pd

        row, stack_index, micrograph = (self.particles[name].values for name in ("row", "stack_index", "micrograph"))
        which, names = pd.factorize(micrograph)  # NumPy would sort the names of a million particles
        order = np.lexsort((row, stack_index, which))
        rows = dict(zip(names.tolist(), np.split(order, np.cumsum(np.bincount(which))[:-1])))
        for movie in self.movies:
            if movie.micrograph in rows:
                yield movie, self.particles.isel(particle=rows[movie.micrograph])
