"""Pictures: one frame of a movie, the sum of a movie with its particles, particles before and after correction."""

from __future__ import annotations

from collections.abc import Mapping

import holoviews as hv
import numpy as np
import xarray as xr

from refmotion_nb.data.movies.look import Look, look_at
from refmotion_nb.data.movies.reader import MovieReader, open_movie
from refmotion_nb.data.relion.motion import rigid_displacement
from refmotion_nb.data.schema import Dataset, InputError, Movie
from refmotion_nb.stages.correction import MotionCorrection
from refmotion_nb.stages.one_micrograph import before_and_after
from refmotion_nb.stages.session import Session
from refmotion_nb.views.plots import look
from refmotion_nb.views.scale import percentile

_SIDE = 420  # px of a picture on the screen
MOST_PIXELS = 700  # along a side; more are binned, which also shows more


def frame(data: Dataset | Session, micrograph: str, number: int = 1) -> hv.Overlay:
    """Show one frame (from 1) of a movie, gain-corrected, with its particles.

    Raises
    ------
    InputError
        No such micrograph or frame, or a movie that cannot be read.
    """
    movie, particles = _find(data, micrograph)
    if not 1 <= number <= movie.n_frames:
        raise InputError(f"{micrograph} has frames 1 to {movie.n_frames}, not {number}")
    with open_movie(movie) as reader:
        seen = look_at(movie, reader, repair=True, flatten=False)
        image = _bin(_corrected(reader, seen, number - 1), _factor(movie))
    return _picture(data, image, movie, particles, f"{micrograph}\nframe {number} of {movie.n_frames}")


def micrograph(data: Dataset | Session, micrograph: str) -> hv.Overlay:
    """Show the sum of a movie's frames, moved by their rigid motion, with its particles.

    Raises
    ------
    InputError
        No such micrograph, or a movie that cannot be read.
    """
    movie, particles = _find(data, micrograph)
    factor = _factor(movie)
    moved = np.rint(rigid_displacement(movie) / movie.pixel_size_A).astype(int)  # (frame, 2) px
    total = np.zeros((movie.height, movie.width), np.float32)
    with open_movie(movie) as reader:
        seen = look_at(movie, reader, repair=True, flatten=False)
        for f, (x, y) in enumerate(moved):
            total += np.roll(_corrected(reader, seen, f), (-y, -x), (0, 1))
    return _picture(data, _bin(total, factor), movie, particles, f"{micrograph}\nsum of {movie.n_frames} frames")


def particles(
    session: Session, micrograph: str, search: xr.Dataset, dose: Mapping[str, xr.Dataset] | xr.Dataset, number: int = 5,
    low_pass_A: float = 10.0, stage: MotionCorrection | None = None,
) -> hv.Layout:  # fmt: skip
    """Show some particles before correction (rigid motion, standard weights), after it, and as the reference predicts them.

    ``search`` has the prior, ``dose`` the weights; several of these are compared by name. ``stage`` has the settings, by default
    those of ``MotionCorrection()``. Noise beyond ``low_pass_A`` is left out.

    Raises
    ------
    InputError
        No such micrograph, a movie that cannot be used, weights or a box that do not fit, or no particle to show.
    """
    if number < 1:
        raise InputError(f"number is {number}; give 1 particle or more")
    weights = {look.joined("after", name): table for name, table in look.named(dose).items()}
    shown = before_and_after(session, micrograph, search, weights, number, low_pass_A, stage)
    rows, names = shown["row"].values, shown["picture"].values
    items = [_particle(image, shown.attrs["extent_A"], f"row {row} · {name}", i == 0, name == "reference")
             for name, images in zip(names, shown["image"].values)
             for i, (row, image) in enumerate(zip(rows, images))]  # fmt: skip
    return look.panels(items, len(rows))


def _dataset(data: Dataset | Session) -> Dataset:
    return data.data if isinstance(data, Session) else data


def _find(data: Dataset | Session, name: str) -> tuple[Movie, xr.Dataset]:
    dataset = _dataset(data)
    for movie, found in dataset.micrographs():
        if movie.micrograph == name:
            return movie, found
    from difflib import get_close_matches

    known = [movie.micrograph for movie in dataset.movies]
    near = get_close_matches(str(name), known, n=1) or known[:1]
    raise InputError(
        f"no micrograph {name!r} with particles among {len(known)}; for example {', '.join(near) or 'none'}"
    )


def _corrected(reader: MovieReader, seen: Look, f: int) -> np.ndarray:
    return seen.frame(reader, f) * seen.gain


def _factor(movie: Movie) -> int:
    return max(1, -(-max(movie.height, movie.width) // MOST_PIXELS))


def _bin(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the mean counts of blocks of pixels, what does not fill a block left out."""
    height, width = (size // factor for size in image.shape)
    cut = image[: height * factor, : width * factor].astype(np.float32)
    return cut.reshape(height, factor, width, factor).mean((1, 3))


def _picture(data: Dataset | Session, image: np.ndarray, movie: Movie, table: xr.Dataset, title: str) -> hv.Overlay:
    step = _factor(movie) * movie.pixel_size_A
    height, width = image.shape
    dims = [hv.Dimension((axis, axis), unit="Å") for axis in "xy"]
    limits = percentile(image, 0.5), percentile(image, 99.5)
    picture = hv.Image(image[::-1], dims, hv.Dimension(("counts", "Mean counts per pixel"), unit="counts"),
                       bounds=(0, 0, width * step, height * step))  # fmt: skip
    at = table["coordinate"].values
    points = hv.Points((*at.T, table["row"].values, table["half"].values), dims,
                       [hv.Dimension(("row", "Row of the input")), hv.Dimension(("half", "Half set"))])  # fmt: skip
    optics = [_dataset(data).optics[g] for g in np.unique(table["optics"].values)]
    radius = max(one.box_size * one.pixel_size_A for one in optics) / 3
    tall = round(_SIDE * height / width)
    title = f"{title} · {len(at)} particles (circles: ⅔ of the box)"
    return look.overlay(
        [look.styled(picture, "Image", cmap="gray", clim=limits, tools=["hover"], colorbar=True,
                     clabel="Mean counts per pixel", **look.BAR, frame_width=_SIDE, frame_height=tall, title=title),
         look.styled(points, "Points", fill_alpha=0, line_width=1.5, radius=radius, tools=["hover"],
                     color=look.colours("c")[4])],
        title=title, frame_width=_SIDE, frame_height=tall, show_legend=False,
    )  # fmt: skip


def _particle(image: np.ndarray, extent_A: float, title: str, first: bool, last: bool) -> hv.Image:
    half = 0.5 * extent_A
    dims = [hv.Dimension((f"d{axis}", axis), unit="Å") for axis in "xy"]
    picture = hv.Image(image[::-1], dims, hv.Dimension(("value", "Grey value"), unit="σ of the background"),
                       bounds=(-half, -half, half, half))  # fmt: skip
    limits = percentile(image, 0.5), percentile(image, 99.5)
    return look.styled(
        picture, "Image", cmap="gray", clim=limits, frame_width=130, frame_height=130, title=title, tools=["hover"],
        fontsize={**look.FONTS, "title": "8pt"}, xaxis="bottom" if last else "bare", yaxis="left" if first else "bare",
        xticks=3, yticks=3, toolbar=None,
    )  # fmt: skip
