"""Why particles do not look like their reference: boxes placed and images turned by other conventions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refmotion_nb.data.resemblance import AHEAD, SURE, resemblance_scores
from refmotion_nb.data.schema import Dataset, Movie

Move = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coordinates and movie size (particle, 2) Å -> coordinates

# placement of boxes and view of the image -> what is wrong, remedy
CAUSES = {
    ("given", "mirrored"): (
        "the y axis of the poses runs against the rows of the movies: images mirrored in y",
        "convert poses, origins and the hand of the maps together with the coordinates, or none of them",
    ),
    ("given", "exchanged"): (
        "poses are for images with x and y exchanged: with these exchanged",
        "convert coordinates and poses together, or neither",
    ),
    ("y mirrored", "opposite"): (
        "the y axis of the coordinates runs against the rows of the movies: at mirrored y particles",
        "replace y by the height of the micrograph minus y",
    ),
    ("movie mirrored", "mirrored"): (
        "the rows of the movies run against coordinates, poses and motion: with the movies mirrored in y particles",
        "give the movies (and their gain) that these tables were made from",
    ),
    ("x and y exchanged", "opposite"): (
        "x and y of the coordinates are exchanged: with these exchanged particles", "exchange the two columns",
    ),
    ("movie exchanged", "exchanged"): (
        "x and y of the movies are exchanged against the tables: with these exchanged particles",
        "give the movies (and their gain) that these tables were made from",
    ),
    ("doubled", "opposite"): (
        "coordinates count pixels twice as large as said: doubled, particles",
        "give coordinates in pixels of the corrected micrographs",
    ),
    ("halved", "opposite"): (
        "coordinates count pixels half as large as said: halved, particles",
        "give coordinates in pixels of the corrected micrographs",
    ),
}  # fmt: skip


def misfit(cause: tuple[str, str], score: float, given: float) -> str:
    """Return a line that names a cause, with how well particles resemble their reference after and before."""
    what, remedy = CAUSES[cause]
    return f"{what} resemble their reference by {score:.1f} standard errors, as given by {given:.1f}; {remedy}"


def cause_of_misfit(data: Dataset, names: list[str], number: int) -> str | None:
    """Return a line on why the particles of reference ``number`` in micrographs ``names`` do not resemble it, if found.

    Some movies are read again, with boxes placed by each convention that a converter may have taken.
    """
    rows = np.isin(data.particles["micrograph"].values, names) & (data.particles["reference"].values == number)
    particles = data.particles.isel(particle=np.flatnonzero(rows))
    movies = tuple(movie for movie in data.movies if movie.micrograph in set(names))
    some = replace(
        data, movies=movies, references=(data.references[number],),
        particles=particles.assign(reference=particles["reference"] * 0),
    )  # fmt: skip
    scores = resemblance_scores({name: place(some) for name, place in _PLACEMENTS.items()})
    ranked = sorted(CAUSES, key=lambda cause: -scores[cause])
    given, best = scores["given", "opposite"], scores[ranked[0]]
    return misfit(ranked[0], best, given) if best >= SURE and best - given >= AHEAD else None


def _placed(data: Dataset, move: Move, shift: np.ndarray) -> Dataset:
    """Return the data set with coordinates moved and the motion of whole frames multiplied by ``shift`` (2, 2).

    Unless ``shift`` is the identity local motion is left out: it is small in the band compared.
    """
    size = {m.micrograph: (m.width * m.pixel_size_A, m.height * m.pixel_size_A) for m in data.movies}
    particles = data.particles
    sizes = np.array([size[name] for name in particles["micrograph"].values])
    moved = particles["coordinate"].copy(data=move(particles["coordinate"].values, sizes))

    def turned(movie: Movie) -> Movie:
        if movie.global_shift is None or np.array_equal(shift, np.eye(2)):
            return movie
        return replace(movie, global_shift=movie.global_shift @ shift.T, local_motion=None, spline_motion=None)

    return replace(data, movies=tuple(map(turned, data.movies)), particles=particles.assign(coordinate=moved))


def _y_mirrored(coordinate: np.ndarray, size: np.ndarray) -> np.ndarray:
    return np.stack([coordinate[:, 0], size[:, 1] - coordinate[:, 1]], 1)


_AS_IS, _FLIP, _SWAP = np.eye(2), np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]])
_PLACEMENTS: dict[str, Callable[[Dataset], Dataset]] = {
    "given": lambda data: data,
    "y mirrored": lambda data: _placed(data, _y_mirrored, _AS_IS),
    "movie mirrored": lambda data: _placed(data, _y_mirrored, _FLIP),
    "x and y exchanged": lambda data: _placed(data, lambda c, _: c[:, ::-1], _AS_IS),
    "movie exchanged": lambda data: _placed(data, lambda c, _: c[:, ::-1], _SWAP),
    "doubled": lambda data: _placed(data, lambda c, _: 2 * c, _AS_IS),
    "halved": lambda data: _placed(data, lambda c, _: 0.5 * c, _AS_IS),
}
